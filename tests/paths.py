"""Paths of a record made up of what each cluster of the forget set has at 95 % retention."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn_metrics.record import ClusterSums, MeasuredPath

METRIC = "extraction_strength"


def path(
    left: Sequence[float], own: float = 0.9, retain_only: float | None = None, half: float = 0.0, documents: int = 10
) -> MeasuredPath:
    """A path on which the residual at a retention of 0.95 is the mean of `left`, in every draw that of what is drawn.

    Every cluster of retain falls in a straight line from 1 to `own` at alpha 1, and on; less `half` at alpha 1/2. A
    cluster of the forget set falls with it from 1 through its value where retention is 0.95, and on, to 0 at most.
    """
    reached = round(0.05 / (1 - own), 12)
    alphas = sorted({0.0, 0.5, 1.0, 1.5} | ({reached} if reached <= 1.5 else set()))
    there = [1 - (1 - own) * alpha for alpha in alphas]
    kept = [max(0.0, at - half * (alpha == 0.5)) for alpha, at in zip(alphas, there, strict=True)]
    forget = [[max(0.0, 1 - (1 - at) / 0.05 * (1 - of)) for of in left] for at in there]
    retain = _sums([[of] * max(5, len(left)) for of in kept], 5)
    floor = {} if retain_only is None else {METRIC: _sums([[retain_only] * len(left)], documents)}
    return MeasuredPath(METRIC, alphas, [retain, retain], {METRIC: _sums(forget, documents)}, {METRIC: "forget"}, floor)


def _sums(means: Sequence[Sequence[float]], documents: int) -> ClusterSums:
    """Of as many documents in each cluster; means: [strengths][clusters]."""
    k = len(means[0])
    return ClusterSums(
        list(range(k)), [[documents * mean for mean in row] for row in means], [[documents] * k for _ in means]
    )
