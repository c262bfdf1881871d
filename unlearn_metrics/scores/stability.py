"""Does a metric's value of an unlearned model last, when the model is attacked or relearned? Numbers in, numbers out.

All take arrays of models, or numbers. `before` and `after` are values of a metric, higher meaning more knowledge.
"""

from __future__ import annotations

import numpy as np

from unlearn_metrics.documents import Floats

COUNTED = 0.8  # of the original's utility: a model that keeps less is not counted


def relearning(unlearned_gain: Floats, retain_only_gain: Floats | float) -> Floats:
    """clip(gain of the retain-only model / gain of the unlearned model, 0, 1): 1 = it relearns no faster.

    A gain is the value after relearning minus the value before. Where the unlearned model gains nothing: 1 if the
    retain-only model gains nothing or more, else NaN.

    Source: r of Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618), eq. 2.

    >>> relearning(np.array([0.4, 0.1]), 0.2).tolist()
    [0.5, 1.0]
    """
    mine, theirs = np.broadcast_arrays(np.asarray(unlearned_gain, float), np.asarray(retain_only_gain, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(theirs / mine, 0, 1)
    return np.where(mine == 0, np.where(theirs >= 0, 1.0, np.nan), ratio)


def quantization(before: Floats, after: Floats) -> Floats:
    """min(before / after, 1): 1 = the attack brings nothing back. NaN for a negative value, of which it says nothing.

    The value before is the numerator, as the paper has it: a metric that rises under the attack is the fault looked
    for. Some public scripts have the ratio upside down, so that a fall counts instead.

    Source: q of Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618), eq. 3.

    >>> quantization(np.array([0.1, 0.3]), np.array([0.4, 0.2])).tolist()
    [0.25, 1.0]
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(after <= before, 1.0, before / after)
    return np.where((before < 0) | (after < 0) | np.isnan(before + after), np.nan, ratio)


def alike(one: Floats, other: Floats | float) -> Floats:
    """1 - |one - other| / (|one| + |other|): 1 for equal numbers, 0 if one is 0 or they differ in sign.

    The symmetric form of both: of values before and after an attack, and of the gains of an unlearned and the
    retain-only model. It counts a rise and a fall alike.

    Source: UDS, 2026 (arXiv 2605.24614): its Q and R.

    >>> alike(np.array([0.2, 0.0]), np.array([0.6, 0.0])).tolist()
    [0.5, 1.0]
    """
    one, other = np.broadcast_arrays(np.asarray(one, float), np.asarray(other, float))
    size = np.abs(one) + np.abs(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.abs(one - other) / size
    return 1 - np.where(size == 0, 0.0, np.clip(share, 0, 1))
