"""eval_log_aggregated.json of the TOFU authors' evaluator."""

from __future__ import annotations

from collections.abc import Mapping
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
    column,
    documents,
    logs_below,
    loss,
    losses,
    number,
    ratio,
    sha256,
    text,
    unread,
)
from unlearn_metrics.records import store

SPLITS = {
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
    "eval_log_forget.json": "forget",
}


def read(path: Path, benchmark: str | None) -> list[Log]:
    """A Log of the file, or of each such file below a folder. InputError for what is no such log."""
    return [_log(file, benchmark) for file in logs_below(path, ["*eval_log_aggregated.json"])]


def _log(file: Path, benchmark: str | None) -> Log:
    raw = store.read_json(file)
    try:
        if benchmark is not None and benchmark.startswith("muse"):
            raise InputError(f"it is a log of TOFU, not of {benchmark}")
        if "avg_gt_loss" in an_object(raw, "it"):
            raise InputError("it is of one task; give eval_log_aggregated.json, which lies beside it")
        splits, notes = _splits(raw)
        for split, fields in splits.items():
            notes += truth_ratio.settle(split, fields, authors=True)
        found = {
            split: documents(split, fields, AUTHOR if split in ("forget", "retain") else 1)
            for split, fields in splits.items()
        }
        if not any(found.values()):
            raise InputError("it has none of the metrics that such a log has")
    except InputError as error:
        raise InputError(f"{file} is no log of tofu: {error}") from None
    return Log(file, sha256([file]), {split: docs for split, docs in found.items() if docs}, notes=notes)


def _splits(raw: Mapping[str, Any]) -> tuple[dict[str, Split], list[str]]:
    """eval_log_aggregated.json: file of a task -> column -> row -> value."""
    splits: dict[str, Split] = {}
    notes = []
    for key, split in SPLITS.items():
        if key not in raw:
            continue
        log = an_object(raw[key], key)
        texts = column(log, "generated_text", key, _texts)
        if more := sum(len(parts) > 3 for parts in texts.values()):
            notes.append(
                f"{key}: {more} of {len(texts)} texts have more parts than prompt, generation and reference: left out"
            )
        splits[split] = {
            "answer": column(log, "avg_gt_loss", key, loss),
            "true_answer": column(log, "avg_paraphrased_loss", key, loss),
            "wrong_answers": column(log, "average_perturb_loss", key, losses),
            **{name: _part(texts, i) for i, name in enumerate(("prompt", "generation", "reference"))},
            "logged": {
                "rouge": column(log, "rougeL_recall", key, number),
                "truth_ratio": column(log, "truth_ratio", key, ratio),
            },
        }
    return splits, [*notes, *unread(key for key in raw if key not in SPLITS)]


def _texts(value: Any, where: str) -> list[str | None]:
    """Prompt, generation and reference, and what else was logged beside them, unread."""
    if not isinstance(value, list) or len(value) < 3:
        raise InputError(f"{where} is no list of prompt, generation and reference")
    return [*(text(item, where) for item in value[:3]), *value[3:]]


def _part(rows: Rows, index: int) -> Rows:
    return {row: value[index] for row, value in rows.items()}
