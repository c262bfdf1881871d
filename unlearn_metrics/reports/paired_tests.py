"""Two runs on the same documents, metric by metric: paired differences with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from unlearn_metrics.documents import Document, Floats, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, available, good, values
from unlearn_metrics.record import RunRecord, Score
from unlearn_metrics.reports import table
from unlearn_metrics.scores import curve, equal_retention, stats
from unlearn_metrics.scores.composites import applicable
from unlearn_metrics.scores.models import Model, Undefined, whole

RESIDUAL = "Residual"  # the facet of what is still there at equal retention
Pairs: TypeAlias = dict[str, list[tuple[Document, Document]]]


@dataclass(frozen=True)
class Run:
    """A run as it is compared: what to call it, of one of its models the scores and documents, by split, and all
    models' documents, which composites may take."""

    label: str
    record: RunRecord
    scores: Mapping[str, Mapping[str, Score]]
    documents: Mapping[str, Sequence[Document]]
    observations: Observations


@dataclass(frozen=True)
class Test:
    """One metric on one split: `run` minus `baseline` over the n documents that both have a value for.

    Or one composite, "" for its split: its difference and interval from joint resamples, without p or effect size. Or,
    with the facet "Residual", a metric at equal `retention` (a share of the original's, or "90 to 100%" for the mean
    over the curve), with the noise of the calibration in its interval. All others take the controlled checkpoints as
    they are: the noise of calibration is not in their intervals.

    scale "log": the metric aggregates geometrically; difference and interval are of logarithms, so exp(difference) is
    the ratio of the two values. clusters: of documents that are drawn, or flipped, together. effect_size: Cohen's d_z
    over them. primary: tested first. p_corrected: see `corrected`; None where it is not tested. least_p: what
    p_corrected could be at least, however large the difference, so few are the clusters.
    """

    baseline: str
    run: str
    facet: str
    split: str
    metric: str
    good: Literal["higher", "lower", "zero", "half"]
    scale: Literal["linear", "log"]
    value_baseline: float | None
    value_run: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    unscored: int
    clusters: int
    effect_size: float | None
    p: float | None
    retention: str = ""
    primary: bool = False
    p_corrected: float | None = None
    least_p: float | None = None

    @property
    def decided(self) -> bool:
        return self.p_corrected is not None and self.p_corrected <= stats.LEVEL

    @property
    def undecidable(self) -> bool:
        return self.least_p is not None and self.least_p > stats.LEVEL

    @property
    def better(self) -> bool:
        return self.difference is not None and self.difference != 0 and (self.difference > 0) == (self.good == "higher")


def direction(run: Run, metric: str, split: str) -> Literal["higher", "lower", "neither"]:
    """Which way is good, also of a metric of lm-eval's tasks."""
    return run.record.ability.get(metric) or good(metric, split)


def held(run: Run, documents: Sequence[Document]) -> list[str]:
    """The metrics that at least one of the documents has, also those of lm-eval's tasks."""
    return [*available(documents), *(m for m in run.record.ability if any(m in d.get("logged", ()) for d in documents))]


