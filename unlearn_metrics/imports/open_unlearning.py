"""TOFU_EVAL.json and MUSE_EVAL.json of OpenUnlearning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import truth_ratio
from unlearn_metrics.imports.log import (
    AUTHOR,
    Log,
    Rows,
    Split,
    an_object,
    documents,
    logs_below,
    loss,
    losses,
    mean,
    number,
    ratio,
    rows,
    sha256,
    text,
    unread,
)
from unlearn_metrics.metrics import MEMBERSHIP_ATTACKS
from unlearn_metrics.records import store

SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
MUSE_TEXTS = {
    "forget_knowmem_ROUGE": "forget",
    "retain_knowmem_ROUGE": "retain",
    "forget_verbmem_ROUGE": "forget_verbmem",
}
# OpenUnlearning's metrics that only one of the benchmarks has; attacks, extraction and memorization are of either
OF_TOFU = re.compile(rf"({'|'.join(SPLITS)})_(Q_A_.*|truth_ratio)|forget_quality|model_utility", re.I)
OF_MUSE = re.compile(r"(forget|retain)_(know|verb)mem_.*", re.I)
COMPOSITES = ("forget_quality", "model_utility", "privleak")
EPSILON = "truth_ratio, probability_normalised: the log adds 1e-10 to the denominator; here nothing is added"
FLOOR = (
    "extraction_strength: as logged, where a total miss scores 1/n; this package gives 0, but the log does not hold n"
)


def read(path: Path, benchmark: str | None) -> list[Log]:
    """A Log of the file, or of each such file below a folder. InputError for what is no such log, or of another
    benchmark."""
    return [_log(file, benchmark) for file in logs_below(path, ["*TOFU_EVAL.json", "*MUSE_EVAL.json"])]


def conventions(notes: Sequence[str], as_logged: Sequence[str]) -> list[str]:
    """What OpenUnlearning computes otherwise, where it shows in a log. notes, as_logged: of the record."""
    ratios = [note for note in notes if note.startswith(("truth_ratio (", "probability_norm"))]
    apart = any("another value in the log" in note for note in ratios)
    return [EPSILON] * apart + [FLOOR] * ("extraction_strength" in as_logged)


def _log(file: Path, benchmark: str | None) -> Log:
    raw = store.read_json(file)
    try:
        muse = _is_muse(an_object(raw, "it"), benchmark)
        if raw and not any(isinstance(value, dict) for value in raw.values()):
            raise InputError(
                f"it holds only aggregates; give {'MUSE' if muse else 'TOFU'}_EVAL.json, which lies beside it"
            )
        splits, notes = _splits(raw, muse)
        for split, fields in splits.items():
            notes += truth_ratio.settle(split, fields, authors=False)
        found = {
            split: documents(split, fields, AUTHOR if not muse and split in ("forget", "retain", "holdout") else 1)
            for split, fields in splits.items()
        }
        if not any(found.values()):
            raise InputError("it has none of the metrics that such a log has")
    except InputError as error:
        raise InputError(f"{file} is no log of open-unlearning: {error}") from None
    said = {name: raw[name].get("agg_value") for name in raw if isinstance(raw[name], dict)}
    names = {
        name: name.replace("mia_", "auc_")
        for name in (*COMPOSITES, *(f"mia_{attack}" for attack in MEMBERSHIP_ATTACKS))
    }
    composites = {
        ours: said[name]
        for name, ours in names.items()
        if isinstance(said.get(name), float) and math.isfinite(said[name])
    }
    splits_found = {split: docs for split, docs in found.items() if docs}
    return Log(file, sha256([file]), splits_found, notes=notes, composites=composites)


def _is_muse(raw: Mapping[str, Any], benchmark: str | None) -> bool:
    """Whether a log is of MUSE, by its metrics; by the benchmark where they could be of either."""
    tofu = any(OF_TOFU.fullmatch(key) for key in raw)
    muse = any(OF_MUSE.fullmatch(key) for key in raw)
    if tofu and muse:
        raise InputError("it has metrics of TOFU and of MUSE")
    if benchmark is not None and (muse if benchmark.startswith("tofu") else tofu):
        raise InputError(f"it is a log of {'MUSE' if muse else 'TOFU'}, not of {benchmark}")
    return muse or (benchmark or "").startswith("muse")


def _splits(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """TOFU_EVAL.json and MUSE_EVAL.json: metric -> value_by_index -> row -> what the metric kept of the document."""
    splits: dict[str, Split] = {}
    read = {*COMPOSITES}

    def take(key: str, split: str, field: str, part: str, of: Callable[[Any, str], Any], logged: bool = False) -> None:
        """Field `part` of a metric's documents, as `of` reads it, into a split's field or logged metric."""
        if key in raw:
            read.add(key)
            fields = splits.setdefault(split, {"logged": {}})
            (fields["logged"] if logged else fields)[field] = _values(raw[key], key, part, of)

    for short, split in SPLITS.items():
        if muse:
            break
        take(f"{short}_Q_A_Prob", split, "answer", "avg_loss", loss)
        take(f"{short}_Q_A_Prob", split, "probability", "prob", number, True)
        take(f"{short}_Q_A_PARA_Prob", split, "true_answer", "avg_loss", loss)
        take(f"{short}_Q_A_PARA_Prob", split, "probability_paraphrased_answer", "prob", mean, True)
        take(f"{short}_Q_A_PERT_Prob", split, "wrong_answers", "avg_loss", losses)
        take(f"{short}_Q_A_PERT_Prob", split, "probability_wrong", "prob", mean, True)
        take(f"{short}_Q_A_Prob_normalised", split, "probability_normalised", "prob", number, True)
        for key in (f"{short}_Truth_Ratio", f"{short}_truth_ratio"):
            take(key, split, "truth_ratio", "score", ratio, True)
            if key in raw:
                splits[split]["logged mean"] = raw[key].get("agg_value")
        take(f"{short}_Q_A_ROUGE", split, "rouge", "rougeL_recall", number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(f"{short}_Q_A_ROUGE", split, field, part, text)
    for key, split in MUSE_TEXTS.items():
        take(key, split, "rouge", "rougeL_recall", number, True)
        take(key, split, "rouge_f1", "rougeL_f1", number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(key, split, field, part, text)
    for metric in ("extraction_strength", "exact_memorization"):
        take(metric, "forget_verbmem" if muse else "forget", metric, "score", number, True)
        take(f"retain_{metric}", "retain", metric, "score", number, True)
    for attack in MEMBERSHIP_ATTACKS:
        key = f"mia_{attack}"
        for side in ("forget", "holdout") if key in raw else ():
            read.add(key)
            fields = splits.setdefault(f"{side}_privleak" if muse else side, {"logged": {}})
            values = _values(an_object(raw[key], key).get(side), f"{key}.{side}", "score", number)
            fields["logged"][attack] = values
            if attack == "loss" and not fields.get("answer"):
                fields["answer"] = _values(an_object(raw[key], key).get(side), f"{key}.{side}", "score", loss)
    return splits, unread(key for key in raw if key not in read)


def _values(metric: Any, where: str, part: str, of: Callable[[Any, str], Any]) -> Rows:
    """value_by_index of a metric's log, one part of each document. A document without a result is None."""
    result: Rows = {}
    for row, value in rows(an_object(metric, where).get("value_by_index", {}), f"{where}, value_by_index").items():
        found = None if value is None else an_object(value, f"{where}, row {row}").get(part)
        result[row] = of(found, f"{where}, row {row}, {part}")
    return result
