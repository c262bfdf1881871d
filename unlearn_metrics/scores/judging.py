"""A metric judged by models of which it is known what they know: faithfulness, stability under attacks, and both.

Every interval redraws models within their pools; that of an AUC is the score interval, see `faithfulness`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unlearn_metrics.documents import Floats
from unlearn_metrics.metrics.privacy import weighted_aucs
from unlearn_metrics.record import Estimate
from unlearn_metrics.scores import faithfulness, stability, stats
from unlearn_metrics.scores.agreement import agreement
from unlearn_metrics.scores.models import harmonic

RELEARN = "relearn"  # attacks of this name, or whose name begins with it, are compared with the retain-only model
FEWEST = 2  # models of a pool


@dataclass(frozen=True)
class Readings:
    """What one metric says of every model, as it is; NaN: it has no value.

    Attributes:
        sign: 1 if higher means more knowledge, else -1.
        knows, others: [k], [m], of models with and without the knowledge.
        unlearned: [u], before any attack. useful: [u], whether the model keeps enough to be counted.
        attacked: attack -> [u], the same models after it.
        retain_only: "before" and attacks -> the retain-only model's value.
        controlled: [u], the same models under control, where these are the values as published.
    """

    sign: int
    knows: Floats
    others: Floats
    unlearned: Floats = field(default_factory=lambda: np.empty(0))
    useful: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    attacked: Mapping[str, Floats] = field(default_factory=dict)
    retain_only: Mapping[str, float] = field(default_factory=dict)
    controlled: Floats | None = None


@dataclass(frozen=True)
class Judgement:
    """What a metric is worth. n: models with a value, of those that know, that do not, and unlearned ones counted.

    Attributes:
        faithfulness: AUC of the models with the knowledge against those without.
        threshold: above it (below it, where low values mean knowledge) a model is said to know. right: the share of
            models of which that is true.
        stability: attack -> mean of r (relearning) or q (any other) over the unlearned models that count.
        symmetric: attack -> the same in the form that counts rises and falls alike.
        robustness: harmonic mean of `stability`. overall: of that and faithfulness.
        robustness_symmetric, overall_symmetric: the same of `symmetric`.
        order: what is compared with the values as published ("under control", attacks) -> Kendall's tau of the
            unlearned models' order.
    """

    n: tuple[int, int, int]
    faithfulness: Estimate
    threshold: Estimate
    right: float | None
    stability: dict[str, Estimate]
    symmetric: dict[str, Estimate]
    robustness: Estimate
    overall: Estimate
    robustness_symmetric: Estimate
    overall_symmetric: Estimate
    order: dict[str, Estimate]


def judge(readings: Readings, seed: int = 0) -> Judgement:
    """A metric judged by all that is known of the models; what cannot be said is None, with the reason."""
    sign = readings.sign
    knows, others = (sign * values[~np.isnan(values)] for values in (readings.knows, readings.others))
    k, m = len(knows), len(others)
    order = {
        name: agreement(sign * readings.unlearned, sign * values, "kendall", seed)
        for name, values in (
            *(() if readings.controlled is None else (("under control", readings.controlled),)),
            *readings.attacked.items(),
        )
    }
    if min(k, m) < FEWEST:
        none = Estimate(
            None, why=f"of models that know {k} have a value, of those that do not {m}; it takes {FEWEST} of each"
        )
        empty = dict.fromkeys(readings.attacked, none)
        return Judgement((k, m, 0), none, none, None, empty, empty, none, none, none, none, order)
    of_knows, of_others = _draws(k, (seed, 0)), _draws(m, (seed, 1))
    rows = min(len(of_knows), len(of_others))
    of_knows, of_others = of_knows[:rows], of_others[:rows]
    aucs = weighted_aucs(others, knows, of_others, of_knows)
    cuts = _cuts(knows, others, of_knows, of_others)
    cut, right = faithfulness.threshold(knows, others)
    area = Estimate(float(aucs[0]), *faithfulness.score_interval(float(aucs[0]), k, m))
    counted = _counted(readings, cuts, seed)
    models = int((counted[0] > 0).sum())
    stable: dict[str, Floats] = {}
    symmetric: dict[str, Floats] = {}
    for attack, after in readings.attacked.items():
        ratios, both = _ratios(readings, attack, after)
        stable[attack], symmetric[attack] = _means(ratios, counted), _means(both, counted)
    few = min(k, m, models or k)
    why = "no attack" if not readings.attacked else "no unlearned model is counted"

    def estimate(values: Floats | None) -> Estimate:
        if values is None or math.isnan(values[0]):
            return Estimate(None, why=why)
        if few < stats.MIN_CLUSTERS:
            return Estimate(float(values[0]), why=f"too few models for an interval: {few}")
        low, high = stats.interval(values[1:], few)
        if low == high:
            return Estimate(float(values[0]), why="it is the same for all models, so that resamples do not vary")
        return Estimate(float(values[0]), low, high)

    def joined(parts: Sequence[Floats]) -> Floats | None:
        return harmonic(*(p[: min(map(len, parts))] for p in parts)) if parts else None

    area_drawn = np.append(aucs[:1], faithfulness.truths(float(aucs[0]), k, m, _deviations(len(aucs) - 1, seed)))
    robust, robust_symmetric = joined([*stable.values()]), joined([*symmetric.values()])
    return Judgement(
        (k, m, models),
        area,
        Estimate(None, why="all values are equal") if math.isnan(cut) else estimate(sign * cuts),
        None if math.isnan(right) else right,
        {attack: estimate(values) for attack, values in stable.items()},
        {attack: estimate(values) for attack, values in symmetric.items()},
        estimate(robust),
        estimate(None if robust is None else joined([robust, area_drawn])),
        estimate(robust_symmetric),
        estimate(None if robust_symmetric is None else joined([robust_symmetric, area_drawn])),
        order,
    )


def _draws(models: int, seed: tuple[int, ...]) -> Floats:
    """[1 + resamples, models]: every model once, then how often each is drawn."""
    return np.vstack([np.ones(models), stats.bootstrap_weights(np.arange(models), seed)])


def _deviations(count: int, seed: int) -> Floats:
    """Standard normal: how far a draw of faithfulness is off. Resampled pools that are told apart never vary."""
    return np.random.default_rng((seed, 3)).normal(size=count)


def _cuts(knows: Floats, others: Floats, of_knows: Floats, of_others: Floats) -> Floats:
    """[draws] thresholds, see `faithfulness.threshold`, each of the models that are drawn."""
    pooled = np.concatenate([knows, others])
    values = np.unique(pooled)
    if len(values) < 2:
        return np.full(len(of_knows), np.nan)
    cuts = (values[:-1] + values[1:]) / 2
    right = of_knows @ (knows[:, None] > cuts).astype(float) + of_others @ (others[:, None] <= cuts).astype(float)
    drawn = np.hstack([of_knows, of_others]) @ (pooled[:, None] == values).astype(float) > 0
    below = np.maximum.accumulate(np.where(drawn, values, -np.inf), axis=1)[:, :-1]
    above = np.minimum.accumulate(np.where(drawn, values, np.inf)[:, ::-1], axis=1)[:, -2::-1]
    between = np.isfinite(below) & np.isfinite(above)
    best = np.argmax(np.where(between, right, -1), axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        middle = (np.take_along_axis(below, best, 1) + np.take_along_axis(above, best, 1))[:, 0] / 2
    return np.where(between.any(1), middle, np.nan)


def _counted(readings: Readings, cuts: Floats, seed: int) -> Floats:
    """[draws, u]: how often each unlearned model counts: drawn, useful, and said not to know."""
    u = len(readings.unlearned)
    drawn = _draws(u, (seed, 2))[: len(cuts)] if u else np.empty((len(cuts), 0))
    forgot = readings.sign * readings.unlearned[None, :] <= cuts[: len(drawn), None]  # false for NaN
    return np.asarray(drawn * (forgot & readings.useful[None, :]))


def _ratios(readings: Readings, attack: str, after: Floats) -> tuple[Floats, Floats]:
    """([u] r or q of each unlearned model, [u] the same in symmetric form); NaN: not known."""
    before, sign = readings.unlearned, readings.sign
    if not attack.startswith(RELEARN):
        turned = (before, after) if sign > 0 else (after, before)
        return stability.quantization(*turned), stability.alike(before, after)
    theirs = readings.retain_only.get(attack, math.nan) - readings.retain_only.get("before", math.nan)
    gain = after - before
    return stability.relearning(sign * gain, sign * theirs), stability.alike(gain, theirs)


def _means(values: Floats, counted: Floats) -> Floats:
    """[draws] means over the models that count, those of an unknown value left out."""
    known = ~np.isnan(values)
    weights = counted * known
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ np.where(known, values, 0)) / weights.sum(1))


@dataclass(frozen=True)
class Difference:
    """Of two metrics' faithfulness on the same models, by DeLong's test; p_holm: corrected for all that are tested."""

    value: Estimate
    p: float | None
    p_holm: float | None


def differences(readings: dict[str, Readings], against: str) -> dict[str, Difference]:
    """Every metric's AUC minus that of `against`, on the models for which both have a value."""
    base = readings[against]
    found: dict[str, tuple[float, float, float, float]] = {}
    for name, other in readings.items():
        if name == against:
            continue
        pools = []
        for pool in ("knows", "others"):
            both = np.array([base.sign * getattr(base, pool), other.sign * getattr(other, pool)])
            pools.append(both[:, ~np.isnan(both).any(0)])
        if min(pool.shape[1] for pool in pools) >= FEWEST:
            found[name] = faithfulness.difference(*faithfulness.delong(*pools), 1, 0)
    tested = [name for name, (*_, p) in found.items() if not math.isnan(p)]
    corrected = dict(zip(tested, stats.holm(np.array([found[name][3] for name in tested])).tolist(), strict=True))
    return {
        name: Difference(Estimate(gap, low, high), p, corrected[name])
        if name in corrected
        else Difference(Estimate(gap, why="both separate the same models, so that no difference can show"), None, None)
        for name, (gap, low, high, p) in found.items()
    }
