"""Documents as two Parquet tables, of token scores and of texts: written, and read from anyone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unlearn_metrics.documents import (
    MAX_TEXT,
    OBSERVED,
    TOKEN_SCORE_FIELDS,
    Document,
    MeanLoss,
    Observations,
    TokenScores,
)
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.observations import OBSERVATIONS
from unlearn_metrics.record import MODELS, attack_of
from unlearn_metrics.records import parquet
from unlearn_metrics.records.folder import TEXTS, TOKENS

# models and splits of older records -> their names today
RENAMED = {"uncontrolled": "unlearned"} | {name: f"forget_{name}" for name in ("wmdp_bio", "wmdp_cyber", "wmdp_chem")}
SCORED_ROLES = tuple(name for name, it in OBSERVATIONS.items() if it.kind is TokenScores)
MAX_SPLITS = 1_000  # of documents from others: more than any benchmark has
# a log-probability is computed in float32, so that of a certain token may end up a little above 0
ROUNDING, MAX_NUMBER = 0.01, 3.5e38

TEXT_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "cluster": int}
TEXT_COLUMNS |= dict.fromkeys(("question", "prompt", "reference", "kind"), str)
TEXT_COLUMNS |= {name: it.kind for name, it in OBSERVATIONS.items() if it.kind is not TokenScores}
LOGGED = "logged_"  # + a metric's name: its value in the log that a record was imported from
TOKEN_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "role": str, "index": int, "loss": float}
TOKEN_COLUMNS |= dict.fromkeys(TOKEN_SCORE_FIELDS, list)
_ARROW = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def load(folder: Path, foreign: Iterable[str] = ()) -> Observations:
    """The documents in both tables of a folder, in the order of their rows. foreign: metrics of other lm-eval tasks."""
    observations: Observations = {}
    by_id: dict[tuple[str, str, int], Document] = {}
    layers: dict[str, int] = {}
    for row in _rows(read(folder / TEXTS, foreign)):
        model, split = (RENAMED.get(row[name], row[name]) for name in ("model", "split"))
        if attack_of(model)[0] not in MODELS:
            raise InputError(f"{folder / TEXTS} has an unknown model '{model[:80]}'")
        del row["model"]
        row["split"] = split
        logged = {name.removeprefix(LOGGED): row.pop(name) for name in [*row] if name.startswith(LOGGED)}
        document: Document = row | ({"logged": logged} if logged else {})
        if "generation" in document:
            document["judged_generation"] = None
        if max(len(document.get("reference", "")), len(document.get("generation", ""))) > MAX_TEXT:
            raise InputError(f"{folder / TEXTS}: a text has more than {MAX_TEXT:,} characters")
        for name, it in OBSERVATIONS.items():
            if it.kind is float and not 0 <= document.get(name, 0) <= it.high:
                raise InputError(f"{folder / TEXTS}: {name} is {document[name]:g}, not between 0 and {it.high:g}")
            if it.kind is list and name in document:
                known = all(drop is not None and math.isfinite(drop) for drop in document[name])
                if not known or not 0 < len(document[name]) == layers.setdefault(name, len(document[name])):
                    raise InputError(f"{folder / TEXTS}: {name} is not a finite number for each of the same layers")
        for name, value in logged.items():
            if not abs(value) <= MAX_NUMBER:
                raise InputError(f"{folder / TEXTS}: {LOGGED}{name} is {value:g}, which is no value")
        if by_id.setdefault((model, split, document["id"]), document) is not document:
            raise InputError(f"{folder / TEXTS}: document {document['id']} of {model}, {split[:80]} is there twice")
        observations.setdefault(model, {}).setdefault(split, []).append(document)
        if len(observations[model]) > MAX_SPLITS:
            raise InputError(f"{folder / TEXTS} has more than {MAX_SPLITS:,} splits")
    tokens = read(folder / TOKENS)
    keys = (_plain(tokens.column(name)) for name in ("model", "split", "id", "role"))
    for model, split, number, role, scores in zip(*keys, _scores(tokens, folder), strict=True):
        key = RENAMED.get(model, model), RENAMED.get(split, split), number
        document = by_id.get(key, {})
        if not document or role not in SCORED_ROLES:
            raise InputError(
                f"{folder / TOKENS} holds token scores of no known document or role: {f'{key} {role!r}'[:200]}"
            )
        if role == "wrong_answers":
            document.setdefault(role, []).append(scores)
        elif document.get(role) is not None:
            raise InputError(f"{folder / TOKENS}: {f'{key} {role!r}'[:200]} is there twice")
        else:
            document[role] = scores
    for document in by_id.values():
        if not 0 <= document.get("revealed", 0) <= _length(document):
            raise InputError(f"{folder / TEXTS}: revealed is more than an answer has, or less than nothing")
    return observations


def _length(document: Document) -> float:
    answer = document.get("answer")
    return len(answer) if isinstance(answer, TokenScores) else math.inf


def _rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    """Each row without its nulls. Equal strings are one object."""
    columns = [_plain(table.column(name)) for name in table.column_names]
    for row in zip(*columns, strict=True):
        yield {name: found for name, found in zip(table.column_names, row, strict=True) if found is not None}


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if not len(column) or not pa.types.is_dictionary(column.type):
        return list(column.to_pylist() if column.null_count else column.to_numpy().tolist())
    words = [*column.chunk(0).dictionary.to_pylist(), None]
    return [words[i] for i in column.chunk(0).indices.fill_null(-1).to_pylist()]


def _scores(table: pa.Table, folder: Path) -> Iterable[TokenScores | MeanLoss]:
    """One for each row."""
    path = folder / TOKENS
    there = [name for name in TOKEN_SCORE_FIELDS if name in table.column_names]
    columns = [table.column(name).combine_chunks() for name in there]
    columns = [c.chunk(0) if isinstance(c, pa.ChunkedArray) and c.num_chunks else c for c in columns]
    starts = [c.offsets.to_numpy() - c.offsets.to_numpy()[0] for c in columns]
    if any(not np.array_equal(found, starts[0]) for found in starts):
        raise InputError(f"{path}: the lists of a row differ in length")
    lists = [c.flatten() for c in columns]
    if any(c.null_count for c in lists):
        raise InputError(f"{path}: a list holds a null")
    fields = [c.to_numpy() for c in lists]
    _, _, logprob, *moments = fields[: len(OBSERVED)]
    if any((values > ROUNDING).any() for values in (logprob, *fields[len(OBSERVED) :])):
        raise InputError(f"{path}: a log-probability is above 0")
    if any(np.isinf(values).any() for values in moments):
        raise InputError(f"{path}: a mean or variance is infinite")
    losses = _plain(table.column("loss")) if "loss" in table.column_names else [None] * len(table)
    for (start, stop), loss in zip(itertools.pairwise(starts[0].tolist()), losses, strict=True):
        if loss is not None and not 0 <= loss <= MAX_NUMBER:
            raise InputError(f"{path}: {loss:g} is no mean loss")
        if loss is None and stop - start < 2:
            raise InputError(f"{path}: an answer without tokens")
        found = {name: field[start:stop] for name, field in zip(there, fields, strict=True)}
        yield TokenScores(**found) if loss is None else MeanLoss(loss)


def read(path: Path, foreign: Iterable[str] = ()) -> pa.Table:
    """One of the two tables."""
    wanted = TEXT_COLUMNS if path.name == TEXTS else TOKEN_COLUMNS
    columns = {name: parquet.STRING if kind is str else _type(name, kind) for name, kind in wanted.items()}
    columns |= {LOGGED + name: pa.float64() for name in ([*METRICS, *foreign] if path.name == TEXTS else ())}
    keys = ("model", "split", "id", "cluster" if path.name == TEXTS else "role")
    table = parquet.read(path, columns, [*keys, *(OBSERVED if path.name == TOKENS else ())])
    for name in keys:
        if table.column(name).null_count:
            raise InputError(f"{path}: column '{name}' has rows without a value")
    return table


def _type(name: str, kind: type) -> pa.DataType:
    return pa.list_(_element(name)) if kind is list else _ARROW[kind]


def _element(name: str) -> pa.DataType:
    return pa.int32() if TOKEN_SCORE_FIELDS.get(name) is np.int32 else pa.float32()


def _each(observations: Observations) -> Iterable[tuple[str, str, Document]]:
    for model, splits in observations.items():
        for split, documents in splits.items():
            for document in documents:
                yield model, split, document


def of_tokens(observations: Observations) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for model, split, document in _each(observations):
        for role in SCORED_ROLES:
            found = document.get(role)
            for index, scores in enumerate(found if isinstance(found, list) else [found]):
                if scores is None:
                    continue
                row = {"model": model, "split": split, "id": document["id"], "role": role, "index": index}
                if isinstance(scores, MeanLoss):
                    rows.append(row | {"loss": scores.loss} | dict.fromkeys(TOKEN_SCORE_FIELDS, ()))
                else:
                    rows.append(row | {name: getattr(scores, name) for name in TOKEN_SCORE_FIELDS})
    schema = [(n, _type(n, kind)) for n, kind in TOKEN_COLUMNS.items()]
    return pa.Table.from_pylist(rows, pa.schema(schema))


def of_texts(observations: Observations) -> pa.Table:
    logged = sorted({name for _, _, document in _each(observations) for name in document.get("logged", ())})
    rows = [
        {"model": model, "split": split}
        | {name: document.get(name) for name in TEXT_COLUMNS if name not in ("model", "split")}
        | {LOGGED + name: document.get("logged", {}).get(name) for name in logged}
        for model, split, document in _each(observations)
    ]
    schema = [(n, _type(n, kind)) for n, kind in TEXT_COLUMNS.items()] + [(LOGGED + n, pa.float64()) for n in logged]
    return pa.Table.from_pylist(rows, pa.schema(schema))
