"""Every score of a stored run computed again from its documents, without a model, and compared with what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, available
from unlearn_metrics.record import Estimate, Residual, RunRecord, Score
from unlearn_metrics.records import store
from unlearn_metrics.records.attacked import with_recovery
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores.equal_retention import residuals, with_ends
from unlearn_metrics.scores.scoring import layer_drops, score_all
from unlearn_metrics.wording import counted

# Processors differ in the last bits of exp, log and sums: 1e-16 of what is added up, a few hundred times that in what
# is computed from it. A value near 0 may be the difference of numbers near 1, so it is held against 0.001 at least: its
# last bits are theirs.
TOLERANCE, SMALL = 1e-9, 1e-3


def rescore(folder: Path, more: Iterable[str] = ()) -> RunRecord:
    """The run's record with every score computed again from its documents, and the metrics in `more` beside them.

    "all" in more: every metric that the documents allow. InputError for an unknown metric, or one that no split has.
    What the record holds of metrics that are unknown here (store.unknown_metrics) is left out: nobody computed it.
    """
    more = {*more}
    for name in more:
        if name not in METRICS and name != "all":
            raise InputError(f"unknown metric '{name}'; {did_you_mean(name, METRICS)}")
    record, observations = store.load_record(folder), store.load_documents(folder)
    if of_means(record):
        if more:
            raise InputError(f"{folder} holds no documents, only means that a log had: no metric can be computed")
        return record
    wanted: dict[str, dict[str, list[str]]] = {model: {} for model in observations}
    for model, splits in observations.items():
        for split, documents in splits.items():
            had = record.scores.get(model, {}).get(split, {})
            added = [name for name in available(documents) if {name, "all"} & more] if more else []
            wanted[model][split] = [name for name in (*METRICS, *record.ability) if name in had or name in added]
    for name in more - {"all"} - {name for splits in wanted.values() for names in splits.values() for name in names}:
        raise InputError(f"{folder} holds nothing that {name} could be computed from")
    seed = found if isinstance(found := record.settings.get("seed"), int) and found >= 0 else 0
    scores, composites = score_all(observations, wanted, seed, record.benchmark)
    path = None if record.path is None else with_ends(record.path, observations)
    residual = {} if path is None else residuals(path, record.control.keep, seed)
    words = verdict(scores, record.control, record.headline, residual, record.imported)
    again = replace(
        record,
        scores=scores,
        composites=composites,
        path=path,
        residual=residual,
        verdict=words,
        depth=layer_drops(observations),
    )
    return again if record.attacks is None else with_recovery(again, observations, record.attacks.made, seed)


def of_means(record: RunRecord) -> bool:
    """Whether a record is of a log that has no documents, so that nothing in it can be computed again."""
    scores = [score for splits in record.scores.values() for found in splits.values() for score in found.values()]
    return record.imported is not None and bool(scores) and all(score.n is None for score in scores)


def changed(stored: RunRecord, again: RunRecord) -> tuple[int, list[str], float]:
    """(how many stored scores there are, where those of `again` differ by more than TOLERANCE, in words, the largest
    deviation of the others, see `deviation`). Those of metrics that are unknown here are not among them."""
    count, differing, largest = 0, [], 0.0
    unknown = {*store.unknown_metrics(stored)}
    groups: list[tuple[str, Mapping[str, Score], Mapping[str, Score]]] = [
        *(
            (f"{m}, {s}", {n: x for n, x in metrics.items() if n not in unknown}, again.scores.get(m, {}).get(s, {}))
            for m, x in stored.scores.items()
            for s, metrics in x.items()
        ),
        *((m, names, again.composites.get(m, {})) for m, names in stored.composites.items()),
        *((f"{where}, attacks", mine, recovered(again).get(where, {})) for where, mine in recovered(stored).items()),
        *(
            (f"residual {metric}", estimates(found), estimates(again.residual[metric]))
            for metric, found in stored.residual.items()
            if metric in again.residual
        ),
        *(
            (f"depth of {model}", layers(drops), layers(again.depth.get(model, [])))
            for model, drops in stored.depth.items()
        ),
    ]
    for where, mine, theirs in groups:
        count += len(mine)
        for name, score in mine.items():
            off = deviation(score, theirs[name]) if name in theirs else math.inf
            if off <= TOLERANCE:
                largest = max(largest, off)
            else:
                differing.append(f"{where}: {name} is {_said(score)}, again {_said(theirs.get(name))}")
    return count, differing, largest


def layers(drops: Sequence[float]) -> dict[str, Score]:
    """The drops of a model's layers, in the form of scores."""
    return {f"layer {number}": Score(drop, None, None, 0, 0) for number, drop in enumerate(drops, 1)}


def _said(score: Score | None) -> str:
    """'0.25 [0.1, 0.5], 40 documents', with the digits in which scores differ."""
    if score is None:
        return "not there"
    known = "unknown" if score.value is None else f"{score.value:.10g}"
    if score.ci_low is not None and score.ci_high is not None:
        known += f" [{score.ci_low:.10g}, {score.ci_high:.10g}]"
    counts = f", {counted(score.n, 'document')}" if score.n else ""
    return known + counts + (f" and {score.unscored} unscored" if score.unscored else "")


def estimates(residual: Residual) -> dict[str, Score]:
    """What is stored of a metric at equal retention, by name, in the form of scores."""
    named = {"value": residual.value, "average": residual.average}
    named |= {f"at {point.retention:g}": point.value for point in residual.curve}
    if residual.above_floor is not None:
        named["above_floor"] = residual.above_floor
    return {name: _as_score(it) for name, it in named.items()}


def _as_score(it: Estimate) -> Score:
    return Score(it.value, it.low, it.high, 0, 0, it.why)


def recovered(record: RunRecord) -> dict[str, dict[str, Score]]:
    """What is stored of attacks: "model, metric" -> name -> estimate, in the form of scores."""
    if record.attacks is None:
        return {}
    found: dict[str, dict[str, Estimate]] = {}
    for model, metrics in record.attacks.recovery.items():
        for metric, of in metrics.items():
            named = found.setdefault(f"{model}, {metric}", {})
            for attack, it in of.items():
                named |= {attack: it.value} | ({} if it.net is None else {f"{attack}, net": it.net})
    for model, worsts in record.attacks.worst.items():
        for metric, worst in worsts.items():
            named = found.setdefault(f"{model}, {metric}", {})
            named |= {"worst": worst.value} | ({} if worst.net is None else {"worst, net": worst.net})
    return {where: {name: _as_score(it) for name, it in named.items()} for where, named in found.items()}


def deviation(stored: Score, again: Score) -> float:
    """How far apart two scores are: of value and interval the largest difference, relative to the stored number or to
    SMALL, whichever is larger. Infinite where they count other documents, or one lacks a number.

    >>> round(deviation(Score(0.5, 0.4, 0.6, 9, 0), Score(0.5, 0.4, 0.6 + 6e-10, 9, 0)), 12)
    1e-09
    """
    numbers = [(stored.value, again.value), (stored.ci_low, again.ci_low), (stored.ci_high, again.ci_high)]
    alike = (stored.n, stored.unscored, stored.undefined) == (again.n, again.unscored, again.undefined)
    if not alike or any((a is None) != (b is None) for a, b in numbers):
        return math.inf
    return max((abs(a - b) / max(abs(a), SMALL) for a, b in numbers if a is not None and b is not None), default=0.0)
