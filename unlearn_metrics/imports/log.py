"""What importers read, and how: a Log of one checkpoint, and strict readers of values from anyone."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_metrics.documents import MAX_TEXT, Document, MeanLoss
from unlearn_metrics.errors import InputError

# A split as a log has it: field of a document ("logged": metric) -> row -> value. None = the log has no such value.
Rows = dict[int, Any]
Split = dict[str, Any]

AUTHOR = 20  # consecutive questions about one author, in every split of TOFU that is about authors
# of a log from anyone: more is no log of these benchmarks, and resampling, attacks and ROUGE grow with it
MAX_DOCUMENTS, MAX_NUMBER = 5_000, 3.4e38
MAX_LOGS, MAX_BYTES = 1_000, 2 << 30  # below one folder; of their files together
FACTS = ("real_authors", "world_facts")
# how a chat template, or the lack of one, wraps a question, once special tokens are gone: what is before, what is after
TEMPLATES = (("[INST]", "[/INST]"), ("user\n", "assistant"), ("user\n", "model"), ("Question:", "Answer:"))


@dataclass
class Log:
    """What an evaluator left of one checkpoint. What it did not leave stays unknown.

    Attributes:
        path: where it lies.
        sha256: of its file; of several, over their names and contents.
        splits: split -> documents, see documents.Document.
        name: what tells the checkpoint apart; "" where only the path does.
        role: the model that it is in a record.
        benchmark: its name, where the log says it.
        notes: how the log was read, and what of it was left out, in words.
        composites: the log's own values of several splits or models, to compare with those of its documents.
        means: split -> metric -> value, of a log that holds no documents.
        fields: further fields of the signature.
        known: further fields of the record.
    """

    path: Path
    sha256: str
    splits: dict[str, list[Document]]
    name: str = ""
    role: str = "unlearned"
    benchmark: str | None = None
    notes: list[str] = field(default_factory=list)
    composites: dict[str, float] = field(default_factory=dict)
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)


# --- files


def logs_below(path: Path, names: Sequence[str]) -> list[Path]:
    """The file itself, or the files below a folder whose names match one of the patterns, in order.

    InputError for a folder without any, and for more than MAX_LOGS.
    """
    if not path.is_dir():
        return [path]
    found = []
    for file in path.rglob("*.json"):
        if any(file.match(name) for name in names) and file.is_file():
            found.append(file)
            if len(found) > MAX_LOGS:
                raise InputError(f"{path} holds more than {MAX_LOGS:,} logs")
    if not found:
        raise InputError(f"{path} holds no {' and no '.join(names)}")
    check_size(path, found)
    return sorted(found)


def check_size(path: Path, files: Iterable[Path]) -> None:
    """InputError if the files below a folder have more than MAX_BYTES together."""
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise InputError(f"the logs in {path} have more than {MAX_BYTES >> 30} GiB; import parts of them")


def sha256(files: Iterable[Path], beside: Path | None = None) -> str:
    """Of one file, its own; of several, over their names below a folder and their contents."""
    files = [*files]
    digests = {}
    for file in files:
        with file.open("rb") as opened:
            digests[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    if len(files) == 1:
        return digests[files[0]]
    places = {str(file.relative_to(beside)) if beside else file.name: digest for file, digest in digests.items()}
    return hashed(f"{place} {digest}" for place, digest in sorted(places.items()))


def hashed(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


# --- values


def an_object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object")
    return value


def a_list(value: Any, where: str, most: int = MAX_DOCUMENTS) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where} is no list")
    if len(value) > most:
        raise InputError(f"{where} has more than {most:,} entries")
    return value


def rows(value: Any, where: str) -> dict[int, Any]:
    """Row -> value, in the order of the data file."""
    found = an_object(value, where)
    if len(found) > MAX_DOCUMENTS:
        raise InputError(f"{where} has more than {MAX_DOCUMENTS:,} documents")
    result: dict[int, Any] = {}
    for key, value in found.items():
        whole = re.fullmatch(r"(0|[1-9][0-9]{0,8})(\.0+)?", key)  # pandas makes 3.0 of 3 where a row is missing
        if not whole:
            raise InputError(f"{where}: {key[:40]!r} is no row number")
        if (row := int(whole[1])) in result:
            raise InputError(f"{where}: row {row} is there twice")
        result[row] = value
    return dict(sorted(result.items()))


def column(log: Mapping[str, Any], name: str, where: str, of: Callable[[Any, str], Any]) -> Rows:
    if name not in log:
        return {}
    return {row: of(value, f"{where}, {name}, row {row}") for row, value in rows(log[name], f"{where}, {name}").items()}


def number(value: Any, where: str) -> float | None:
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


def share(value: Any, where: str) -> float | None:
    """A number from 0 to 1, but for rounding."""
    found = number(value, where)
    if found is not None and not -1e-9 <= found <= 1 + 1e-9:
        raise InputError(f"{where} is {found:g}, not between 0 and 1")
    return found


def loss(value: Any, where: str) -> MeanLoss | None:
    """A mean loss; of several answers (OpenUnlearning keeps a list), the mean."""
    found = mean(value, where)
    if found is not None and found < 0:
        raise InputError(f"{where} is no mean loss: it is negative")
    return None if found is None else MeanLoss(found)


def losses(value: Any, where: str) -> list[MeanLoss] | None:
    each = [loss(item, where) for item in (value if isinstance(value, list) else [value])]
    known = [one for one in each if one is not None]
    return known if known and len(known) == len(each) else None


def mean(value: Any, where: str) -> float | None:
    if not isinstance(value, list):
        return number(value, where)
    numbers = [number(item, where) for item in value]
    known = [one for one in numbers if one is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def ratio(value: Any, where: str) -> float | None:
    found = number(value, where)
    return None if found is None or found < 0 else found


def text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise InputError(f"{where} is no text of at most {MAX_TEXT:,} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{where} holds half a character (a lone surrogate)")
    return value


def clean(name: str) -> str:
    """Names of files, and strings in JSON, need not be text: what is none becomes a question mark."""
    return name.encode(errors="replace").decode()


def unread(keys: Iterable[str]) -> list[str]:
    """A note of what a log holds that has no metric here."""
    names = ", ".join([repr(key)[:80] for key in keys][:20])
    return [f"not imported: {names}"] if names else []


# --- documents


def documents(split: str, fields: Split, size: int) -> list[Document]:
    """The documents of a split, in order of their rows. size: how many consecutive ones are one cluster."""
    columns = {name: values for name, values in fields.items() if name != "logged"}
    if split in FACTS and not columns.get("true_answer"):
        columns["true_answer"] = columns.get("answer", {})  # no paraphrase there: the answer itself is the true one
    numbers = sorted({row for values in (*columns.values(), *fields["logged"].values()) for row in values})
    if len(numbers) > MAX_DOCUMENTS:
        raise InputError(f"split {split} has more than {MAX_DOCUMENTS:,} documents")
    found: list[Document] = []
    for row in numbers:
        document: Document = {"id": row, "split": split, "cluster": row // size}
        document |= {name: values[row] for name, values in columns.items() if values.get(row) is not None}
        if "prompt" in document and "question" not in document:
            document["question"] = question(document["prompt"])
        logged = {name: values[row] for name, values in fields["logged"].items() if values.get(row) is not None}
        found.append(document | ({"logged": logged} if logged else {}))
    return found


def question(prompt: str) -> str:
    """What a prompt asks: the last question in it, without template, examples and system prompt."""
    for before, after in TEMPLATES:
        _, found, rest = prompt.rpartition(before)
        if found and rest.rstrip().endswith(after):
            return rest.rstrip().removesuffix(after).strip()
    return prompt.strip().removeprefix("Question:").strip()
