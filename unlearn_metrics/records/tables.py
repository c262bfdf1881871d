"""Documents as two Parquet tables, of token scores and of texts: written, and read from anyone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unlearn_metrics.documents import (
    TOKEN_SCORE_FIELDS,
    UNKNOWN,
    Document,
    MeanLoss,
    Observations,
    TokenScores,
    loss_of,
)
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.records import parquet
from unlearn_metrics.records.folder import TEXTS, TOKENS

SCORED_ROLES = (
    *("answer", "paraphrased_question", "true_answer", "wrong_answers"),
    *("judged_generation", "self_judged_generation"),
)
# of documents from others: more splits than any benchmark has, texts that take long to compare
MAX_SPLITS, MAX_TEXT = 1_000, 100_000
# a log-probability is computed in float32, so that of a certain token may end up a little above 0
ROUNDING, MAX_NUMBER = 0.01, 3.5e38

TEXT_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "cluster": int}
TEXT_COLUMNS |= dict.fromkeys(("question", "prompt", "reference", "generation"), str) | {"revealed": int}
TEXT_COLUMNS |= {"clean_probability": float, "gradient": float}
MOMENTS = ("mean", "variance")
LOGGED = "logged_"  # + a metric's name: its value in the log that a record was imported from
TOKEN_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "role": str, "index": int, "loss": float}
TOKEN_COLUMNS |= dict.fromkeys(TOKEN_SCORE_FIELDS, list)
_ARROW = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def by_split(table: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """(model, split) -> its rows, in their order."""
    if not len(table):
        return {}
    models, splits = (_words(table, name) for name in ("model", "split"))
    pairs = models[1] * len(splits[0]) + splits[1]
    edges = np.flatnonzero(np.diff(pairs, prepend=-1, append=-1))
    if len(edges) - 1 > len(np.unique(pairs)):  # other hands than `save` may have written it
        return by_split(table.take(np.argsort(pairs, kind="stable")).combine_chunks())
    return {
        (models[0][models[1][start]], splits[0][splits[1][start]]): table.slice(start, stop - start)
        for start, stop in itertools.pairwise(edges.tolist())
    }


def _words(table: pa.Table, name: str) -> tuple[list[str], NDArray[np.integer]]:
    """(strings of a column, the place there of each row's): equal ones have one place, even if a file has two."""
    column = table.column(name).chunk(0)
    words: list[str] = column.dictionary.to_pylist()
    places: dict[str, int] = {}
    first = np.array([places.setdefault(word, place) for place, word in enumerate(words)])
    return words, first[column.indices.to_numpy()]


def documents(folder: Path, model: str, split: str, texts: pa.Table, tokens: pa.Table | None) -> list[Document]:
    """The documents of a split of a model from its rows of both tables. folder: for messages."""
    by_id: dict[int, Document] = {}
    names = [n for n in texts.column_names if n not in ("model", "split") and texts.column(n).null_count < len(texts)]
    own, logged = [n for n in names if not n.startswith(LOGGED)], [n for n in names if n.startswith(LOGGED)]
    for row in zip(*(_plain(texts, name) for name in own), strict=True):
        document: Document = {"split": split} | {
            n: found for n, found in zip(own, row, strict=True) if found is not None
        }
        if "generation" in document:
            document["judged_generation"] = None
        if max(len(document.get("reference", "")), len(document.get("generation", ""))) > MAX_TEXT:
            raise InputError(f"{folder / TEXTS}: a text has more than {MAX_TEXT:,} characters")
        if not 0 <= document.get("clean_probability", 0) <= 1:
            raise InputError(f"{folder / TEXTS}: {document['clean_probability']:g} is no probability")
        if not 0 <= document.get("gradient", 0) <= MAX_NUMBER:
            raise InputError(f"{folder / TEXTS}: {document['gradient']:g} is no norm of a gradient")
        if by_id.setdefault(document["id"], document) is not document:
            raise InputError(f"{folder / TEXTS}: document {document['id']} of {model}, {split[:80]} is there twice")
    for name in logged:
        for document, figure in zip(by_id.values(), _plain(texts, name), strict=True):
            if figure is not None and not abs(figure) <= MAX_NUMBER:
                raise InputError(f"{folder / TEXTS}: {name} is {figure:g}, which is no figure")
            if figure is not None:
                document.setdefault("logged", {})[name.removeprefix(LOGGED)] = figure
    if tokens is None:
        return list(by_id.values())
    scored = _token_scores(tokens, folder / TOKENS)
    for number, role, scores in zip(_plain(tokens, "id"), _plain(tokens, "role"), scored, strict=True):
        named = by_id.get(number)
        if named is None or role not in SCORED_ROLES:
            which = f"{(model, split, number)} {role!r}"[:200]
            raise InputError(f"{folder / TOKENS} holds token scores of no known document or role: {which}")
        if role == "wrong_answers":
            named.setdefault(role, []).append(scores)
            continue
        if named.get(role) is not None:
            raise InputError(f"{folder / TOKENS}: {f'{(model, split, number)} {role!r}'[:200]} is there twice")
        named[role] = scores
    for document in by_id.values() if "revealed" in own else ():
        answer = document.get("answer")
        length = len(answer) if isinstance(answer, TokenScores) else np.inf
        if not 0 <= document.get("revealed", 0) <= length:
            raise InputError(f"{folder / TEXTS}: revealed is more than an answer has, or less than nothing")
    return list(by_id.values())


def read(path: Path, foreign: Iterable[str] = (), but: Collection[str] = ()) -> pa.Table:
    wanted = TEXT_COLUMNS if path.name == TEXTS else TOKEN_COLUMNS
    columns = {name: parquet.STRING if kind is str else _type(name, kind) for name, kind in wanted.items()}
    columns |= {LOGGED + name: pa.float64() for name in ([*METRICS, *foreign] if path.name == TEXTS else ())}
    keys = ("model", "split", "id", "cluster" if path.name == TEXTS else "role")
    table = parquet.read(path, columns, [*keys, *(TOKEN_SCORE_FIELDS if path.name == TOKENS else ())], but)
    for name in keys:
        if table.column(name).null_count:
            raise InputError(f"{path}: column '{name}' has rows without a value")
    return table


def _type(name: str, kind: type) -> pa.DataType:
    return pa.list_(_element(name)) if kind is list else _ARROW[kind]


def _element(name: str) -> pa.DataType:
    return pa.int32() if TOKEN_SCORE_FIELDS[name] is np.int32 else pa.float32()


def _plain(table: pa.Table, name: str) -> list[Any]:
    """A column as a list; equal strings are one object where many are equal."""
    column = table.column(name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if pa.types.is_dictionary(column.type) and len(column.dictionary) > len(column):  # of other splits, too
        column = column.cast(column.type.value_type)
    if not len(column) or not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    words = [*column.dictionary.to_pylist(), None]
    return [words[i] for i in column.indices.fill_null(-1).to_pylist()]


class _Columns:
    """Token scores of many answers end to end: of answer i, [starts[i], starts[i + 1]) of each field.

    What metrics take of an answer is found for all of them at once; for one without a token it means nothing.
    """

    def __init__(self, starts: NDArray[np.integer], fields: Mapping[str, NDArray[Any]]) -> None:
        self.starts, self.fields, self.places = starts, fields, starts.tolist()
        self.ends = starts[1:] - 1  # where end-of-sequence is

    @cached_property
    def _misses(self) -> NDArray[np.integer]:
        """-1, then where m_i is false, or end-of-sequence is not the arg-max."""
        return np.append(-1, np.flatnonzero(self.fields["argmax"] != self.fields["tokens"]))

    @cached_property
    def hits(self) -> list[int]:
        first, behind = (np.searchsorted(self._misses, edges) for edges in (self.starts[:-1], self.ends))
        return (self.ends - self.starts[:-1] - (behind - first)).tolist()

    @cached_property
    def last_miss(self) -> list[int]:
        last = self._misses[np.searchsorted(self._misses, self.ends) - 1]
        return np.maximum(last + 1 - self.starts[:-1], 0).tolist()

    @cached_property
    def all_known(self) -> list[bool]:
        unknown = np.flatnonzero(self.fields["argmax"] == UNKNOWN)
        return np.equal(*(np.searchsorted(unknown, edges) for edges in (self.starts[:-1], self.ends))).tolist()

    @cached_property
    def _sums(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(sums of each answer's log-probabilities in units of 2^-42, whether that is exact).

        Where all terms are whole numbers (as in most answers) below 2^53 in all, any order of adding is exact.
        """
        there = np.flatnonzero(np.diff(self.starts))
        scaled = self.fields["logprob"].astype(np.float64) * 2.0**42
        sums, exact = np.zeros(len(self.ends)), np.zeros(len(self.ends), bool)
        if len(there):
            begin = self.starts[there]
            with np.errstate(invalid="ignore"):
                sums[there] = np.add.reduceat(scaled, begin) + 0.0  # fsum knows no -0
                exact[there] = np.logical_and.reduceat(scaled == np.rint(scaled), begin)
                exact[there] &= np.add.reduceat(abs(scaled), begin) < 2.0**53
        return sums, exact

    @cached_property
    def loss(self) -> list[float]:
        sums, exact = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            losses = (-sums / 2.0**42 / np.diff(self.starts)).tolist()
        for i in np.flatnonzero(~exact & (np.diff(self.starts) > 0)).tolist():
            losses[i] = loss_of(self.fields["logprob"][self.places[i] : self.places[i + 1]].tolist())
        return losses

    @cached_property
    def text_loss(self) -> list[float | None]:
        """None where it has to be summed up by itself."""
        sums, exact = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            rest = sums - self.fields["logprob"][self.ends].astype(np.float64) * 2.0**42
            losses = (-rest / 2.0**42 / (np.diff(self.starts) - 1)).tolist()
        return [loss if known else None for loss, known in zip(losses, exact.tolist(), strict=True)]


class _Stored(TokenScores):
    """An answer of _Columns, cut out when asked for: most metrics take figures of it alone."""

    __slots__ = ("columns", "row")
    __setattr__ = object.__setattr__

    def __init__(self, columns: _Columns, row: int) -> None:
        self.columns, self.row = columns, row

    def __len__(self) -> int:
        places, row = self.columns.places, self.row
        return places[row + 1] - places[row] - 1

    loss = property(lambda self: self.columns.loss[self.row])
    hits = property(lambda self: self.columns.hits[self.row])
    last_miss = property(lambda self: self.columns.last_miss[self.row])
    all_known = property(lambda self: self.columns.all_known[self.row])

    @property
    def text_loss(self) -> float:
        known = self.columns.text_loss[self.row]
        return loss_of(self.logprob[:-1].tolist()) if known is None else known

    def __getattr__(self, name: str) -> Any:
        if name not in TOKEN_SCORE_FIELDS:
            raise AttributeError(name)
        start, stop = self.columns.places[self.row : self.row + 2]
        found = self.__dict__[name] = self.columns.fields[name][start:stop]
        return found


def _token_scores(table: pa.Table, path: Path) -> Iterable[TokenScores | MeanLoss]:
    """One for each row. A column that was not read is empty in each."""
    columns = [table.column(name).chunk(0) for name in TOKEN_SCORE_FIELDS if name in table.column_names]
    offsets = [column.offsets.to_numpy() for column in columns]
    starts = offsets[0] - offsets[0][0]
    if any(not np.array_equal(found - found[0], starts) for found in offsets):
        raise InputError(f"{path}: the lists of a row differ in length")
    values = [column.flatten() for column in columns]
    if any(column.null_count for column in values):
        raise InputError(f"{path}: a list holds a null")
    flat = [column.to_numpy() for column in values]
    flat += [flat[-1][:0]] * (len(TOKEN_SCORE_FIELDS) - len(flat))
    logprob, *moments = flat[2:]
    if (logprob > ROUNDING).any():
        raise InputError(f"{path}: a log-probability is above 0")
    if any(np.isinf(values).any() for values in moments):
        raise InputError(f"{path}: a mean or variance is infinite")
    stored = _Columns(starts, dict(zip(TOKEN_SCORE_FIELDS, flat, strict=True)))
    losses = _plain(table, "loss") if "loss" in table.column_names else [None] * len(table)
    for row, (length, loss) in enumerate(zip(np.diff(starts).tolist(), losses, strict=True)):
        if loss is not None and not 0 <= loss <= MAX_NUMBER:
            raise InputError(f"{path}: {loss:g} is no mean loss")
        elif loss is None and length < 2:
            raise InputError(f"{path}: an answer without tokens")
        yield _Stored(stored, row) if loss is None else MeanLoss(loss)


def _rows(observations: Observations) -> Iterable[tuple[str, str, Document]]:
    for model, splits in observations.items():
        for split, documents in splits.items():
            for document in documents:
                yield model, split, document


def of_tokens(observations: Observations) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for model, split, document in _rows(observations):
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
    logged = sorted({name for _, _, document in _rows(observations) for name in document.get("logged", ())})
    rows = [
        {"model": model, "split": split}
        | {name: document.get(name) for name in TEXT_COLUMNS if name not in ("model", "split")}
        | {LOGGED + name: document.get("logged", {}).get(name) for name in logged}
        for model, split, document in _rows(observations)
    ]
    schema = [(n, _ARROW[kind]) for n, kind in TEXT_COLUMNS.items()] + [(LOGGED + n, pa.float64()) for n in logged]
    return pa.Table.from_pylist(rows, pa.schema(schema))