# --- at equal retention -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """Two runs at equal retention. tests: the primary metric's first. crossings: retentions at which its curves cross;
    crossed: whether it is established that they do. notes: what limits the comparison."""

    tests: list[Test]
    crossings: list[float]
    crossed: bool
    notes: list[str]


def at_equal_retention(a: Run, b: Run, metrics: Collection[str], seed: int) -> Curves:
    """Paired differences of what is still there at equal retention, by the sums over clusters in the records.

    By the same function and on the same draws as the ranks of a leaderboard, so that the two agree on a pair.

    Args:
        a, b: runs whose records have a measured path; without one, there is a note and no test.
        metrics: those asked for; empty, or with "all" in it: all that both paths have.
        seed: of the draws.
    """
    one, two = a.record.path, b.record.path
    if one is None or two is None:
        which = a.label if one is None else b.label
        why = f"{which} has no measured path, like an older run or one at a given alpha"
        return Curves([], [], False, [f"{why}: controlled checkpoints are compared, whose retention may differ."])
    tests: list[Test] = []
    crossings: list[float] = []
    notes, crossed = [], False
    for run, path in ((a, one), (b, two)):
        if equal_retention.barrier(path):  # no leaderboard ranks it either
            why = f"{run.label} is not on a linear path (retrained or distilled?)"
            return Curves([], [], False, [f"{why}: controlled checkpoints are compared, whose retention may differ."])
    first = _first(a)
    rho = curve.RHO if a.record.control.keep is None else a.record.control.keep
    asked = [m for m in one.forget if m in two.forget and (not metrics or {m, "all"} & {*metrics})]
    for metric in sorted(asked, key=lambda m: m != first):
        reached = curve.common([equal_retention.path_of(path, metric) for path in (one, two)], rho)
        common = math.ceil(reached * 1000 - 1e-6) / 1000 if reached > rho + 1e-6 else rho  # as a leaderboard has it
        try:
            found, clusters = equal_retention.paired([one, two], metric, [rho, common, *curve.GRID], seed)
        except InputError as error:
            return Curves([], [], False, [f"{a.label} and {b.label}: {error}."])
        tests.append(_residual(a, b, metric, f"{rho:.0%}", found[:, 0], clusters, tested=True))
        if (lacking := curve.difference(found[1, 0] - found[0, 0], clusters).why) is not None:
            notes.append(f"residual {metric} at {rho:.0%} retention: {lacking}.")
        if metric == first:  # of the others, one value is enough
            tests.append(_residual(a, b, metric, f"{curve.GRID[0]:.0%} to 100%", found[:, 2:].mean(1), clusters))
            if rho < common < 1:
                tests.append(_residual(a, b, metric, f"{common:.1%}", found[:, 1], clusters))
                notes.append(f"{rho:.0%} retention is beyond alpha 1 for one of them; both reach {common:.1%} before.")
            crossings, crossed = _crossings(found[1, 2:] - found[0, 2:], clusters)
    return Curves(tests, crossings, crossed, notes)


def _residual(a: Run, b: Run, metric: str, retention: str, values: Floats, clusters: int, tested: bool = False) -> Test:
    """values: [2, 1 + draws], of both runs on the same draws. tested: else it is only described."""
    path, difference = a.record.path, values[1] - values[0]
    assert path is not None
    found, better = curve.difference(difference, clusters), direction(a, metric, path.splits[metric])
    return Test(
        baseline=a.label,
        run=b.label,
        facet=RESIDUAL,
        split=path.splits[metric],
        metric=metric,
        good="lower" if better == "neither" else better,
        scale="linear",
        value_baseline=_known(values[0, 0]),
        value_run=_known(values[1, 0]),
        difference=found.value,
        ci_low=found.low,
        ci_high=found.high,
        n=int(sum(path.forget[metric].count[0])),
        unscored=0,
        clusters=clusters,
        effect_size=None,
        p=curve.p_value(difference, clusters) if tested and clusters >= curve.RANKED else None,
        retention=retention,
        primary=tested and metric == _first(a),
    )


def _first(run: Run) -> str:
    """The primary metric of the run's benchmark."""
    return next(iter(run.record.headline.forget), "")


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _crossings(difference: Floats, clusters: int) -> tuple[list[float], bool]:
    known = np.isfinite(difference[:, 0])
    if not known.any() or difference.shape[1] == 1:
        return [], False
    grid = [rho for rho, is_known in zip(curve.GRID, known, strict=True) if is_known]
    signs = {*curve.signs(difference[known], clusters).tolist()}
    return curve.crossings(grid, difference[known]), clusters >= curve.RANKED and {-1, 1} <= signs


# --- on documents -----------------------------------------------------------------------------------------------------


def on_documents(a: Run, b: Run, pairs: Pairs, metrics: Collection[str], seed: int) -> list[Test]:
    """A test of each metric that both have, in the order of the table."""
    names = {}
    for split, both in pairs.items():
        sides = [held(a, [d for d, _ in both]), held(b, [e for _, e in both])]
        if not metrics:  # what was asked for when the runs were made
            sides += [list(run.scores.get(split, ())) for run in (a, b)]
        names[split] = [m for m in sides[0] if all(m in side for side in sides)]
    rows = [
        (facet, split, metric)
        for facet, split, metric in table.rows(names, bool(metrics))
        if (not metrics or {metric, "all"} & {*metrics}) and direction(a, metric, split) != "neither"
    ]
    found: dict[tuple[str, str, str], Test] = {}
    for split, both in pairs.items():
        if of_split := [row for row in rows if row[1] == split]:
            found |= {(t.facet, t.split, t.metric): t for t in _of_split(a, b, both, of_split, seed)}
    return [found[row] for row in rows]


def _of_split(
    a: Run, b: Run, pairs: Sequence[tuple[Document, Document]], rows: Sequence[tuple[str, str, str]], seed: int
) -> list[Test]:
    """One resampling and one set of flips for all metrics of the split."""
    clusters = np.array([d["cluster"] for d, _ in pairs])
    labels, member = np.unique(clusters, return_inverse=True)
    sides = [values([metric for *_, metric in rows], [pair[i] for pair in pairs]) for i in (0, 1)]
    tests, sums = [], []
    for facet, split, metric in rows:
        better, geometric = direction(a, metric, split), metric in METRICS and METRICS[metric].geometric
        assert better != "neither"
        both = np.array([side[metric] for side in sides]).T
        difference = _difference(both, geometric)
        scored = ~np.isnan(difference)
        (score,) = stats.scores(difference[None], clusters, seed, [False])
        counts = np.bincount(member[scored], minlength=len(labels))
        total = np.bincount(member[scored], difference[scored], minlength=len(labels))
        means = [stats.mean(side[scored], geometric) if scored.any() else None for side in both.T]
        sums.append(total)
        tests.append(
            Test(
                baseline=a.label,
                run=b.label,
                facet=facet,
                split=split,
                metric=metric,
                good=better,
                scale="log" if geometric else "linear",
                value_baseline=means[0],
                value_run=means[1],
                difference=score.value,
                ci_low=score.ci_low,
                ci_high=score.ci_high,
                n=int(scored.sum()),
                unscored=int((~scored).sum()),
                clusters=int((counts > 0).sum()),
                effect_size=stats.effect_size(total[counts > 0] / counts[counts > 0]),
                p=None,
            )
        )
    ps = stats.sign_flip(np.array(sums), seed)
    return [replace(t, p=float(p) if t.n else None) for t, p in zip(tests, ps, strict=True)]


