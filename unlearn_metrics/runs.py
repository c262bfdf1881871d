"""A run on disk: record.json, token_scores.parquet, generations.parquet. Save, load, and scores from documents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from unlearn_metrics import stats
from unlearn_metrics.metrics import METRICS, Metric
from unlearn_metrics.types import TOKEN_SCORE_FIELDS, Document, InputError, RunRecord, Score, TokenScores

SCHEMA = "unlearn-metrics/record/1"
RECORD, TOKENS, TEXTS = "record.json", "token_scores.parquet", "generations.parquet"
RECORD_TYPE = TypeAdapter(RunRecord)
SCORED_ROLES = ("answer", "paraphrased_question", "true_answer", "wrong_answers", "judged_generation")

# model ("original", "uncontrolled", "controlled") -> split -> documents
Observations = dict[str, dict[str, list[Document]]]


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """(calibrating, held-out): every other document, so that both halves hold every author alike."""
    return list(documents[0::2]), list(documents[1::2])


def summarise(documents: Sequence[Document], metrics: Iterable[str], seed: int = 0) -> dict[str, Score]:
    """metric -> Score over the documents, clusters resampled together, one resampling for all metrics."""
    clusters = np.array([d["cluster"] for d in documents])
    weights = stats.bootstrap_weights(clusters, seed)

    def score(metric: Metric) -> Score:
        return stats.score(np.array([metric(d) for d in documents]), clusters, weights, metric.geometric)

    return {name: score(METRICS[name]) for name in metrics}


def check_out(out: Path, overwrite: bool) -> None:
    """InputError if `out` cannot take a run. Called before any work, and again before writing."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder for a run")
    if (out / RECORD).exists() and not overwrite:
        raise InputError(f"{out} already holds a run; choose another --out or pass --overwrite")
    if not (out / RECORD).exists() and out.is_dir() and any(out.glob("[!.]*")):
        raise InputError(f"{out} is not empty and holds no run; choose another --out")


def save(out: Path, record: RunRecord, observations: Observations, overwrite: bool = False) -> None:
    """Write a run. Each file is written under a hidden name first; record.json comes last and vouches for the rest."""
    check_out(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    partial = {name: out / f".{name}.partial-{os.getpid()}" for name in (TOKENS, TEXTS, RECORD)}
    try:
        pq.write_table(_token_table(observations), partial[TOKENS], compression="zstd")
        pq.write_table(_text_table(observations), partial[TEXTS], compression="zstd")
        partial[RECORD].write_bytes(RECORD_TYPE.dump_json(record, indent=2) + b"\n")
        (out / RECORD).unlink(missing_ok=True)
        for name, path in partial.items():
            os.replace(path, out / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # only if nothing was written
            out.rmdir()


def load_record(folder: Path) -> RunRecord:
    """Read and validate record.json. InputError if it is missing, of another schema, or not valid."""
    path = folder / RECORD
    try:
        record = RECORD_TYPE.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{folder} holds no run: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise InputError(f"{path} is not a valid record: {where}: {first['msg']}") from None
    if record.schema != SCHEMA:
        raise InputError(f"{path} has schema {record.schema!r}; this version reads {SCHEMA!r}")
    return record


def load_documents(folder: Path) -> Observations:
    """The documents of a run as they were scored, bit for bit."""
    observations: Observations = {}
    by_key: dict[tuple[str, str, int], Document] = {}
    try:
        texts, scores = pq.read_table(folder / TEXTS).to_pylist(), pq.read_table(folder / TOKENS).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{folder} has no readable documents: {error}") from None
    for row in texts:
        model, split = row.pop("model"), row.pop("split")
        document = {name: value for name, value in row.items() if value is not None} | {"split": split}
        if "generation" in document:
            document["judged_generation"] = None
        by_key[model, split, row["id"]] = document
        observations.setdefault(model, {}).setdefault(split, []).append(document)
    for row in scores:
        document = by_key[row["model"], row["split"], row["id"]]
        token_scores = TokenScores.from_lists([row[name] for name in TOKEN_SCORE_FIELDS])
        if row["role"] == "wrong_answers":
            document.setdefault("wrong_answers", []).append(token_scores)
        else:
            document[row["role"]] = token_scores
    return observations


def _rows(observations: Observations) -> Iterable[tuple[str, str, Document]]:
    for model, splits in observations.items():
        for split, documents in splits.items():
            for document in documents:
                yield model, split, document


def _token_table(observations: Observations) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for model, split, document in _rows(observations):
        for role in SCORED_ROLES:
            value = document.get(role)
            for index, scores in enumerate(value if isinstance(value, list) else [value]):
                if scores is not None:
                    key = {"model": model, "split": split, "id": document["id"], "role": role, "index": index}
                    rows.append(key | {name: getattr(scores, name) for name in TOKEN_SCORE_FIELDS})
    lists = [
        (name, pa.list_(pa.int32() if dtype is np.int32 else pa.float32()))
        for name, dtype in TOKEN_SCORE_FIELDS.items()
    ]
    keys = [("model", pa.string()), ("split", pa.string()), ("id", pa.int32()), ("role", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema([*keys, ("index", pa.int32()), *lists]))


def _text_table(observations: Observations) -> pa.Table:
    names = ("id", "cluster", "prompt", "reference", "generation")
    rows = [
        {"model": model, "split": split} | {name: document.get(name) for name in names}
        for model, split, document in _rows(observations)
    ]
    integers = ("id", "cluster")
    columns = [(name, pa.int32() if name in integers else pa.string()) for name in ("model", "split", *names)]
    return pa.Table.from_pylist(rows, pa.schema(columns))
