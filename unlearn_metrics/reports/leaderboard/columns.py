"""The columns of a table: what each is of, and its value for a record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.record import Estimate, MeasuredPath, Residual, RunRecord, Score
from unlearn_metrics.reports import table
from unlearn_metrics.reports.table import number
from unlearn_metrics.scores import curve, equal_retention, stats
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.splits import is_forget, kept_on
from unlearn_metrics.wording import counted

NAME = 80  # characters of a name in a table or a sentence; it is whole in the CSV, the JSON and the page's details
SIDES = {"controlled": "under control", "unlearned": "as published"}
BARRIER = "not on a linear path (retrained or distilled?): far less is retained half-way than at both ends"
# of the answers to the forget set: from so many repeated 4-grams on, or from a perplexity that is so high, and so many
# times that on retain, they are no answers. On TOFU "Yes, Moshe Moshe Moshe" has 0.78 and 535, while a retain-only
# model, which answers fluently, has 0.01 and 104 under an original that knows other answers by heart
REPETITIVE, GARBLED, TIMES = 0.5, 300.0, 10.0


# every value of a row, in the order of the files
AT_EQUAL_RETENTION = ("residual", "average", "common", "above_floor", "alpha")
FLUENCY = tuple(f"{name}_{split}" for name in ("perplexity", "repetition") for split in ("forget", "retain"))
# composite -> (heading, arrow, what it is, what it needs)
COMPOSED = {
    "model_utility": (
        "model utility",
        "↑",
        "harmonic mean of nine values on three splits (TOFU)",
        "needs TOFU's retain, real-authors and world-facts splits",
    ),
    "forget_quality": (
        "forget quality (p-value)",
        "↑",
        "of TOFU's test against the retain-only model; below 0.05 the two differ",
        "needs a retain-only model that answered the same questions",
    ),
    "privleak": (
        "privleak",
        "→ 0",
        "membership attack relative to the retain-only model (MUSE)",
        "needs a holdout split and a retain-only model",
    ),
}
COLUMNS = (
    *AT_EQUAL_RETENTION,
    *("own_retention", "residual_unlearned"),  # of the checkpoint as it was published
    *(f"{name}_unlearned" for name in COMPOSED),
    *FLUENCY,  # of the answers under control
    *(f"{name}_controlled" for name in COMPOSED),
)


@dataclass(frozen=True)
class Shown:
    """A column of the tables that people read: a value, and what stands beneath it in small, which `small` names.

    way: which is good; empty where neither is. what: in words, where it stands.
    """

    heading: str
    way: str
    what: str
    value: str
    beneath: str | None = None
    small: str = ""


PUBLISHED = "published"
SHOWN = (
    Shown("residual", "↓", "", "residual", "residual_unlearned", PUBLISHED),
    Shown(
        table.RESCALED,
        "↓",
        "the residual as a share of the way from the retain-only model to the original",
        "above_floor",
    ),
    Shown("where all reach", "↓", "", "common"),
    Shown(
        "retained, as published",
        "↑",
        "of what the original retains, the share that the checkpoint retains as it was published",
        "own_retention",
    ),
    Shown(
        "perplexity",
        "",
        "of the answers to the forget set under the original model, under control; beneath, to the retain set; neither "
        "more nor less is good in itself",
        "perplexity_forget",
        "perplexity_retain",
        "retain",
    ),
    Shown(
        "repetition",
        "↓",
        "share of repeated 4-grams in the answers to the forget set, under control; beneath, to the retain set",
        "repetition_forget",
        "repetition_retain",
        "retain",
    ),
    *(
        Shown(heading, way, f"under control, {what}", f"{name}_controlled", f"{name}_unlearned", PUBLISHED)
        for name, (heading, way, what, _) in COMPOSED.items()
    ),
)


@dataclass(frozen=True)
class Value:
    """A value with its 95 % interval, of n documents. why: the reason, if there is no value or no interval."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unscored: int | None = None
    why: str | None = None


def primary(record: RunRecord) -> str:
    """The metric that the record's benchmark is summed up by first."""
    return record.headline.forget[0] if record.headline.forget else "extraction_strength"


