"""Aggregates over documents and their intervals. Nothing here knows what a metric means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import permutation_test

from unlearn_metrics.types import Floats, Score

RESAMPLES = 2000
PERMUTATIONS = 9999  # up to 13 clusters all sign flips are fewer, and are enumerated
MIN_CLUSTERS = 5  # resampling fewer gives intervals that are far too narrow: better none


def aggregate(values: Floats, weights: Floats, geometric: bool = False) -> Floats:
    """Weighted mean over documents, for each row of weights.

    values: [n], NaN = unscored (in no mean). weights: [resamples, n]. Returns [resamples]; NaN where a row gives
    all its weight to unscored documents. geometric=True gives the geometric mean (perplexities).
    """
    scored = ~np.isnan(values)
    v = values[scored].astype(np.float64)
    w = weights[:, scored].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = w @ (np.log(v) if geometric else v) / w.sum(1)
    return np.exp(means) if geometric else means


def bootstrap_weights(clusters: NDArray[np.integer], seed: int | Sequence[int], resamples: int = RESAMPLES) -> Floats:
    """How often each document is drawn when whole clusters are drawn with replacement.

    clusters: [n] labels; documents with the same label (questions about one author) are drawn together.
    Returns [resamples, n], or [0, n] for fewer than five clusters. One such matrix serves all metrics of a split, so
    that they are resampled jointly.
    """
    labels, inverse = np.unique(clusters, return_inverse=True)
    if len(labels) < MIN_CLUSTERS:
        return np.empty((0, len(clusters)))
    counts = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=resamples)
    return counts[:, inverse].astype(np.float64)


def score(
    values: Floats,
    clusters: NDArray[np.integer],
    weights: Floats,
    geometric: bool = False,
    level: float = 0.95,
) -> Score:
    """Aggregate with a bootstrap interval, see `interval`.

    values: [n], NaN = unscored; clusters: [n]; weights: from bootstrap_weights(clusters), [resamples, n].
    Scored documents in fewer than five clusters: no interval. No scored document: no value.
    """
    scored = ~np.isnan(values)
    n = int(scored.sum())
    unscored = len(values) - n
    if n == 0:
        return Score(None, None, None, 0, unscored)
    value = float(aggregate(values, np.ones((1, len(values))), geometric)[0])
    count = len(np.unique(clusters[scored]))
    if count < MIN_CLUSTERS:
        return Score(value, None, None, n, unscored)
    return Score(value, *interval(aggregate(values, weights, geometric), count, level), n, unscored)


def interval(resampled: Floats, clusters: int, level: float = 0.95) -> tuple[float | None, float | None]:
    """(low, high): the expanded percentile interval of a resampled figure (Hesterberg 2015, arXiv 1411.5279).

    clusters: how many were drawn from; the fewest, where the figure is of several splits. A resample of k clusters
    varies too little, by k / (k - 1), and knows its own spread as badly as Student's t says; the percentiles taken are
    as far out as makes up for both. NaN (a resample of unscored documents) is left out. (None, None) if none is left.
    """
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return None, None
    tail = ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 - level) / 2))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def sign_flip(sums: Floats, seed: int) -> Floats:
    """Two-sided p of every row under sign flips of whole clusters: are two models exchangeable within a cluster?

    sums: [tests, clusters], paired differences summed over each cluster; a cluster without any is 0. The statistic is
    the sum of a row. All 2^clusters flips if they are at most PERMUTATIONS, else that many drawn at random and the
    observed one (Phipson & Smyth 2010). Returns [tests].
    """
    if sums.shape[1] < 2:
        return np.ones(len(sums))
    result = permutation_test(
        (sums,),
        lambda flipped, axis: flipped.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, 10_000_000 // sums.size),
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(result.pvalue)


def smallest_p(clusters: int) -> float:
    """What `sign_flip` gives at least, however large the difference."""
    return max(2.0 ** (1 - clusters), 2 / (PERMUTATIONS + 1))


def holm(p: Floats) -> Floats:
    """p-values adjusted so that the chance of any false positive among them is held (Holm 1979). [tests] -> [tests]."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def effect_size(means: Floats) -> float | None:
    """Cohen's d_z of paired differences: mean / standard deviation of the clusters' mean differences, [clusters].

    None where it is not defined: fewer than two clusters, or no deviation.
    """
    deviation = means.std(ddof=1) if len(means) > 1 else 0.0
    return float(means.mean() / deviation) if deviation > 0 else None
