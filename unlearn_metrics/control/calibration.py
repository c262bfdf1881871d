"""The largest strength of unlearning at which the model keeps what it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unlearn_metrics.record import TracePoint

COARSE = 8
RESOLUTION = 1 / 128


def calibrate(
    retention: Callable[[float], float], target: float, strengths: Sequence[float] | None = None
) -> tuple[float, list[TracePoint]]:
    """The largest alpha in [0, 1] found with retention(alpha) >= target, and every evaluation made, in order.

    Retention need not fall monotonically: a scan from 1 down in steps of 1/8 finds the highest step that holds,
    then bisection between it and the failing step above narrows the edge to 1/128. The alpha returned has itself been
    evaluated and holds. What can be missed is a stretch that holds, shorter than 1/8, above it.
    alpha = 0 is the original, which holds by definition of the target; it is not evaluated.
    strengths: the only ones that there are; all of them are evaluated, from the largest down.
    """
    trace: list[TracePoint] = []

    def holds(alpha: float) -> bool:
        trace.append(TracePoint(alpha, retention(alpha)))
        return trace[-1].retention >= target

    if strengths is not None:
        return max((a for a in sorted(strengths, reverse=True) if holds(a)), default=0.0), trace
    low, high = 0.0, 1.0
    for step in range(COARSE, 0, -1):
        if holds(step / COARSE):
            low = step / COARSE
            break
        high = step / COARSE
    while low < 1 and high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, trace