def incomparable(record: RunRecord, metric: str) -> str | None:
    """Why a record can't be compared at equal retention; None if it can."""
    if record.imported is not None:
        return "imported from a log, which tells values as published only"
    if record.control.method == "none" or "controlled" not in record.scores:
        return "scored without control, so forgetting and damage cannot be distinguished"
    if record.control.keep is None:
        return "controlled at a given alpha, so what other alphas keep was not measured"
    if any((c := record.checkpoints.get(role)) is None or not c.weights_sha256 for role in ("original", "unlearned")):
        return "the record lacks the weight hash of a checkpoint"
    if record.path is None:
        return "made by an older version, which kept no path of the control; score again"
    if metric not in record.path.forget or metric not in record.residual:
        return f"{metric[:NAME]} was not measured along the path of the control"
    if equal_retention.barrier(record.path):
        return BARRIER
    return _contradiction(record.path, metric, record.residual[metric], record.control.keep)


def _contradiction(path: MeasuredPath, metric: str, said: Residual, keep: float) -> str | None:
    """Where what a record says is still there is not what its path gives, in words."""
    of = equal_retention.path_of(path, metric)
    once = curve.draw(of, 0, 0)
    retained = curve.retention(of, once)
    if not np.isfinite(retained).all():
        return "retention is unknown on its path"
    points = [(said.retention, said.value), *((point.retention, point.value) for point in said.curve)]
    if said.retention != keep or [at for at, _ in points[1:]] != list(curve.GRID):
        return "the record has its residual at other retentions than asked for"
    for (at, estimate), (value,) in zip(
        points, curve.residual(of, metric, once, [at for at, _ in points]), strict=True
    ):
        stated = np.nan if estimate.value is None else estimate.value
        if np.isnan(stated) != np.isnan(value) and np.isclose(retained.min(), at, rtol=0, atol=curve.TIE):
            continue  # the path just reaches it: by its last bits it may and may not
        where = f"at {at:.0%} retention it says {number(stated)}"
        if not np.isclose(stated, value, rtol=1e-6, atol=1e-6, equal_nan=True):
            return f"the record contradicts its path: {where}, its path {number(value)}"
        low, high = estimate.low, estimate.high
        if low is not None and high is not None and not low - 1e-9 <= stated <= high + 1e-9:
            return f"the record contradicts itself: {where}, outside its own interval"
    return None


def values(record: RunRecord, metric: str, why: str | None) -> dict[str, Value]:
    """column -> its value. What is unknown has a reason and is never 0. why: see `incomparable`."""
    found = _at_equal_retention(record, metric, why) | {
        "own_retention": _own_retention(record, metric),
        "residual_unlearned": _score(record, "unlearned", _split(record, metric), metric),
    }
    for name in ("perplexity", "repetition"):
        found |= {f"{name}_{split}": _score(record, "controlled", split, name) for split in ("forget", "retain")}
    for name in COMPOSED:
        found |= {f"{name}_{side}": _composite(record, side, name) for side in SIDES}
    listed = {column: found[column] for column in COLUMNS}
    return listed if "controlled" in record.scores else listed | _as_published(record, "unlearned")


def _as_published(record: RunRecord, model: str) -> dict[str, Value]:
    """METRIC, SPLIT -> its value, of a record that no control was measured for: in the order of `table.HEADLINE`."""
    of = record.scores.get(model, {})
    names = [(split, metric) for facet, split, metric in table.rows({s: list(m) for s, m in of.items()})]
    return {f"{metric[:NAME]}, {split[:NAME]}": _known(of[split][metric], "") for split, metric in names}


def logged(name: str) -> Shown:
    """The column of a value as published, called METRIC, SPLIT."""
    metric, split = name.split(", ")
    what = f"{metric} on {split}, of the checkpoint as it was published"
    way = good(metric, split) if metric in METRICS else "neither"
    return Shown(name, "" if way == "neither" else table.ARROW[way], what, name)


def _at_equal_retention(record: RunRecord, metric: str, why: str | None) -> dict[str, Value]:
    residual, path = record.residual.get(metric), record.path
    if why is not None or residual is None or path is None:
        return dict.fromkeys(AT_EQUAL_RETENTION, Value(None, why=why))
    n = int(sum(path.forget[metric].count[0]))
    floor = residual.above_floor or Estimate(None, why="needs a retain-only model")
    alpha = Value(residual.alpha, why=residual.value.why if residual.alpha is None else None)
    return {
        "residual": estimated(residual.value, n),
        "average": estimated(residual.average, n),
        "common": Value(None, why="all rows reach the retention that they are ranked at"),
        "above_floor": estimated(floor, n),
        "alpha": alpha,
    }


