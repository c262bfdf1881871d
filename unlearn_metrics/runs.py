"""A run on disk: record.json, token_scores.parquet, generations.parquet. Save and load; the scores of documents."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from unlearn_metrics import curve, parquet, signature, stats
from unlearn_metrics.composites import COMPOSITES, compose
from unlearn_metrics.folder import CURVE, RECORD, TEXTS, TOKENS, claim, prepared
from unlearn_metrics.metrics import METRICS, values
from unlearn_metrics.types import (
    TOKEN_SCORE_FIELDS,
    Document,
    InputError,
    MeanLoss,
    Observations,
    RunRecord,
    Score,
    Scores,
    TokenScores,
    first_line,
    loss_of,
)

SCHEMA = "unlearn-metrics/record/2"
RECORD_TYPE = TypeAdapter(RunRecord)
SCORED_ROLES = (
    *("answer", "paraphrased_question", "true_answer", "wrong_answers"),
    *("judged_generation", "self_judged_generation"),
)
MODELS = ("original", "uncontrolled", "controlled", "retain_only")
ABILITY = re.compile(r"[\w-]{1,100}\.[\w.,@=-]{1,100}", re.ASCII)  # a metric of another lm-eval task: TASK.METRIC
MAX_RECORD_BYTES = 1 << 26
# of documents from others: more splits than any benchmark has, texts that take long to compare
MAX_SPLITS, MAX_TEXT = 1_000, 100_000
# a log-probability is computed in float32, so that of a certain token may end up a little above 0
ROUNDING, MAX_NUMBER = 0.01, 3.5e38


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """(calibrating, held-out): every other document, so that both halves hold every author alike."""
    return list(documents[0::2]), list(documents[1::2])


def score_split(
    documents: Sequence[Document], names: Iterable[str], seed: int
) -> tuple[dict[str, Score], dict[str, list[float]]]:
    """(metric -> Score, metric -> its value for each document). Clusters of documents are resampled together, alike for
    all metrics."""
    found = values(list(names), documents)
    clusters = np.array([d["cluster"] for d in documents])
    figures = np.array(list(found.values())).reshape(len(found), len(documents))
    scored = stats.scores(figures, clusters, seed, [name in METRICS and METRICS[name].geometric for name in found])
    return dict(zip(found, scored, strict=True)), found


def score_all(
    observations: Observations, metrics: Mapping[str, Mapping[str, Iterable[str]]], seed: int, benchmark: str = ""
) -> tuple[Scores, dict[str, dict[str, Score]]]:
    """(scores, composites) of all models. metrics: model -> split -> the metrics wanted."""
    scores: Scores = {model: {} for model in observations}
    known: Observations = {model: {} for model in observations}
    for model, splits in observations.items():
        for split, documents in splits.items():
            scores[model][split], found = score_split(documents, metrics[model][split], seed)
            rows = zip(*found.values(), strict=True) if found else ((),) * len(documents)
            known[model][split] = [
                d | {"logged": d.get("logged", {}) | dict(zip(found, row, strict=True))}
                for d, row in zip(documents, rows, strict=True)
            ]
    return scores, {model: score_composites(known, model, seed, benchmark) for model in known}


def score_composites(known: Observations, model: str, seed: int, benchmark: str) -> dict[str, Score]:
    """name -> Score of a model's composites. known: documents, what was computed of them as if
    it had been logged."""
    try:
        return compose(known[model], known.get("retain_only"), known.get("original"), seed, benchmark)
    except ValueError as error:
        raise InputError(f"the retain-only model was asked something else: {error}") from None


def record_schema() -> dict[str, Any]:
    """JSON Schema of record.json, from the types. Also at record.schema.json in the package."""
    schema = RECORD_TYPE.json_schema()
    schema["properties"]["schema"] = {"const": SCHEMA, "title": "Schema", "type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "unlearn-metrics run record"} | schema


def save(out: Path, record: RunRecord, observations: Observations, overwrite: bool = False) -> None:
    """Write a run to a folder that nobody holds."""
    with claim(out, overwrite):
        put(out, record, observations)


def put(out: Path, record: RunRecord, observations: Observations) -> None:
    """Write a run to a folder that is claimed: record, tables, and of `select` the curve of its trajectory.

    record.json comes last and vouches for the rest.
    """
    text = RECORD_TYPE.dump_json(record, indent=2) + b"\n"
    tokens, texts = _token_table(observations), _text_table(observations)
    picture = curve.svg(record)
    with (
        prepared(out / RECORD, lambda file: file.write(text)),
        prepared(out / TEXTS, lambda file: pq.write_table(texts, file, compression="zstd")),
        prepared(out / TOKENS, lambda file: pq.write_table(tokens, file, compression="zstd")),
        prepared(out / CURVE, lambda file: file.write(picture)) if picture else contextlib.nullcontext(),
    ):
        (out / RECORD).unlink(missing_ok=True)
        (out / CURVE).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The JSON in a file from anyone. InputError if it is none, is too large, or says a key twice."""
    return _parsed(path, _bytes(path))


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise InputError(f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"{path} is too large: it has more than {MAX_RECORD_BYTES >> 20} MiB")
    return data


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {first_line(error)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Which of two equal keys counts is not defined, so readers would disagree."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def load_record(folder: Path) -> RunRecord:
    """Read and validate a run's record.json (or a record.json itself). InputError says what is wrong with it."""
    path = folder / RECORD if folder.is_dir() else folder
    if not path.exists():
        raise InputError(f"{folder} holds no run: there is no {RECORD}")
    data = _bytes(path)
    raw = _parsed(path, data)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found == "unlearn-metrics/record/1":
        data = json.dumps(_from_1(raw)).encode()
    elif found != SCHEMA:
        raise InputError(f"{path} has schema {str(found)[:80]!r}; this version reads {SCHEMA!r} and record/1")
    try:
        record = RECORD_TYPE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:200] or "top level"
        raise InputError(f"{path} is not a valid record: {where}: {first['msg']}") from None
    except RecursionError:
        raise InputError(f"{path} is not a valid record: it is nested too deeply") from None
    _check(path, record)
    return record


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 (version 0.1.0 before publishing): what it did not hold is unknown."""
    unlearned = raw.get("checkpoints", {}) if isinstance(raw.get("checkpoints"), dict) else {}
    path = unlearned.get("unlearned", {})
    name = str(path.get("path", "unknown")) if isinstance(path, dict) else "unknown"
    return raw | {"schema": SCHEMA, "name": name, "composites": {}, "prompts": {}, "git": None, "imported": None}


def _check(path: Path, record: RunRecord) -> None:
    """What the types can't say: names that we know, and claims that do not contradict each other."""
    scored = [name for splits in record.scores.values() for metrics in splits.values() for name in metrics]
    named: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("model", record.scores, MODELS),
        ("model", record.composites, MODELS),
        ("metric", scored, METRICS.keys() | record.ability.keys()),
        ("composite", [name for names in record.composites.values() for name in names], COMPOSITES),
    ]
    for what, names, known in named:
        for name in names:
            if name not in known:
                raise InputError(f"{path} has an unknown {what} '{name[:80]}'; a newer version may know it")
    for name in record.ability:
        if name in METRICS or not ABILITY.fullmatch(name):
            raise InputError(f"{path} is not a valid record: '{name[:80]}' is no TASK.METRIC of another lm-eval task")
    for contradiction in _contradictions(record):
        raise InputError(f"{path} is not a valid record: {contradiction}")