def _difference(values: Floats, geometric: bool) -> Floats:
    """[n, 2] -> [n]. What has no finite difference has none (NaN)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (np.log(values) if geometric else values).T
        difference = b - a
    return np.where(np.isfinite(difference), difference, np.nan)


# --- composites -------------------------------------------------------------------------------------------------------


def of_composites(a: Run, b: Run, model: str, metrics: Collection[str], seed: int) -> list[Test]:
    """Composites that both runs have, on the documents that both hold; drawn jointly, since they are the same ones."""
    sides = [{name: whole(splits) for name, splits in run.observations.items()} for run in (a, b)]
    ids = [{split: {d["id"] for d in documents} for split, documents in side[model].items()} for side in sides]
    both = {split: found & ids[1][split] for split, found in ids[0].items() if found & ids[1].get(split, set())}
    models = []
    for run, side in zip((a, b), sides, strict=True):
        held = {
            name: {s: sorted((d for d in splits.get(s, []) if d["id"] in both[s]), key=lambda d: d["id"]) for s in both}
            for name, splits in side.items()
        }
        made = {name: Model(splits, seed) for name, splits in held.items()}
        asked = Model(held[model], seed, made.get("retain_only"), made.get("original"), run.record.benchmark)
        models.append(asked)
    tests = []
    for name, composite, about in applicable(models[0], model == "retain_only"):
        had = all(name in run.record.composites.get(model, {}) for run in (a, b))
        if not (had if not metrics else {name, "all"} & {*metrics}):
            continue
        try:
            mine, theirs = (composite.fn(m) for m in models)
        except (Undefined, ValueError):  # it has no value in one of them; its record says why
            continue
        rows = min(len(mine), len(theirs))
        clusters = models[0].clusters(about)
        low, high = composite.interval((theirs[:rows] - mine[:rows])[1:], clusters)
        tests.append(
            Test(
                baseline=a.label,
                run=b.label,
                facet="Composites",
                split="",
                metric=name,
                good=composite.better,
                scale="linear",
                value_baseline=float(mine[0]),
                value_run=float(theirs[0]),
                difference=float(theirs[0] - mine[0]),
                ci_low=low,
                ci_high=high,
                n=sum(len(both[split]) for split in about),
                unscored=0,
                clusters=clusters,
                effect_size=None,
                p=None,
            )
        )
    return tests


# --- together ---------------------------------------------------------------------------------------------------------


def corrected(tests: Sequence[Test], pairs: int = 1) -> list[Test]:
    """The tests of one pair of runs with p-values corrected for all of the comparison.

    A primary test comes first, with the whole level. The others count only if it is significant, and are corrected by
    Holm among themselves, so that the chance of any false positive is held at the level (serial gatekeeping). Without a
    primary test, all are corrected by Holm. Of several pairs, each gets an equal share of the level (Bonferroni).

    Source: Dmitrienko & Tamhane 2007, "Gatekeeping procedures with clinical trial applications", Pharmaceutical
    Statistics 6(3); Holm 1979.
    """
    primary = next((t for t in tests if t.primary), None)
    gate = 0.0
    if primary is not None:
        gate = math.inf if primary.p is None else primary.p
    others = [i for i, t in enumerate(tests) if t.p is not None and not t.primary]
    known = np.array([tests[i].p for i in others], np.float64)
    holm = stats.holm(known)
    result = list(tests)
    if primary is not None and primary.p is not None:
        p = min(1.0, pairs * primary.p)
        result[tests.index(primary)] = replace(primary, p_corrected=p, least_p=0.0)
    if pairs * gate > stats.LEVEL:
        return result
    for place, i in enumerate(others):
        # what Holm makes of the least p that so few clusters can give; at equal retention p has no least
        least = known.copy()
        floor = 0.0 if tests[i].facet == RESIDUAL else stats.smallest_p(tests[i].clusters)
        least[place] = min(least[place], floor)
        p, best = (min(1.0, pairs * max(gate, float(found[place]))) for found in (holm, stats.holm(least)))
        result[i] = replace(tests[i], p_corrected=p, least_p=best)
    return result
