"""samples_*.jsonl of lm-eval: the documents of this package's tasks, and per-document values of any others."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_metrics.benchmarks.data import SUBJECTS, clusters
from unlearn_metrics.documents import MAX_TEXT, OBSERVED, TOKEN_SCORE_FIELDS, Document, FlagScores, MeanLoss
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.imports.log import MAX_NUMBER, an_object, hashed, number, text
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.observations import OBSERVATIONS, layout, observed
from unlearn_metrics.records import store
from unlearn_metrics.records.tables import ROUNDING
from unlearn_metrics.splits import is_forget

MAX_SAMPLES, MAX_TOKENS = 100_000, 5_000_000  # of a checkpoint
MAX_LINE, MAX_ANSWERS = 1 << 26, 1_000
NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
AGREE = 1e-6


@dataclass
class Task:
    """A task of a run, as its results file has it; `file` holds its samples."""

    name: str
    config: Mapping[str, Any]
    higher: Mapping[str, Any]
    version: str
    shots: str
    file: Path

    @property
    def metadata(self) -> Mapping[str, Any]:
        found = self.config.get("metadata")
        return found if isinstance(found, dict) else {}

    @property
    def metrics(self) -> list[str]:
        """The metrics in its configuration."""
        listed = self.config.get("metric_list")
        entries = listed if isinstance(listed, list) else []
        return [str(entry.get("metric")) for entry in entries if isinstance(entry, dict)]

    @property
    def ours(self) -> bool:
        """Whether it is of this package's class: a split, and metrics that are all known here."""
        return isinstance(self.metadata.get("split"), str) and bool(self.metrics) and {*self.metrics} <= METRICS.keys()


@dataclass
class Left:
    """How much more a checkpoint's samples may hold."""

    samples: int = MAX_SAMPLES
    tokens: int = MAX_TOKENS

    def take(self, where: str, samples: int = 0, tokens: int = 0) -> None:
        self.samples, self.tokens = self.samples - samples, self.tokens - tokens
        if min(self.samples, self.tokens) < 0:
            raise InputError(f"{where}: more than {MAX_SAMPLES:,} samples or {MAX_TOKENS:,} tokens of a checkpoint")


def _samples(task: Task, left: Left) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, sample) of the lines of a samples file, each an object with a document's number."""
    try:
        with task.file.open("rb") as file:
            for count, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                where = f"{task.file}, line {count}"
                if len(line) > MAX_LINE:
                    raise InputError(f"{where}: more than {MAX_LINE >> 20} MiB in a line")
                left.take(where, samples=1)
                sample = an_object(store.parsed(where, line), where)
                place = sample.get("doc_id")
                if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < 1 << 31:
                    raise InputError(f"{where}: doc_id is no number of a document")
                yield where, sample
    except OSError as error:
        raise InputError(f"{task.file} cannot be read: {first_line(error)}") from None


def documents_of(task: Task, split: str, left: Left) -> tuple[list[Document], str, list[str]]:
    """(the documents of a task of this package, the hash of their data, how they were read)."""
    needs = {need for metric in task.metrics for need in METRICS[metric].needs}
    found: dict[int, tuple[Document, Mapping[str, Any]]] = {}
    for where, sample in _samples(task, left):
        doc, place = an_object(sample.get("doc"), f"{where}, doc"), sample["doc_id"]
        if place in found:
            raise InputError(f"{where}: document {place} is there twice")
        document = {"id": place, "split": split} | _texts(sample, doc, where) | _observed(sample, doc, needs, where)
        left.take(where, tokens=_tokens(document))
        logged = {metric: number(_plain(sample.get(metric)), f"{where}, {metric}") for metric in task.metrics}
        document["logged"] = {metric: value for metric, value in logged.items() if value is not None}
        found[place] = document, doc
    if not found:
        raise InputError(f"{task.file} holds no samples")
    ordered = [found[place] for place in sorted(found)]
    docs = [dict(doc) for _, doc in ordered]
    by, notes = _cluster(task, docs, split)
    for (document, _), cluster in zip(ordered, clusters(docs, by, sorted(found)), strict=True):
        document["cluster"] = cluster
    digest = hashlib.sha256()  # as TokenScoreTask.data_sha256 has it, of the documents that were asked
    for doc in docs:
        digest.update(repr(sorted(doc.items())).encode(errors="replace"))
    return [document for document, _ in ordered], digest.hexdigest(), notes


