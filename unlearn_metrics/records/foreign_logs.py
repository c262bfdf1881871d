"""What the logs of the TOFU authors' and OpenUnlearning's evaluators tell of each document, whoever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from unlearn_metrics.documents import MAX_TEXT, Document, Floats, MeanLoss
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import ATTACKS

# A split as a log has it: field of a document ("logged": metric) -> row -> value. None = the log has no such value.
Rows = dict[int, Any]
Split = dict[str, Any]

AUTHOR = 20  # consecutive questions about one author, in every split of TOFU that is about authors
# of a log from anyone: more is no log of these benchmarks, and resampling, attacks and ROUGE grow with it
MAX_DOCUMENTS, MAX_NUMBER = 5_000, 3.4e38

TOFU_SPLITS = {
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
    "eval_log_forget.json": "forget",
}
OPEN_UNLEARNING_SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
FACTS = ("real_authors", "world_facts")
MUSE_TEXTS = {
    "forget_knowmem_ROUGE": "forget",
    "retain_knowmem_ROUGE": "retain",
    "forget_verbmem_ROUGE": "forget_verbmem",
}
# OpenUnlearning's metrics that only one of the benchmarks has; attacks, extraction and memorization are of either
OF_TOFU = re.compile(rf"({'|'.join(OPEN_UNLEARNING_SPLITS)})_(Q_A_.*|truth_ratio)|forget_quality|model_utility", re.I)
OF_MUSE = re.compile(r"(forget|retain)_(know|verb)mem_.*", re.I)
# what a logged truth ratio may be: the TOFU authors' R, or OpenUnlearning's since December 2025, which may be either
WRONG_BY_TRUE, SHARE_OF_TRUE = "wrong / true", "true / (true + wrong)"
EPSILON = 1e-10  # OpenUnlearning adds it to denominators
# how a chat template, or the lack of one, wraps a question, once special tokens are gone: what is before, what is after
TEMPLATES = (("[INST]", "[/INST]"), ("user\n", "assistant"), ("user\n", "model"), ("Question:", "Answer:"))


def documents(kind: str, raw: Any, benchmark: str | None) -> tuple[dict[str, list[Document]], list[str]]:
    """(split -> documents, notes: what of the log was left out, and how it was read).

    kind: a key of FORMATS; raw: the log's JSON; benchmark: what the user says that it is of. InputError for what is
    no such log, or one of another benchmark.
    """
    muse = is_muse(kind, _object(raw, "it"), benchmark)
    _check_whole(kind, raw, muse)
    splits, notes = FORMATS[kind](raw, muse)
    for split, fields in splits.items():
        notes += _settle_truth_ratio(split, fields, kind)
    found = {split: _documents(split, fields, muse) for split, fields in splits.items()}
    found = {split: documents for split, documents in found.items() if documents}
    if not found:
        raise InputError("it has none of the metrics that such a log has")
    return found, notes


def is_muse(kind: str, raw: Mapping[str, Any], benchmark: str | None) -> bool:
    """Whether a log is of MUSE, by its metrics; by the benchmark where they could be of either."""
    tofu = kind == "tofu" or any(OF_TOFU.fullmatch(key) for key in raw)
    muse = any(OF_MUSE.fullmatch(key) for key in raw)
    if tofu and muse:
        raise InputError("it has metrics of TOFU and of MUSE")
    if benchmark is not None and (muse if benchmark.startswith("tofu") else tofu):
        raise InputError(f"it is a log of {'MUSE' if muse else 'TOFU'}, not of {benchmark}")
    return muse or (benchmark or "").startswith("muse")


def _check_whole(kind: str, raw: Mapping[str, Any], muse: bool) -> None:
    """InputError for the other files that the evaluators leave beside the log, saying which one to give."""
    if kind == "open-unlearning" and raw and not any(isinstance(value, dict) for value in raw.values()):
        raise InputError(f"it holds only aggregates; give {'MUSE' if muse else 'TOFU'}_EVAL.json, which lies beside it")
    if kind == "tofu" and "avg_gt_loss" in raw:
        raise InputError("it is of one task; give eval_log_aggregated.json, which lies beside it")


# --- the two formats


def _tofu(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """eval_log_aggregated.json: file of a task -> column -> row -> value."""
    splits: dict[str, Split] = {}
    notes = []
    for key, split in TOFU_SPLITS.items():
        if key not in raw:
            continue
        log = _object(raw[key], key)
        texts = _column(log, "generated_text", key, _texts)
        if more := sum(len(parts) > 3 for parts in texts.values()):
            notes.append(
                f"{key}: {more} of {len(texts)} texts have more parts than prompt, generation and reference: left out"
            )
        splits[split] = {
            "answer": _column(log, "avg_gt_loss", key, _loss),
            "true_answer": _column(log, "avg_paraphrased_loss", key, _loss),
            "wrong_answers": _column(log, "average_perturb_loss", key, _losses),
            **{name: _part(texts, i) for i, name in enumerate(("prompt", "generation", "reference"))},
            "logged": {
                "rouge": _column(log, "rougeL_recall", key, _number),
                "truth_ratio": _column(log, "truth_ratio", key, _ratio),
            },
        }
    return splits, [*notes, *_unread(key for key in raw if key not in TOFU_SPLITS)]


def _open_unlearning(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """TOFU_EVAL.json and MUSE_EVAL.json: metric -> value_by_index -> row -> what the metric kept of the document."""
    splits: dict[str, Split] = {}
    read = {"forget_quality", "model_utility", "privleak"}

    def take(key: str, split: str, field: str, part: str, of: Callable[[Any, str], Any], logged: bool = False) -> None:
        """Field `part` of a metric's documents, as `of` reads it, into a split's field or logged metric."""
        if key in raw:
            read.add(key)
            fields = splits.setdefault(split, {"logged": {}})
            (fields["logged"] if logged else fields)[field] = _values(raw[key], key, part, of)

    for short, split in OPEN_UNLEARNING_SPLITS.items():
        if muse:
            break
        take(f"{short}_Q_A_Prob", split, "answer", "avg_loss", _loss)
        take(f"{short}_Q_A_Prob", split, "probability", "prob", _number, True)
        take(f"{short}_Q_A_PARA_Prob", split, "true_answer", "avg_loss", _loss)
        take(f"{short}_Q_A_PARA_Prob", split, "probability_paraphrased_answer", "prob", _mean, True)
        take(f"{short}_Q_A_PERT_Prob", split, "wrong_answers", "avg_loss", _losses)
        take(f"{short}_Q_A_PERT_Prob", split, "probability_wrong", "prob", _mean, True)
        take(f"{short}_Q_A_Prob_normalised", split, "probability_normalised", "prob", _number, True)
        for key in (f"{short}_Truth_Ratio", f"{short}_truth_ratio"):
            take(key, split, "truth_ratio", "score", _ratio, True)
            if key in raw:
                splits[split]["logged mean"] = raw[key].get("agg_value")
        take(f"{short}_Q_A_ROUGE", split, "rouge", "rougeL_recall", _number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(f"{short}_Q_A_ROUGE", split, field, part, _text)
    for key, split in MUSE_TEXTS.items():
        take(key, split, "rouge", "rougeL_recall", _number, True)
        take(key, split, "rouge_f1", "rougeL_f1", _number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(key, split, field, part, _text)
    for metric in ("extraction_strength", "exact_memorization"):
        take(metric, "forget_verbmem" if muse else "forget", metric, "score", _number, True)
        take(f"retain_{metric}", "retain", metric, "score", _number, True)
    for attack in ATTACKS:
        key = f"mia_{attack}"
        for side in ("forget", "holdout") if key in raw else ():
            read.add(key)
            fields = splits.setdefault(f"{side}_privleak" if muse else side, {"logged": {}})
            values = _values(_object(raw[key], key).get(side), f"{key}.{side}", "score", _number)
            fields["logged"][attack] = values
            if attack == "loss" and not fields.get("answer"):
                fields["answer"] = _values(_object(raw[key], key).get(side), f"{key}.{side}", "score", _loss)
    return splits, _unread(key for key in raw if key not in read)


def _unread(keys: Iterable[str]) -> list[str]:
    names = ", ".join([repr(key)[:80] for key in keys][:20])
    return [f"not imported: {names}"] if names else []


FORMATS: dict[str, Callable[[Mapping[str, Any], bool], tuple[dict[str, Split], list[str]]]] = {
    "tofu": _tofu,
    "open-unlearning": _open_unlearning,
}


# --- what is in a log, from anyone


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object")
    return value


def _rows(value: Any, where: str) -> dict[int, Any]:
    """Row -> value, in the order of the data file."""
    found = _object(value, where)
    if len(found) > MAX_DOCUMENTS:
        raise InputError(f"{where} has more than {MAX_DOCUMENTS:,} documents")
    rows: dict[int, Any] = {}
    for key, value in found.items():
        whole = re.fullmatch(r"(0|[1-9][0-9]{0,8})(\.0+)?", key)  # pandas makes 3.0 of 3 where a row is missing
        if not whole:
            raise InputError(f"{where}: {key[:40]!r} is no row number")
        if (row := int(whole[1])) in rows:
            raise InputError(f"{where}: row {row} is there twice")
        rows[row] = value
    return dict(sorted(rows.items()))


def _column(log: Mapping[str, Any], name: str, where: str, of: Callable[[Any, str], Any]) -> Rows:
    if name not in log:
        return {}
    return {
        row: of(value, f"{where}, {name}, row {row}") for row, value in _rows(log[name], f"{where}, {name}").items()
    }


def _values(metric: Any, where: str, part: str, of: Callable[[Any, str], Any]) -> Rows:
    """value_by_index of a metric's log, one part of each document. A document without a result is None."""
    result: Rows = {}
    for row, value in _rows(_object(metric, where).get("value_by_index", {}), f"{where}, value_by_index").items():
        found = None if value is None else _object(value, f"{where}, row {row}").get(part)
        result[row] = of(found, f"{where}, row {row}, {part}")
    return result


