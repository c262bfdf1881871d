"""Paths of a record made up of what each cluster of the forget set has at 95 % retention."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn_metrics.record import ClusterSums, MeasuredPath

ALPHAS = [0.0, 0.5, 1.0, 1.5]


def path(
    left: Sequence[float], own: float = 0.9, documents: int = 10, retain_only: float | None = None, half: float = 0.0
) -> MeasuredPath:
    """Every cluster of retain falls in a straight line from 1 to `own` at alpha 1, less `half` at alpha 1/2. A cluster
    of the forget set, of `documents`, falls from 1 through its value at alpha 1/2 as steeply on, to 0 at most. So with
    the default `own`, the residual at a retention of 0.95 is the mean of `left`, in every draw that of what is drawn.
    """
    clusters = list(range(max(5, len(left))))
    kept = [1 - (1 - own) * alpha - half * (alpha == 0.5) for alpha in ALPHAS]
    retain = ClusterSums(clusters, [[5 * of] * len(clusters) for of in kept], [[5] * len(clusters)] * len(ALPHAS))
    there = [[max(0.0, 1 - 2 * alpha * (1 - of)) for of in left] for alpha in ALPHAS]
    forget = ClusterSums(
        list(range(len(left))),
        [[documents * of for of in row] for row in there],
        [[documents] * len(left)] * len(ALPHAS),
    )
    floor = {}
    if retain_only is not None:
        floor = {
            "extraction_strength": ClusterSums(
                forget.clusters, [[documents * retain_only] * len(left)], [[documents] * len(left)]
            )
        }
    return MeasuredPath(
        "extraction_strength",
        ALPHAS,
        [retain, retain],
        {"extraction_strength": forget},
        {"extraction_strength": "forget"},
        floor,
    )