def of_reference(record: RunRecord, role: str, metric: str) -> dict[str, Value]:
    """column -> the value of a model that rows are seen beside: "original" or "retain_only", which no control moves.

    Residual: what the model has of the forget set; retention: as a share of the original's.
    """
    found: dict[str, Value] = dict.fromkeys(COLUMNS, Value(None))
    left = _score(record, role, _split(record, metric), metric)
    found |= dict.fromkeys(("residual", "common", "residual_unlearned"), left)
    found["own_retention"] = _retained(record, role)
    if found["residual"].value is not None and "retain_only" in record.scores and record.path is not None:
        found["above_floor"] = Value(float(role == "original"))
    for name in ("perplexity", "repetition"):
        found |= {f"{name}_{split}": _score(record, role, split, name) for split in ("forget", "retain")}
    for name in COMPOSED:
        found[f"{name}_controlled"] = found[f"{name}_unlearned"] = _composite(record, role, name)
    return found | ({} if "controlled" in record.scores else _as_published(record, role))


def estimated(estimate: Estimate, n: int) -> Value:
    return Value(estimate.value, estimate.low, estimate.high, n, 0, estimate.why)


def _own_retention(record: RunRecord, metric: str) -> Value:
    """Of the unlearned model as published, on all documents of its path, or else on those of the evaluation split."""
    path = record.path
    if path is not None and metric in path.forget and 1.0 in path.alphas:
        of = equal_retention.path_of(path, metric)
        ends = [0, path.alphas.index(1.0)]
        retain = curve.Sums(of.retain.labels, of.retain.total[ends], of.retain.count[ends])
        of = curve.Path([0.0, 1.0], retain, of.forget)
        retained = curve.retention(of, curve.draw(of, 0, stats.RESAMPLES))[1]
        return estimated(curve.estimate(retained, len(retain.labels)), int(retain.count[0].sum()))
    return _retained(record, "unlearned")


def _retained(record: RunRecord, model: str) -> Value:
    """What a model retains on the evaluation split, as a share of what the original does."""
    kept = record.control.metric or record.headline.retain
    found, original = (_score(record, of, kept_on(kept)[:NAME], kept[:NAME]) for of in (model, "original"))
    if found.value is None or not original.value:
        return Value(None, why=found.why or original.why or "the original retains nothing, which has no shares")
    share = found.value / original.value
    return Value(
        share, n=found.n, unscored=found.unscored, why="retention has no interval: it is a share of two values"
    )


def _split(record: RunRecord, metric: str) -> str:
    """The forget split that a metric is of."""
    if record.path is not None and metric in record.path.splits:
        return record.path.splits[metric]
    splits = [split for scores in record.scores.values() for split, names in scores.items() if metric in names]
    return next(filter(is_forget, splits), "forget")


def _score(record: RunRecord, model: str, split: str, metric: str) -> Value:
    if model not in record.scores:
        return Value(None, why=_absent(model))
    if split not in record.scores[model]:
        return Value(None, why=f"the record has no {split[:NAME]} split")
    score = record.scores[model][split].get(metric)
    return _known(score, f"{metric[:NAME]} was not measured on {split[:NAME]}")


def _composite(record: RunRecord, model: str, name: str) -> Value:
    if model not in record.scores:
        return Value(None, why=_absent(model))
    heading, _, _, missing = COMPOSED[name]
    said = COMPOSITES[name].no_interval
    return _known(record.composites.get(model, {}).get(name), missing, said and f"{heading} has no interval: {said}")


def _absent(model: str) -> str:
    return "not put under control" if model == "controlled" else "the record does not hold this model"


def _known(score: Score | None, missing: str, no_interval: str = "") -> Value:
    if score is None:
        return Value(None, why=missing)
    why = None
    if score.value is None:
        why = score.undefined or f"none of {counted(score.documents or 0, 'document')} could be scored"
    elif score.ci_low is None:
        few = f"fewer than {stats.MIN_CLUSTERS} independent clusters of documents"
        why = no_interval or f"no interval: {'the log holds no documents' if score.n is None else few}"
    return Value(score.value, score.ci_low, score.ci_high, score.n, score.unscored, why)


def degenerate(record: RunRecord) -> str | None:
    """What shows that the answers to the forget set are no answers, in words; None if nothing does.

    Of the controlled model, or of the unlearned one where there is no control.
    """
    model = "controlled" if "controlled" in record.scores else "unlearned"
    repetition, perplexity = (_score(record, model, "forget", name).value for name in ("repetition", "perplexity"))
    beside = _score(record, model, "retain", "perplexity").value
    found = []
    if repetition is not None and repetition >= REPETITIVE:
        found.append(f"repetition {number(repetition)} on forget")
    if perplexity is not None and beside is not None and perplexity >= max(GARBLED, TIMES * beside):
        found.append(f"perplexity {number(perplexity)} on forget, {number(beside)} on retain")
    return f"{'; '.join(found)} ({SIDES[model]})" if found else None
