"""Do two readings of the same models agree, in size and in order? Correlations whose intervals redraw models."""

from __future__ import annotations

import numpy as np

from unlearn_metrics.documents import Floats
from unlearn_metrics.record import Estimate
from unlearn_metrics.scores import stats
from unlearn_metrics.wording import counted

FEWEST = 8  # models, for an interval


def pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's correlation of two values of n models, [n] each, under weights, [resamples, n]: [resamples].

    NaN where one of them does not vary.
    """
    w = weights / weights.sum(1, keepdims=True)
    a, b = x - (w @ x)[:, None], y - (w @ y)[:, None]
    size = np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1))
    least = 1e-12 * float(np.ptp(x)) * float(np.ptp(y))  # rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((size > least) & (least > 0), (w * a * b).sum(1) / size, np.nan)


def kendall(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Kendall's tau-b of two values of n models, as `pearson`: 1 = the same order, -1 = the reverse, ties left out.

    Two draws of one model are no pair: they tie in both, and such pairs count nowhere.
    """
    orders = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]

    def pairs(of: Floats) -> Floats:
        return np.asarray(((weights @ of) * weights).sum(1))

    size = np.sqrt(pairs(orders[0] ** 2) * pairs(orders[1] ** 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, pairs(orders[0] * orders[1]) / size, np.nan)


MEASURES = {"pearson": pearson, "kendall": kendall}


def agreement(x: Floats, y: Floats, measure: str, seed: int) -> Estimate:
    """The correlation of two values of the same models, with its 95 % interval from resampled models.

    Args:
        x, y: [n] values; models of which one is NaN are left out.
        measure: "pearson" or "kendall".
        seed: of resampling.

    Returns:
        `why` says why there is no value, or no interval.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 2:
        return Estimate(None, why=counted(len(x), "model has both values", "models have both values"))
    fn = MEASURES[measure]
    value = float(fn(x, y, np.ones((1, len(x))))[0])
    if np.isnan(value):
        return Estimate(None, why="a value is the same for all models")
    if len(x) < FEWEST:
        return Estimate(value, why=f"too few models for an interval: {len(x)}")
    if abs(value) > 1 - 1e-12:
        return Estimate(value, why="all models lie alike, so that resamples do not vary")
    low, high = stats.interval(fn(x, y, stats.bootstrap_weights(np.arange(len(x)), seed)), len(x))
    return Estimate(value, low, high)