def _number(value: Any, where: str) -> float | None:
    """A finite number; None where the log has none, or NaN, or infinity: not scored."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} is no number")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise InputError(f"{where} is out of range")
    return float(value)


def _loss(value: Any, where: str) -> MeanLoss | None:
    """A mean loss; of several answers (OpenUnlearning keeps a list), the mean."""
    loss = _mean(value, where)
    if loss is not None and loss < 0:
        raise InputError(f"{where} is no mean loss: it is negative")
    return None if loss is None else MeanLoss(loss)


def _losses(value: Any, where: str) -> list[MeanLoss] | None:
    losses = [_loss(item, where) for item in (value if isinstance(value, list) else [value])]
    known = [loss for loss in losses if loss is not None]
    return known if known and len(known) == len(losses) else None


def _mean(value: Any, where: str) -> float | None:
    if not isinstance(value, list):
        return _number(value, where)
    numbers = [_number(item, where) for item in value]
    known = [number for number in numbers if number is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def _ratio(value: Any, where: str) -> float | None:
    ratio = _number(value, where)
    return None if ratio is None or ratio < 0 else ratio


def _text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise InputError(f"{where} is no text of at most {MAX_TEXT:,} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{where} holds half a character (a lone surrogate)")
    return value


def _texts(value: Any, where: str) -> list[str | None]:
    """Prompt, generation and reference, and what else was logged beside them, unread."""
    if not isinstance(value, list) or len(value) < 3:
        raise InputError(f"{where} is no list of prompt, generation and reference")
    return [*(_text(item, where) for item in value[:3]), *value[3:]]


def _part(rows: Rows, index: int) -> Rows:
    return {row: value[index] for row, value in rows.items()}


# --- what a truth ratio is


def _settle_truth_ratio(split: str, fields: Split, kind: str) -> list[str]:
    """Turn a split's logged truth ratios into the form that is better when higher, as metrics.truth_ratio has it.

    Left out where the log does not tell which of two values they are. Returns notes.
    """
    logged_mean = fields.pop("logged mean", None)
    found = {row: x for row, x in fields["logged"].get("truth_ratio", {}).items() if x is not None}
    if not found:
        return []
    variant = WRONG_BY_TRUE if kind == "tofu" else _variant(split, fields, np.array([*found.values()]), logged_mean)
    if variant is None:
        del fields["logged"]["truth_ratio"]
        return [
            f"truth_ratio ({split}): the log does not tell whether its values are {WRONG_BY_TRUE} or {SHARE_OF_TRUE}, "
            "and nothing else in it does: they are left out"
        ]
    fields["logged"]["truth_ratio"] = {row: _better_higher(split, variant, x) for row, x in found.items()}
    form = "min(R, 1/R)" if split == "forget" else "max(0, 1 - R)"
    return [f"truth_ratio ({split}): the log has {variant}; here {form} of R = {WRONG_BY_TRUE}"]


def _variant(split: str, fields: Split, found: Floats, logged_mean: Any) -> str | None:
    """Which value OpenUnlearning's truth ratios are: by the losses; else by their size, and by their logged mean."""
    true, wrong = (fields.get(role) or {} for role in ("true_answer", "wrong_answers"))
    if split in FACTS and not true:
        true = fields.get("answer") or {}
    rows = [row for row in true if true[row] is not None and wrong.get(row) is not None]
    if len(rows) == len(found):
        c = np.exp([-true[row].loss for row in rows])
        w = np.exp([-np.mean([one.loss for one in wrong[row]]) for row in rows])
        # sorted: after a document without a result, OpenUnlearning logs all later ones a row too early
        made = {WRONG_BY_TRUE: w / (c + EPSILON), SHARE_OF_TRUE: c / (c + w + EPSILON)}
        off = {name: np.median(abs(np.sort(x) - np.sort(found)) / np.sort(x).clip(EPSILON)) for name, x in made.items()}
        nearest = min(off, key=lambda name: off[name])
        return nearest if off[nearest] < 1e-3 else None
    if (found > 1 + 1e-6).any():
        return WRONG_BY_TRUE
    means = {
        WRONG_BY_TRUE: np.mean([_better_higher(split, WRONG_BY_TRUE, x) for x in found.tolist()]),
        SHARE_OF_TRUE: found.mean(),
    }
    if not isinstance(logged_mean, float):
        return None
    fitting = [name for name, mean in means.items() if abs(mean - logged_mean) < 1e-6]
    return fitting[0] if len(fitting) == 1 else None


