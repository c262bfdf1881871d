"""What is left of the forget set at equal retention: a curve along the path from the original to the unlearned model.

A path is measured at some strengths alpha, 0 (the original) first. Of each it keeps sums over clusters of documents, a
few hundred numbers, from which everything here follows. `residual` gives f(rho), what is left where the path first
falls to the retention rho. All functions work on many resamplings at once: column 0 is the data as they are, the others
redraw the clusters of retain and forget. So any arithmetic on such arrays (differences of models, means over rho,
shares of a floor) is done once, and `estimate` turns the result into a value with a joint interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from unlearn_metrics.documents import Floats
from unlearn_metrics.record import Estimate
from unlearn_metrics.scores import stats
from unlearn_metrics.wording import counted

RHO = 0.95  # the headline's retention
TIE = 1e-9  # of retention: sums differ in their last bits between processors
GRID = tuple(round(0.90 + step / 100, 2) for step in range(11))  # retentions of the curve, and of its mean
BLOCK = 500  # draws of all pairs of rows at once, so that they stay in the processor's cache
DRAWS = 20_000  # of cluster sums, which cost nothing: the ends of an interval at ten clusters rest on 1 % of them
RANKED = 6  # clusters, at least: with five, all of them in favour of one model is a chance of 1 in 16
COARSE, TOP, FINEST = 8, 1.5, 1 / 1024  # steps of the scan in [0, 1]; the last alpha; the smallest step
STEP, POINTS = 0.02, 16  # retention between neighbours on the curve; evaluations at most
MARGIN = 0.1  # of retention, that redrawn data may have more: so far below the curve the path is followed beyond 1
BARRIER = 0.1  # by how much less is retained half-way than at both ends


@dataclass(frozen=True)
class Sums:
    """One metric of one split. labels: of the clusters. total, count: [alphas, clusters], over scored documents."""

    labels: tuple[Any, ...]
    total: Floats
    count: Floats


@dataclass(frozen=True)
class Path:
    """Measured points of a path. alphas: ascending, 0 first. forget: metric -> its sums. One order of clusters each."""

    alphas: Sequence[float]
    retain: Sums
    forget: Mapping[str, Sums]

    @property
    def clusters(self) -> int:
        """The fewest that are drawn from: what the width of an interval is about."""
        return min(len(sums.labels) for sums in (self.retain, *self.forget.values()))


@dataclass(frozen=True)
class Weights:
    """How often each cluster is drawn: [1 + draws, clusters] of either split. Row 0: once each, the data themselves."""

    retain: NDArray[np.uint8]
    forget: NDArray[np.uint8]


def sums(values: Floats, clusters: Sequence[Any]) -> Sums:
    """Sums over clusters.

    Args:
        values: of every document at every alpha, [alphas, n]; NaN = unscored, which is in no sum.
        clusters: the label of each document, [n].

    Returns:
        Sums with the labels in ascending order.
    """
    labels, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    scored = ~np.isnan(values)
    total, count = (
        np.array([np.bincount(inverse, row, len(labels)) for row in rows])
        for rows in (np.where(scored, values, 0.0), scored)
    )
    return Sums(tuple(labels.tolist()), total, count)


def draw(path: Path, seed: int, draws: int = DRAWS) -> Weights:
    """Redraw the clusters of retain and, independently, those of forget.

    Args:
        path: its numbers of clusters alone decide, so that two models on the same data are compared on the same draws.
        seed: of the draws.
        draws: how many.

    Returns:
        Weights, row 0 the data themselves. Nothing but row 0 for fewer than five clusters of either split.
    """
    retain, forget = len(path.retain.labels), len(next(iter(path.forget.values())).labels)
    draws = draws if path.clusters >= stats.MIN_CLUSTERS else 0
    parts = [stats.draws(k, (seed, split), max(1, draws))[:draws] for split, k in enumerate((retain, forget))]
    return Weights(*(np.concatenate([np.ones((1, part.shape[1]), np.uint8), part]) for part in parts))


def means(of: Sums, weights: NDArray[np.uint8]) -> Floats:
    """Mean over documents at every alpha in every resampling.

    Args:
        of: sums, [alphas, clusters].
        weights: of its split, [1 + draws, clusters].

    Returns:
        [alphas, 1 + draws]; NaN where no document is scored.
    """
    drawn = weights.T.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (of.total @ drawn) / (of.count @ drawn)


def retention(path: Path, weights: Weights) -> Floats:
    """What is retained at every alpha, as a share of what the original retains on the same documents.

    Returns:
        [alphas, 1 + draws], 1 in row 0; NaN where the original retains nothing, which has no shares.
    """
    found = means(path.retain, weights.retain)
    with np.errstate(divide="ignore", invalid="ignore"):
        return found / np.where(found[:1] > 0, found[:1], np.nan)  # an original that retains nothing: unknown


def along(values: Floats, retained: Floats, rho: Sequence[float]) -> Floats:
    """Values where retention first falls below rho, coming from the original, interpolated between its neighbours.

    With a the first alpha below rho and b the one before, v = v(b) + (r(b) - rho) / (r(b) - r(a)) * (v(a) - v(b)).

    Args:
        values: [alphas, columns] or [alphas, 1].
        retained: as a share of the original's, [alphas, columns].
        rho: shares, in (0, 1].

    Returns:
        [retentions, columns]; NaN where retention does not fall so far, or is unknown on the way.

    Raises:
        ValueError: a rho is not in (0, 1].
    """
    if outside := [at for at in rho if not 0 < at <= 1]:
        raise ValueError(f"a retention of {outside[0]:g} is not between 0 and the original's, 1")
    values = np.broadcast_to(values, retained.shape)
    at = np.array(rho, np.float64)[:, None]
    below = ~(retained >= at[:, None] - TIE)  # [retentions, alphas, columns]; so that the walk also ends at the unknown
    first = below.argmax(1)
    columns = np.arange(retained.shape[1])
    before = np.maximum(first - 1, 0)
    r_before, r_first = retained[before, columns], retained[first, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.maximum(0, (r_before - at) / (r_before - r_first))
        found = (1 - share) * values[before, columns] + share * values[first, columns]
    return np.where(below.any(1) & (first > 0), found, np.nan)


def residual(path: Path, metric: str, weights: Weights, rho: Sequence[float] = (RHO,)) -> Floats:
    """f(rho): what is left of the forget set by a metric, at every retention of rho. See `along`.

    Returns:
        [retentions, 1 + draws], NaN where a retention is not reached.
    """
    return along(means(path.forget[metric], weights.forget), retention(path, weights), rho)


def strength(path: Path, weights: Weights, rho: Sequence[float] = (RHO,)) -> Floats:
    """The alphas at which retention is rho, [retentions, 1 + draws], NaN where it is not reached. Above 1 it is
    extrapolated."""
    return along(np.array(path.alphas, np.float64)[:, None], retention(path, weights), rho)


def above_floor(left: Floats, path: Path, metric: str, retain_only: Sums, weights: Weights) -> Floats:
    """(f - f_retain_only) / (f_original - f_retain_only): 0 = as if never trained on it, 1 = nothing forgotten.

    Args:
        left: f, [..., 1 + draws].
        path: whose alpha 0 is the original.
        metric: that f is of.
        retain_only: its sums for a model that never saw the forget set, [1, clusters].
        weights: the draws that f is on.

    Returns:
        As left; NaN where the original does not exceed the floor.
    """
    floor, full = means(retain_only, weights.forget)[0], means(path.forget[metric], weights.forget)[0]
    room = np.where(full > floor, full - floor, np.nan)
    return (left - floor) / room


def estimate(resampled: Floats, clusters: int, level: float = 0.95) -> Estimate:
    """A value with its interval: expanded percentiles of its draws (stats.interval).

    Args:
        resampled: [1 + draws], NaN where it is not reached. Such draws may lie on either side, so they count against
            both ends; an end that rests on them is not known.
        clusters: the fewest that are drawn from.
        level: of confidence.
    """
    value, drawn = float(resampled[0]), resampled[1:]
    if not math.isfinite(value):
        return Estimate(None, why="retention does not fall so far on the measured path, or is unknown")
    if not len(drawn):
        return Estimate(value, why=f"no interval from {counted(clusters, 'cluster')}; it needs {stats.MIN_CLUSTERS}")
    unknown = np.isnan(drawn)
    with np.errstate(invalid="ignore"):  # between two infinities
        if unknown.any():
            low, _ = stats.interval(np.where(unknown, -np.inf, drawn), clusters, level)
            _, high = stats.interval(np.where(unknown, np.inf, drawn), clusters, level)
        else:
            low, high = stats.interval(drawn, clusters, level)
    if low is None or high is None:
        return Estimate(value, why=f"in {unknown.mean():.0%} of the draws retention does not fall so far")
    return Estimate(value, low, high)


def difference(resampled: Floats, clusters: int, level: float = 0.95) -> Estimate:
    """A difference of two values on the same draws, with an interval from their deviation and Student's t.

    Unlike a single value it has no end of a range to respect; so interval, p-value and ranks are of one kind, and
    agree.

    Args:
        resampled: [1 + draws], as for `estimate`, which also decides whether there is an interval.
        clusters: the fewest that are drawn from.
        level: of confidence.
    """
    found = estimate(resampled, clusters, level)
    if found.value is None or found.low is None:
        return found
    reach = float(-stdtrit(clusters - 1, (1 - level) / 2)) * _deviation(resampled, clusters)
    return Estimate(found.value, found.value - reach, found.value + reach)


def p_value(resampled: Floats, clusters: int) -> float | None:
    """Two-sided p that the difference is 0: 1 - level of the widest interval of `difference` that leaves 0 out.

    None where there is no interval.
    """
    if estimate(resampled, clusters).low is None:
        return None
    deviation = _deviation(resampled, clusters)
    if deviation == 0:
        return float(resampled[0] == 0)
    return float(2 * stdtr(clusters - 1, -abs(resampled[0]) / deviation))


def _deviation(resampled: Floats, clusters: int) -> float:
    """Standard error of a value: its draws vary too little, by k / (k - 1)."""
    return float(np.nanstd(resampled[1:])) * math.sqrt(clusters / (clusters - 1))


def barrier(alphas: Sequence[float], retained: Sequence[float]) -> bool:
    """Whether far less is retained half-way (alpha 1/2) than at both ends: the models are not on a linear path."""
    known = dict(zip(alphas, retained, strict=True))
    return known[0.5] < min(known[0.0], known[1.0]) - BARRIER


def propose(seen: Mapping[float, float], low: float = GRID[0], top: float = TOP) -> list[float]:
    """The alphas to evaluate next; none when retention is resolved.

    First the scan, in steps of 1/8 up to 1, and on to top until retention is MARGIN below low. Then the step of the
    walk from 0 in which retention falls furthest, within [low, 1], is halved, until each falls by at most STEP or is no
    longer than FINEST.

    Args:
        seen: alpha -> retention as a share of the original's, of what is evaluated; 0: 1.0.
        low: the least retention of interest.
        top: the largest alpha.
    """
    scan = [step / COARSE for step in range(1, COARSE + 1)]
    if missing := [alpha for alpha in scan if alpha not in seen]:
        return missing
    walk = sorted(seen)
    end = next((i for i, alpha in enumerate(walk) if not seen[alpha] >= low), None)
    if walk[-1] < top and min(seen.values()) >= low - MARGIN:
        return [walk[-1] + 1 / COARSE]
    walk = walk[: len(walk) if end is None else end + 1]
    within = np.clip([seen[alpha] for alpha in walk], low, 1)
    steps = np.diff(walk)
    falls = np.where(steps > FINEST, np.abs(np.diff(within)), 0)
    if not len(falls) or not falls.max() > STEP or len(seen) > POINTS:
        return []
    widest = int(falls.argmax())
    return [float(walk[widest] + steps[widest] / 2)]


def ranks(rows: Floats, clusters: int, level: float = 0.95) -> list[tuple[int, int] | None]:
    """The ranks (best, worst) that each row can have, 1 = least; all of them hold together with this confidence.

    Best: 1 + how many rows are significantly less; worst: how many are not significantly more. The differences of all
    pairs are tested together: what the largest of them reaches, in units of its deviation, in 5 % of the draws.

    Args:
        rows: values on the same draws, [rows, 1 + draws].
        clusters: the fewest that are drawn from.
        level: of confidence.

    Returns:
        None for a row without an interval, which is not counted; for all rows with fewer than RANKED clusters.

    Source: Mogstad, Romano, Shaikh & Wilhelm 2024, "Inference for Ranks", Review of Economic Studies 91(1).
    """
    from scipy.spatial.distance import pdist, squareform  # 0.1 s, which records alone need not wait

    found: list[tuple[int, int] | None] = [None] * len(rows)
    ranked = [i for i, row in enumerate(rows) if estimate(row, clusters).low is not None]
    if clusters < RANKED or not ranked:
        return found
    values, drawn = rows[ranked, 0], rows[ranked, 1:]
    if not (drawn := _known(drawn)).size:
        return found
    drawn = drawn - drawn.mean(1, keepdims=True)
    deviations = squareform(pdist(drawn)) / math.sqrt(drawn.shape[1])  # of all pairs
    steady = np.where(deviations > 0, deviations, np.inf)  # what never moves is no test
    largest = np.concatenate(
        [
            np.max(
                [(np.abs(row - block[:i]) / steady[i, :i, None]).max(0, initial=0) for i, row in enumerate(block)], 0
            )
            for block in np.array_split(drawn, math.ceil(drawn.shape[1] / BLOCK), axis=1)
        ]
    )
    pairs = len(ranked) * (len(ranked) - 1) // 2
    less = values[:, None] - values < -threshold(largest, pairs, clusters, level) * deviations
    for i, row in enumerate(ranked):
        found[row] = 1 + int(less[:, i].sum()), len(ranked) - int(less[i].sum())
    return found


def _known(drawn: Floats) -> Floats:
    """The draws in which all rows are known; none, if those are less than half of all."""
    known = ~np.isnan(drawn).any(0)
    return np.compress(known & (2 * known.sum() >= known.size), drawn, 1)  # a row stays in one piece


def threshold(largest: Floats, values: int, clusters: int, level: float = 0.95) -> float:
    """How many deviations from 0 values that are tested together must be.

    Args:
        largest: of the values' distances from their means, each in units of its deviation, the largest, [draws]. Its
            quantile gives how many independent tests they are worth (at least one, at most as many as they are);
            Student's t, how far out each must then be. One value is tested as by `p_value`.
        values: how many.
        clusters: the fewest that are drawn from.
        level: of confidence.
    """
    alone = (1 - level) / 2
    tail = min(max(float(ndtr(-np.quantile(largest, level))), alone / max(1, values)), alone)
    return float(-stdtrit(clusters - 1, tail) * math.sqrt(clusters / (clusters - 1)))


def signs(values: Floats, clusters: int, level: float = 0.95) -> NDArray[np.intp]:
    """1, -1, or 0 where it is not established, of values tested together: [values, 1 + draws] -> [values]."""
    if not (drawn := _known(values[:, 1:])).size:
        return np.zeros(len(values), np.intp)
    deviation = drawn.std(1)
    moving = deviation > 0
    distance = np.abs(drawn - drawn.mean(1, keepdims=True))[moving] / deviation[moving, None]
    limit = threshold(distance.max(0, initial=0), int(moving.sum()), clusters, level) * deviation
    return np.sign(values[:, 0]).astype(np.intp) * (np.abs(values[:, 0]) > limit)


def crossings(rho: Sequence[float], difference: Floats) -> list[float]:
    """The retentions at which the curves of two models cross, by their difference as it is: [rho, 1 + draws].

    That they do cross is established where `signs` of the difference has both signs.
    """
    d = difference[:, 0]
    ends: list[int] = np.flatnonzero(np.abs(d) > 0).tolist()
    pairs = [(i, j) for i, j in pairwise(ends) if d[i] * d[j] < 0]
    return [float(rho[i] + (rho[j] - rho[i]) * d[i] / (d[i] - d[j])) for i, j in pairs]


def common(paths: Sequence[Path], rho: float = RHO) -> float:
    """The highest retention at which all can be compared without extrapolation: rho, or what one retains at alpha 1."""
    ones = np.ones((1, 1), np.uint8)
    lowest = [rho]
    for path in paths:
        weights = Weights(np.repeat(ones, len(path.retain.labels), 1), ones)
        within = np.array(path.alphas) <= 1
        lowest.append(float(retention(path, weights)[within, 0].min()))
    return max(lowest)
