"""Aggregates over documents and their intervals. Nothing here knows what a metric means."""

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
MIN_CLUSTERS = 5  # resampling fewer gives intervals that are far too narrow: better none


def mean(values: Floats, geometric: bool = False) -> float:
    """Mean, or geometric mean, of values, [n]; NaN for none. Summed exactly, so the same in any order."""
    if not len(values):
        return math.nan
    known = values.astype(np.float64)
    average = math.fsum((np.log(known) if geometric else known).tolist()) / len(known)
    return float(np.exp(average)) if geometric else average


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
    return draws(len(labels), seed, resamples)[:, inverse].astype(np.float64)


def draws(clusters: int, seed: int | Sequence[int], resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each cluster is drawn: [resamples, clusters], or [0, clusters] for fewer than five clusters."""
    return _draws(clusters, seed if isinstance(seed, int) else tuple(seed), resamples)


@lru_cache(maxsize=16)  # of one benchmark's splits: the models of a run are drawn alike
def _draws(clusters: int, seed: int | tuple[int, ...], resamples: int) -> NDArray[np.uint8]:
    if clusters < MIN_CLUSTERS:
        return np.empty((0, clusters), np.uint8)
    rng, share = np.random.default_rng(seed), np.full(clusters, 1 / clusters)
    # in blocks, since 100,000 clusters in 8 bytes are gigabytes; one cluster 256 times has a chance of 1e-500
    blocks = [rng.multinomial(clusters, share, rows).astype(np.uint8) for rows in _blocks(resamples, clusters)]
    return np.concatenate(blocks)


def _blocks(rows: int, columns: int) -> list[int]:
    """How many rows at a time, so that 32 MB hold them."""
    step = max(1, 4_000_000 // max(1, columns))
    return [min(step, rows - start) for start in range(0, rows, step)]


def resampled_means(
    values: Floats, clusters: NDArray[np.integer], seed: int | Sequence[int], resamples: int = RESAMPLES
) -> Floats:
    """Means of several figures under one resampling: `aggregate` with `bootstrap_weights`, on sums over clusters.

    values: [figures, n], NaN = unscored. Returns [figures, resamples], NaN where a resample has no scored document.
    The same to the last bit on any number of threads: sums are rounded to multiples of a power of two (a relative error
    of 1e-12 or so) that any order of adding them up represents exactly.
    """
    labels, inverse = np.unique(clusters, return_inverse=True)
    drawn = draws(len(labels), seed, resamples)

    scored = ~np.isnan(values)
    sums, counted = (
        np.array([np.bincount(inverse, row, len(labels)) for row in rows]).reshape(len(values), len(labels)).T
        for rows in (np.where(scored, values, 0), scored)
    )
    means = [np.empty((0, len(values)))]
    with np.errstate(divide="ignore", invalid="ignore"):
        step = 2.0 ** (np.ceil(np.log2(np.abs(sums).max(0, initial=0) * len(labels))) - 52)
        sums = np.where(np.isfinite(step) & (step > 0), np.rint(sums / step) * step, sums)
        both = np.hstack([sums, counted])
        for block in np.split(drawn, np.cumsum(_blocks(len(drawn), len(labels)))):
            above, below = np.hsplit(block.astype(np.float64) @ both, 2)
            means.append(above / below)
    return np.concatenate(means).T


def scores(
    values: Floats, clusters: NDArray[np.integer], seed: int | Sequence[int], geometric: Sequence[bool]
) -> list[Score]:
    """A Score of every figure, [figures, n], under one resampling. See `score`."""
    logs = np.array([np.log(row) if g else row for row, g in zip(values, geometric, strict=True)])
    resampled = resampled_means(logs, clusters, seed)
    return [
        _score(row, clusters, np.exp(means) if g else means, g, 0.95)
        for row, means, g in zip(values, resampled, geometric, strict=True)
    ]


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
    return _score(values, clusters, aggregate(values, weights, geometric), geometric, level)


def _score(values: Floats, clusters: NDArray[np.integer], resampled: Floats, geometric: bool, level: float) -> Score:
    scored = ~np.isnan(values)
    n = int(scored.sum())
    unscored = len(values) - n
    if n == 0:
        return Score(None, None, None, 0, unscored)
    value = mean(values[scored], geometric)
    if not math.isfinite(value):
        return Score(None, None, None, n, unscored)
    count = len(np.unique(clusters[scored]))
    if count < MIN_CLUSTERS:
        return Score(value, None, None, n, unscored)
    return Score(value, *interval(resampled, count, level), n, unscored)


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
