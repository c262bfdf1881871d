"""What the logs of the TOFU authors' and OpenUnlearning's evaluators tell of each document, whoever wrote them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from unlearn_metrics.documents import Document, MeanLoss
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import ATTACKS

# A split as a log has it: field of a document ("logged": metric) -> row -> value. None = the log has no such value.
Rows = dict[int, Any]
Split = dict[str, Any]

AUTHOR = 20  # consecutive questions about one author, in every split of TOFU that is about authors
# of a log from anyone: more is no log of these benchmarks, and resampling, attacks and ROUGE grow with it
MAX_DOCUMENTS, MAX_TEXT, MAX_NUMBER = 5_000, 100_000, 3.4e38

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
# how a chat template, or the lack of one, wraps a question, once special tokens are gone: what is before, what is after
TEMPLATES = (("[INST]", "[/INST]"), ("user\n", "assistant"), ("user\n", "model"), ("Question:", "Answer:"))


def documents(kind: str, raw: Any, muse: bool) -> tuple[dict[str, list[Document]], list[str]]:
    """(split -> documents, the parts of the log that nothing here corresponds to).

    kind: a key of FORMATS; raw: the log's JSON; muse: whether it is of MUSE. InputError for what is no such log.
    """
    splits, unread = FORMATS[kind](_object(raw, "it"), muse)
    found = {split: _documents(split, fields, muse) for split, fields in splits.items()}
    found = {split: documents for split, documents in found.items() if documents}
    if not found:
        raise InputError("it has none of the metrics that such a log has")
    return found, unread


# --- the two formats


def _tofu(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """eval_log_aggregated.json: file of a task -> column -> row -> value."""
    splits: dict[str, Split] = {}
    for key, split in TOFU_SPLITS.items():
        if key not in raw:
            continue
        log = _object(raw[key], key)
        texts = _column(log, "generated_text", key, _triple)
        splits[split] = {
            "answer": _column(log, "avg_gt_loss", key, _loss),
            "true_answer": _column(log, "avg_paraphrased_loss", key, _loss),
            "wrong_answers": _column(log, "average_perturb_loss", key, _losses),
            **{name: _part(texts, i) for i, name in enumerate(("prompt", "generation", "reference"))},
            "logged": {
                "rouge": _column(log, "rougeL_recall", key, _number),
                "truth_ratio": _column(log, "truth_ratio", key, _bounded(split)),
            },
        }
    return splits, [repr(key)[:80] for key in raw if key not in TOFU_SPLITS][:20]


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
            take(key, split, "truth_ratio", "score", _bounded(split), True)
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
    return splits, [repr(key)[:80] for key in raw if key not in read][:20]


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
    for key in found:
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
            raise InputError(f"{where}: {key[:40]!r} is no row number")
    return {int(key): found[key] for key in sorted(found, key=int)}


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


def _bounded(split: str) -> Callable[[Any, str], float | None]:
    """A reader of R = wrong / true that gives the form that is better when higher, as metrics.truth_ratio does."""

    def read(value: Any, where: str) -> float | None:
        ratio = _number(value, where)
        if ratio is None or ratio < 0:
            return None
        return min(ratio, 1 / ratio if ratio > 1 else 1.0) if split == "forget" else max(0.0, 1 - ratio)

    return read


def _text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise InputError(f"{where} is no text of at most {MAX_TEXT:,} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{where} holds half a character (a lone surrogate)")
    return value


def _triple(value: Any, where: str) -> list[str | None]:
    if not isinstance(value, list) or len(value) != 3:
        raise InputError(f"{where} is no list of prompt, generation and reference")
    return [_text(item, where) for item in value]


def _part(rows: Rows, index: int) -> Rows:
    return {row: value[index] for row, value in rows.items()}


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