def _contradictions(record: RunRecord) -> Iterable[str]:
    """Where a record disagrees with itself, in words."""
    fields, control = signature.parse(record.signature), record.control
    if fields["benchmark"] != record.benchmark:
        yield "its signature is of another benchmark"
    if ("src" in fields) != (record.imported is not None):
        yield "its signature and 'imported' disagree on whether it was imported"
    if "ctl" in fields and (fields["ctl"] == "none") != (control.method == "none"):
        yield "its signature and 'control' disagree on whether there was a control"
    if control.keep is not None and not 0 < control.keep <= 1:
        yield f"control keeps a share of {control.keep:g}"
    _, keeps, kept = fields.get("ctl", "").rpartition(".keep")
    if (kept if keeps else "") != ("" if control.keep is None else f"{control.keep:g}"):
        yield "its signature and 'control' disagree on the share of retention that was kept"
    elif keeps and control.metric is not None and fields["ctl"] != signature.ctl(control):
        yield "its signature and 'control' disagree on what was kept"
    if control.method == "none" and (control.alpha != 1 or "controlled" in record.scores):
        yield "it has no control, but a controlled model"
    groups: list[tuple[str, bool, Mapping[str, Score]]] = [
        *((f"{m}, {split}", True, scores) for m, splits in record.scores.items() for split, scores in splits.items()),
        *((m, False, scores) for m, scores in record.composites.items()),
    ]
    for where, one_split, scores in groups:
        for name, score in scores.items():
            low, high = score.ci_low, score.ci_high
            if score.n == 0 and (score.value, low, high) != (None, None, None):
                yield f"{where[:80]}: {name} has a value, but no document"
            if (low is None) != (high is None) or (low is not None and high is not None and low > high):
                yield f"{where[:80]}: {name} has no interval from {low} to {high}"
        if one_split and len({score.n + score.unscored for score in scores.values()}) > 1:
            yield f"{where[:80]}: its metrics count different documents"


# --- documents: two Parquet tables ---------------------------------------------------------------------------------

TEXT_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "cluster": int}
TEXT_COLUMNS |= dict.fromkeys(("question", "prompt", "reference", "generation"), str) | {"revealed": int}
TEXT_COLUMNS |= {"clean_probability": float, "gradient": float}
MOMENTS = ("mean", "variance")
LOGGED = "logged_"  # + a metric's name: its value in the log that a record was imported from
TOKEN_COLUMNS: dict[str, type] = {"model": str, "split": str, "id": int, "role": str, "index": int, "loss": float}
TOKEN_COLUMNS |= dict.fromkeys(TOKEN_SCORE_FIELDS, list)
_ARROW = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def load_documents(folder: Path) -> Observations:
    """The documents of a run as they were scored, bit for bit. InputError if the files are not what `save` writes."""
    observations: Observations = {}
    for (model, split), read in load_splits(folder).items():
        observations.setdefault(model, {})[split] = read()
    return observations