def _cluster(task: Task, docs: Sequence[Mapping[str, Any]], split: str) -> tuple[int | str | list[int], list[str]]:
    """(what makes clusters of the documents, see data.clusters; what to say of it)."""
    by = "cluster" if "cluster" in docs[0] else task.metadata.get("cluster", 1)
    if task.metadata.get("sample") is not None and by != "cluster":
        return 1, [f"{split}: a sample of the data; which documents share a cluster is not known, so none does"]
    if isinstance(by, int) and not isinstance(by, bool) and by > 0:
        return by, []
    if isinstance(by, list) and all(isinstance(place, int) for place in by):
        return sorted(by), []
    if not isinstance(by, str) or not all(isinstance(doc.get(by), (str, int)) for doc in docs):
        raise InputError(f"{task.file}: its documents lack the field that makes clusters of them")
    return by, []


def _texts(sample: Mapping[str, Any], doc: Mapping[str, Any], where: str) -> Document:
    found = {"question": doc.get("question"), "reference": doc.get("answer"), "kind": doc.get("kind")}
    found |= {"prompt": _asked(sample)}
    texts = {name: text(value, f"{where}, {name}") for name, value in found.items()}
    return {name: value for name, value in texts.items() if value is not None}


def _observed(sample: Mapping[str, Any], doc: Mapping[str, Any], needs: Collection[str], where: str) -> Document:
    """What the model's responses tell, of what a table can hold."""
    if any(it.several and not isinstance(doc.get(str(it.answer)), (list, type(None))) for it in OBSERVATIONS.values()):
        raise InputError(f"{where}: a field of several answers is no list")
    roles, responses = layout(needs, doc), sample.get("resps")
    count = sum(n for _, n in roles)
    if count > MAX_ANSWERS or not isinstance(responses, list) or len(responses) != count:
        raise InputError(f"{where}: resps has not the {count:,} responses that its metrics need")
    kinds = [OBSERVATIONS[role].kind for role, n in roles for _ in range(n)]
    values = [_response(one, kind, where) for one, kind in zip(responses, kinds, strict=True)]
    return _stored(observed(roles, values))


def _asked(sample: Mapping[str, Any]) -> Any:
    """The prompt of the first request, as lm-eval has it today, or had it."""
    return _first(_first(sample.get("arguments"), "gen_args_0"), "arg_0")


def _first(arguments: Any, key: str) -> Any:
    if isinstance(arguments, dict):
        return arguments.get(key)
    return arguments[0] if isinstance(arguments, list) and arguments else None


def _response(response: Any, kind: type, where: str) -> Any:
    """A response, of which lm-eval writes numbers as text, as the backend gave it."""
    if not isinstance(response, list) or len(response) != 1:
        raise InputError(f"{where}: a response is no list of one")
    (found,) = response
    if kind is str:
        if (found := text(found, f"{where}, resps")) is None:
            raise InputError(f"{where}: a generation is missing")
        return found
    if kind in (int, float):
        value = _number(found, where)
        if kind is int and not (value.is_integer() and 0 <= value < 1 << 31):
            raise InputError(f"{where}: {value:g} is no number of tokens")
        return kind(value)
    if not isinstance(found, list) or not all(isinstance(one, list) for one in found):
        raise InputError(f"{where}: a response is no list of token scores")
    if len(found) == 4:
        return _flags(found, where)
    lengths = {len(one) for one in found}
    counts = (len(OBSERVED), len(TOKEN_SCORE_FIELDS))
    if len(found) not in counts or len(lengths) > 1 or min(lengths) < 2 or max(lengths) > MAX_TEXT:
        raise InputError(f"{where}: token scores are no {counts[0]} or {counts[1]} lists of the same length")
    columns = [[_number(value, where) for value in one] for one in found]
    for values, dtype in zip(columns, TOKEN_SCORE_FIELDS.values(), strict=False):
        if dtype is np.int32 and not all(value.is_integer() and abs(value) < 1 << 31 for value in values):
            raise InputError(f"{where}: a token is no whole number")
    tokens, argmax, logprob, mean, variance, *drawn = columns
    high = any(value > ROUNDING for values in (logprob, *drawn) for value in values)
    if high or any(map(math.isinf, (*mean, *variance))):
        raise InputError(f"{where}: a log-probability is above 0, or a mean or variance infinite")
    return [list(map(int, tokens)), list(map(int, argmax)), logprob, mean, variance, *drawn]


