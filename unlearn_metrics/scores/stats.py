"""Aggregates over documents and their intervals. A metric is a column of values here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from unlearn_metrics.documents import Floats
from unlearn_metrics.record import Score

RESAMPLES = 2000
PERMUTATIONS = 9999  # up to 13 clusters all sign flips are fewer, and are enumerated
LEVEL = 0.05  # of tests
BLOCK = 4_000_000  # draws that are multiplied at once: 32 MB
MIN_CLUSTERS = 5  # resampling fewer gives intervals that are far too narrow: better none


def mean(values: Floats, geometric: bool = False) -> float:
    """Mean, or geometric mean, of values, [n]; NaN for none."""
    if not len(values):
        return math.nan
    return float(np.exp(np.log(values).mean()) if geometric else values.mean())


@lru_cache(maxsize=16)  # of one benchmark's splits: the models of a run are drawn alike
def draws(clusters: int, seed: int | tuple[int, ...], resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each cluster is drawn: [resamples, clusters], or [0, clusters] for fewer than five clusters."""
    if clusters < MIN_CLUSTERS:
        return np.empty((0, clusters), np.uint8)
    rng, share = np.random.default_rng(seed), np.full(clusters, 1 / clusters)
    # a row at a time, since 100,000 clusters in 8 bytes are gigabytes; one cluster 256 times has a chance of 1e-500
    return np.array([rng.multinomial(clusters, share).astype(np.uint8) for _ in range(resamples)])


def bootstrap_weights(clusters: NDArray[np.integer], seed: int | tuple[int, ...], resamples: int = RESAMPLES) -> Floats:
    """How often each document is drawn when whole clusters are drawn with replacement.

    clusters: [n] labels; documents with the same label (questions about one author) are drawn together.
    Returns [resamples, n], or [0, n] for fewer than five clusters. The draws are those of `resampled_means`.
    """
    labels, inverse = np.unique(clusters, return_inverse=True)
    return draws(len(labels), seed, resamples)[:, inverse].astype(np.float64)


def resampled_means(
    values: Floats, clusters: NDArray[np.integer], seed: int | tuple[int, ...], resamples: int = RESAMPLES
) -> Floats:
    """Means of several metrics under one resampling of whole clusters: [metrics, resamples].

    values: [metrics, n], NaN = unscored (in no mean). NaN where all documents drawn are unscored.
    """
    labels, inverse = np.unique(clusters, return_inverse=True)
    scored = ~np.isnan(values)
    columns = [*np.where(scored, values, 0), *scored]
    of_clusters = np.array([np.bincount(inverse, column, len(labels)) for column in columns])
    of_clusters = of_clusters.reshape(len(columns), len(labels))
    drawn = draws(len(labels), seed, resamples)
    blocks = np.array_split(drawn, math.ceil(drawn.size / BLOCK) or 1)
    sums = np.hstack([of_clusters @ block.T.astype(np.float64) for block in blocks])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(*np.vsplit(sums, 2))


def scores(
    values: Floats, clusters: NDArray[np.integer], seed: int | tuple[int, ...], geometric: Sequence[bool]
) -> list[Score]:
    """A Score of every metric under one resampling: its aggregate with a bootstrap interval, see `interval`.

    values: [metrics, n], NaN = unscored; clusters: [n]; geometric: which are aggregated by the geometric mean
    (perplexities). Scored documents in fewer than five clusters: no interval. No scored document: no value.
    """
    logs = np.array([np.log(row) if g else row for row, g in zip(values, geometric, strict=True)])
    resampled = resampled_means(logs, clusters, seed)
    return [
        _score(row, clusters, np.exp(means) if g else means, g)
        for row, means, g in zip(values, resampled, geometric, strict=True)
    ]


def _score(values: Floats, clusters: NDArray[np.integer], resampled: Floats, geometric: bool) -> Score:
    scored = ~np.isnan(values)
    n, unscored = int(scored.sum()), int((~scored).sum())
    value = mean(values[scored], geometric)
    if not math.isfinite(value):
        return Score(None, None, None, n, unscored)
    count = len(np.unique(clusters[scored]))
    ends = interval(resampled, count) if count >= MIN_CLUSTERS else (None, None)
    return Score(value, *ends, n, unscored)


def interval(resampled: Floats, clusters: int, level: float = 0.95) -> tuple[float | None, float | None]:
    """(low, high): the expanded percentile interval of a resampled value (Hesterberg 2015, arXiv 1411.5279).

    clusters: how many were drawn from; the fewest, where the value is of several splits. Resamples of k clusters vary
    too little, by k / (k - 1), and estimate the spread with the error that Student's t describes; the percentiles lie
    further out by as much as makes up for both. NaN (a resample of unscored documents) is left out. (None, None) if
    none is left.
    """
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return None, None
    tail = ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 - level) / 2))
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return (low, high) if math.isfinite(high - low) else (None, None)


def sign_flip(sums: Floats, seed: int) -> Floats:
    """Two-sided p of every row under sign flips of whole clusters: are two models exchangeable within a cluster?

    sums: [tests, clusters], paired differences summed over each cluster; a cluster without any is 0. The statistic is
    the sum of a row. All 2^clusters flips if they are at most PERMUTATIONS, else that many drawn at random and the
    observed one (Phipson & Smyth 2010). Returns [tests].
    """
    if sums.shape[1] < 2:
        return np.ones(len(sums))
    from scipy.stats import permutation_test  # half a second, which records alone need not wait

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
