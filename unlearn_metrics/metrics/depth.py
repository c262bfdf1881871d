"""How deep a model's forgetting reaches: whether layers still hold what no longer comes out. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

THRESHOLD = 0.05  # nats that a layer of the retain-only model must lack, to be one that holds the knowledge


def erased_share(unlearned: Sequence[float], retain_only: Sequence[float]) -> float:
    """Share of the knowledge in the original's layers that the unlearned model's layers lack: 0 = intact, 1 = as if
    never trained on it.

    Over the layers that hold it, whose drop D1 with the retain-only model's states exceeds THRESHOLD:
    sum D1 * clip(D2 / D1, 0, 1) / sum D1, with D2 the drop with the unlearned model's states.

    Args:
        unlearned: D2 of each layer, in nats per token: what the original's mean log-probability of the answer loses
            where that layer's output is the unlearned model's.
        retain_only: D1 of each layer, the same for the retain-only model.

    Returns:
        A share in [0, 1]; NaN where no layer holds the knowledge.

    Raises:
        ValueError: the two have different numbers of layers.

    >>> erased_share([0.5, 1.0, 3.0], [0.01, 2.0, 2.0])  # the first layer does not hold it; then half, and all
    0.75

    Source: Lee, Kim & Jo 2026, Unlearning Depth Score (arXiv 2605.24614), by activation patching; with drops by logit
    lens instead, their baseline of that name.
    """
    layers = [(d1, d2) for d1, d2 in zip(retain_only, unlearned, strict=True) if d1 > THRESHOLD]
    if not layers:
        return math.nan
    return sum(min(max(d2, 0.0), d1) for d1, d2 in layers) / sum(d1 for d1, _ in layers)
