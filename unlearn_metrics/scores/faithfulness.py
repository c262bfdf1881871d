"""Does a metric tell models with the knowledge from models without it? Values of models in, no model here.

`knows` and `others` are values of one metric, [k] and [m], turned so that higher means more knowledge.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from unlearn_metrics.documents import Floats
from unlearn_metrics.metrics.privacy import weighted_aucs

Z = float(ndtri(0.975))


def auc(knows: Floats, others: Floats) -> float:
    """The probability that a model with the knowledge has a higher value than one without, ties half.

    Returns:
        In [0, 1]; 0.5: the metric cannot tell them apart. NaN where a value is unknown or a pool is empty.

    Source: faithfulness of a metric, Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618), section 4.

    >>> auc(np.array([0.9, 0.4]), np.array([0.1, 0.4]))
    0.875
    """
    if not len(knows) or not len(others) or np.isnan(knows).any() or np.isnan(others).any():
        return math.nan
    ones = np.ones((1, len(others))), np.ones((1, len(knows)))
    return float(weighted_aucs(others, knows, *ones)[0])


def delong(knows: Floats, others: Floats) -> tuple[Floats, Floats]:
    """AUCs of several metrics on the same models, and their covariances.

    Args:
        knows: [metrics, k] values; others: [metrics, m] values, of the same metrics.

    Returns:
        ([metrics], [metrics, metrics]).

    Source: DeLong et al. 1988, Biometrics 44, eq. 5 to 7.
    """
    wins = (knows[:, :, None] > others[:, None, :]) + 0.5 * (knows[:, :, None] == others[:, None, :])
    of_knows, of_others = wins.mean(2), wins.mean(1)  # placements, [metrics, k] and [metrics, m]
    spread = np.atleast_2d(np.cov(of_knows)) / knows.shape[1] + np.atleast_2d(np.cov(of_others)) / others.shape[1]
    return wins.mean((1, 2)), spread


def difference(aucs: Floats, spread: Floats, one: int, other: int) -> tuple[float, float, float, float]:
    """(difference, low, high, p) of two AUCs on the same models, by DeLong's test: 95 % interval, two-sided p.

    NaN for interval and p where no difference of these two could show: neither varies, as where both separate all.
    """
    gap = float(aucs[one] - aucs[other])
    variance = float(spread[one, one] + spread[other, other] - 2 * spread[one, other])
    if variance <= 1e-15:
        return gap, math.nan, math.nan, math.nan
    deviation = math.sqrt(variance)
    return gap, gap - Z * deviation, gap + Z * deviation, float(2 * ndtr(-abs(gap) / deviation))


def delong_interval(area: float, variance: float) -> tuple[float, float]:
    """95 % interval of an AUC on the logit scale, from DeLong's variance; (NaN, NaN) where that is 0."""
    if not 0 < area < 1 or variance <= 0:
        return math.nan, math.nan
    middle, half = math.log(area / (1 - area)), Z * math.sqrt(variance) / (area * (1 - area))
    return 1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle))


def score_interval(area: float, k: int, m: int) -> tuple[float, float]:
    """95 % interval of an AUC from its value and the sizes of the pools: of all true AUCs those that do not reject it.

    Unlike DeLong's it has a width where every model is on its side, since its variance is that of the AUC asked about.

    Source: Newcombe 2006, Statistics in Medicine 25:559, method 5; the variance of Hanley & McNeil 1982.
    """
    low, high = truths(area, k, m, np.array([Z, -Z])).tolist()
    return low, high


_GRID = np.sin(np.linspace(0, np.pi / 2, 4001)[1:-1]) ** 2  # finer towards 0 and 1


def truths(area: float, k: int, m: int, deviations: Floats) -> Floats:
    """[n] true AUCs from which the AUC seen is so many standard deviations away, upwards; see `score_interval`."""
    share = (1 - _GRID) / (2 - _GRID) + _GRID / (1 + _GRID)
    off = (area - _GRID) / np.sqrt(_GRID * (1 - _GRID) * (1 + ((k + m) / 2 - 1) * share) / (k * m))
    grid, off = np.array([0, *_GRID, 1]), np.array([0.0 if area == 0 else np.inf, *off, 0.0 if area == 1 else -np.inf])
    return np.interp(-deviations, -off, grid)


def threshold(knows: Floats, others: Floats) -> tuple[float, float]:
    """(value above which a model is said to know, share of the pools' models that it gets right).

    Of the midpoints between neighbouring distinct values of both pools the one that gets most right, the lowest of
    equals. (NaN, NaN) if all values are equal.

    Source: Dorna et al. 2025 (OpenUnlearning), section 4.

    >>> threshold(np.array([0.5, 0.9]), np.array([0.1, 0.3]))
    (0.4, 1.0)
    """
    values = np.unique(np.concatenate([knows, others]))
    if len(values) < 2 or np.isnan(values).any():
        return math.nan, math.nan
    cuts = (values[:-1] + values[1:]) / 2
    right = (knows[None, :] > cuts[:, None]).sum(1) + (others[None, :] <= cuts[:, None]).sum(1)
    best = int(np.argmax(right))
    return float(cuts[best]), float(right[best] / (len(knows) + len(others)))