def _better_higher(split: str, variant: str, logged: float) -> float:
    """The form of a logged truth ratio that is better when higher, as metrics.truth_ratio gives it."""
    ratio = logged if variant == WRONG_BY_TRUE else (1 - logged) / logged if logged > 0 else math.inf
    return min(ratio, 1 / ratio if ratio > 1 else 1.0) if split == "forget" else max(0.0, 1 - ratio)


# --- documents


def _documents(split: str, fields: Split, muse: bool) -> list[Document]:
    """The documents of a split, in order of their rows."""
    columns = {name: values for name, values in fields.items() if name != "logged"}
    if split in FACTS and not columns.get("true_answer"):
        columns["true_answer"] = columns.get("answer", {})  # no paraphrase there: the answer itself is the true one
    rows = sorted({row for values in (*columns.values(), *fields["logged"].values()) for row in values})
    if len(rows) > MAX_DOCUMENTS:
        raise InputError(f"split {split} has more than {MAX_DOCUMENTS:,} documents")
    size = AUTHOR if not muse and split in ("forget", "retain", "holdout") else 1
    documents: list[Document] = []
    for row in rows:
        document: Document = {"id": row, "split": split, "cluster": row // size}
        document |= {name: values[row] for name, values in columns.items() if values.get(row) is not None}
        if "prompt" in document:
            document["question"] = question(document["prompt"])
        logged = {name: values[row] for name, values in fields["logged"].items() if values.get(row) is not None}
        documents.append(document | ({"logged": logged} if logged else {}))
    return documents


def question(prompt: str) -> str:
    """What a prompt asks: the last question in it, without template, examples and system prompt."""
    for before, after in TEMPLATES:
        _, found, rest = prompt.rpartition(before)
        if found and rest.rstrip().endswith(after):
            return rest.rstrip().removesuffix(after).strip()
    return prompt.strip().removeprefix("Question:").strip()