def _flags(found: Sequence[Sequence[Any]], where: str) -> list[list[Any]]:
    """[[loss], [units], [revealed], [unit]], of backends without token scores."""
    if any(len(one) != 1 for one in found):
        raise InputError(f"{where}: loss, units, number to reveal and unit are not one each")
    loss, units, revealed = (_number(one[0], where) for one in found[:3])
    unit = found[3][0]
    if unit not in ("token", "word") or loss < 0 or revealed > units:
        raise InputError(f"{where}: loss, units, number to reveal and unit are none of a backend's")
    return [[loss], [units], [revealed], [unit]]


def _number(value: Any, where: str) -> float:
    """A number that may be written as text; NaN where it is not known."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where}: {value!r} is no number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}: a response is no number")
    if not abs(value) <= MAX_NUMBER and not (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{where}: a number is out of range")
    return float(value)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _stored(document: Document) -> Document:
    """What a table can hold of it: of sums and flags the loss."""
    found = {}
    for role, value in document.items():
        several = value if isinstance(value, list) else [value]
        kept = [MeanLoss(one.loss) if isinstance(one, FlagScores) else one for one in several]
        if not any(isinstance(one, MeanLoss) and not math.isfinite(one.loss) for one in kept):
            found[role] = kept if isinstance(value, list) else kept[0]
    return found


def _tokens(document: Document) -> int:
    fields = [one for value in document.values() for one in (value if isinstance(value, list) else [value])]
    return sum(len(one.tokens) for one in fields if hasattr(one, "tokens"))


def values_of(
    name: str,
    tasks: Mapping[str, Task],
    results: Mapping[str, Any],
    split: str,
    left: Left,
) -> tuple[list[Document], dict[str, str], str, list[str]]:
    """(documents with their values in "logged", metric -> which way is good, the hash of their data, notes) of a task
    or a group.

    results: lm-eval's own values, METRIC,FILTER -> value; a metric whose value is not the mean is left out.
    """
    rows: dict[tuple[str, int], dict[str, float]] = {}
    better: dict[str, str] = {}
    metrics: dict[str, str] = {}  # NAME.METRIC,FILTER -> METRIC,FILTER as results have it
    parts = [f"{task.name} {task.version} {task.shots}" for task in tasks.values()]
    for task in tasks.values():
        for where, sample in _samples(task, left):
            listed, filtered = sample.get("metrics"), str(sample.get("filter", "none"))
            logged = rows.setdefault((task.name, sample["doc_id"]), {})
            parts.append(f"{sample['doc_id']} {sample.get('doc_hash')}"[:200])
            for metric in listed if isinstance(listed, list) and len(listed) <= 100 else []:
                key = f"{name}.{metric}" + ("" if filtered == "none" else f",{filtered}")
                if not isinstance(metric, str) or not store.ABILITY.fullmatch(key):
                    continue
                value = _plain(sample.get(metric))
                if not isinstance(value, (int, float)):  # a pair that is aggregated otherwise
                    continue
                if (found := number(value, f"{where}, {metric}"[:200])) is not None:
                    logged[key], metrics[key] = found, f"{metric},{filtered}"
                    up = task.higher.get(metric) is not False
                    better[key] = "higher" if up != is_forget(split) else "lower"
    notes = []
    if len(metrics) > store.MAX_UNKNOWN:
        raise InputError(f"{name} has more than {store.MAX_UNKNOWN} metrics")
    for key, written in metrics.items():
        value = results.get(written)
        said = number(value, f"{name}, {written}"[:200]) if isinstance(value, (int, float)) else None
        values = [logged[key] for logged in rows.values() if key in logged]
        mean = math.fsum(values) / len(values)
        if said is None or len(values) < len(rows) or abs(said - mean) > AGREE * max(1, abs(said)):
            notes.append(f"not imported: {key}, which is no mean over all documents")
            del better[key]
            for logged in rows.values():
                logged.pop(key, None)
    subjects = {task: i for i, task in enumerate(sorted(tasks))} if len(tasks) >= SUBJECTS else {}
    documents: list[Document] = [
        {"id": i, "split": split, "cluster": subjects.get(key[0], i), "logged": rows[key]}
        for i, key in enumerate(sorted(rows))
    ]
    return documents, better, hashed(parts), notes