def load_splits(folder: Path, moments: bool = True) -> dict[tuple[str, str], Callable[[], list[Document]]]:
    """(model, split) -> how to make its documents, the largest part of loading them, from the tables read here.

    moments: False leaves the mean and variance of log p unread, and empty in the token scores.
    """
    foreign = load_record(folder).ability if (folder / RECORD).exists() else ()
    texts = _by_split(_read(folder / TEXTS, foreign))
    tokens = _by_split(_read(folder / TOKENS, but=() if moments else MOMENTS))
    for model, count in Counter(model for model, _ in texts).items():
        if model not in MODELS:
            raise InputError(f"{folder / TEXTS} has an unknown model '{model[:80]}'")
        if count > MAX_SPLITS:
            raise InputError(f"{folder / TEXTS} has more than {MAX_SPLITS:,} splits")
    for key in tokens.keys() - texts.keys():
        raise InputError(f"{folder / TOKENS} holds token scores of no known document or role: {str(key)[:200]}")
    return {key: partial(_documents, folder, *key, table, tokens.get(key)) for key, table in texts.items()}


def _by_split(table: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """(model, split) -> its rows, in their order."""
    if not len(table):
        return {}
    models, splits = (_words(table, name) for name in ("model", "split"))
    pairs = models[1] * len(splits[0]) + splits[1]
    edges = np.flatnonzero(np.diff(pairs, prepend=-1, append=-1))
    if len(edges) - 1 > len(np.unique(pairs)):  # other hands than `save` may have written it
        return _by_split(table.take(np.argsort(pairs, kind="stable")).combine_chunks())
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


def _documents(folder: Path, model: str, split: str, texts: pa.Table, tokens: pa.Table | None) -> list[Document]:
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


def _read(path: Path, foreign: Iterable[str] = (), but: Collection[str] = ()) -> pa.Table:
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
    """A column as a list; equal strings are one object."""
    column = table.column(name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if not len(column) or not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    words = [*column.dictionary.to_pylist(), None]
    return [words[i] for i in column.indices.fill_null(-1).to_pylist()]


class _Stored(TokenScores):
    """A row of the columns, cut out of their buffers when asked for: most metrics take the loss alone."""

    __slots__ = ("columns", "loss", "start", "stop")
    __setattr__ = object.__setattr__

    def __init__(self, columns: Mapping[str, Any], start: int, stop: int, loss: float) -> None:
        self.columns, self.start, self.stop, self.loss = columns, start, stop, loss

    def __getattr__(self, name: str) -> Any:
        if name not in TOKEN_SCORE_FIELDS:
            raise AttributeError(name)
        found = self.__dict__[name] = self.columns[name][self.start : self.stop]
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
    whole = dict(zip(TOKEN_SCORE_FIELDS, flat, strict=True))
    logprob, *moments = flat[2:]
    if (logprob > ROUNDING).any():
        raise InputError(f"{path}: a log-probability is above 0")
    if any(np.isinf(values).any() for values in moments):
        raise InputError(f"{path}: a mean or variance is infinite")
    losses = _plain(table, "loss") if "loss" in table.column_names else [None] * len(table)
    begin, terms = 0, list[float]()  # of a part of the log-probabilities, as Python's numbers
    for start, stop, loss in zip(starts[:-1].tolist(), starts[1:].tolist(), losses, strict=True):
        if loss is not None and not 0 <= loss <= MAX_NUMBER:
            raise InputError(f"{path}: {loss:g} is no mean loss")
        elif loss is not None:
            yield MeanLoss(loss)
        elif stop - start < 2:
            raise InputError(f"{path}: an answer without tokens")
        else:
            if stop > begin + len(terms):
                begin, terms = start, logprob[start : stop + 100_000].tolist()
            yield _Stored(whole, start, stop, loss_of(terms[start - begin : stop - begin]))


def _rows(observations: Observations) -> Iterable[tuple[str, str, Document]]:
    for model, splits in observations.items():
        for split, documents in splits.items():
            for document in documents:
                yield model, split, document


def _token_table(observations: Observations) -> pa.Table:
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


def _text_table(observations: Observations) -> pa.Table:
    logged = sorted({name for _, _, document in _rows(observations) for name in document.get("logged", ())})
    rows = [
        {"model": model, "split": split}
        | {name: document.get(name) for name in TEXT_COLUMNS if name not in ("model", "split")}
        | {LOGGED + name: document.get("logged", {}).get(name) for name in logged}
        for model, split, document in _rows(observations)
    ]
    schema = [(n, _ARROW[kind]) for n, kind in TEXT_COLUMNS.items()] + [(LOGGED + n, pa.float64()) for n in logged]
    return pa.Table.from_pylist(rows, pa.schema(schema))
