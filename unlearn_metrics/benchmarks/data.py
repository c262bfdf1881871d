"""Rows of a data file or dataset -> documents with the fields that a task needs. Errors name file, line and field.

Files: JSON lines (.jsonl, .json), a JSON array (.json), Parquet, CSV with a header (whose columns commas, semicolons or
tabs part), or a folder that `datasets` saved.
"""

from __future__ import annotations

import bisect
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unlearn_metrics import tasks_path
from unlearn_metrics.documents import MAX_TEXT, Document
from unlearn_metrics.errors import InputError, did_you_mean, first_line
from unlearn_metrics.settings import PREFIX, OwnData
from unlearn_metrics.wording import counted

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
LIST_FIELD = "perturbed_answer"  # the one field that is a list: wrong answers
SUBJECTS = 10  # tasks in a group of lm-eval's, at least, whose documents are redrawn together
OWN = "custom"  # what a benchmark of the user's own data is called


def local_file(task: str, folder: Path, name: str, split: str) -> Path:
    """<folder>/<name>/<split> or, where a configuration has but one split, <folder>/<name>, with a known suffix.

    Also as in a snapshot of the hub's repository (<split>-00000-of-00001.parquet). InputError if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    alone = split in ("train", "test")
    places = [folder / name / split, *([folder / name] if alone else [])]
    for place in places:
        for suffix in (*SUFFIXES, "-00000-of-00001.parquet"):
            if (path := place.with_name(place.name + suffix)).is_file():
                return path
    raise InputError(f"{task} needs {places[-1]}.json (JSON lines), which does not exist")


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row of a file; where is the file and the line, or the row where a format has no lines."""
    try:
        if path.is_dir():
            yield from numbered(path, _saved(path))
        elif path.suffix == ".parquet":
            yield from numbered(path, pq.read_table(path).to_pylist())
        elif path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                file.seek(0)
                between = "\t" if path.suffix == ".tsv" else max(",;\t", key=header.count)
                reader = csv.DictReader(file, strict=True, delimiter=between)
                for row in reader:
                    yield f"{path}, line {reader.line_num}", row
        else:
            yield from _json(path, path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def numbered(source: Path | str, found: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{source}, row {i}", row) for i, row in enumerate(found, 1))


def _saved(folder: Path) -> Iterable[Any]:
    import datasets  # seconds to import, and rarely needed here

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no folder that datasets.save_to_disk wrote: {first_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"{folder} holds several splits; name one, for example {folder / min(found)}")
    return found


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            yield from numbered(path, json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a JSON array ({error})") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                what = str(error).replace(": line 1 column", ", column")  # of the line, not of the file
                raise InputError(f"{path}, line {number}: not JSON ({what})") from None


def documents(
    source: str, found: Iterable[tuple[str, Any]], fields: Mapping[str, str], prefix: float = PREFIX
) -> list[Document]:
    """The rows with only these fields (name -> column); a field "text" becomes question and answer by `split_text`.

    InputError for the first row that lacks a field, or where there are no rows.
    """
    docs = []
    for where, row in found:
        doc = {name: _value(where, row, column, name == LIST_FIELD) for name, column in fields.items()}
        if "text" in doc:
            doc["question"], doc["answer"] = split_text(where, doc.pop("text"), prefix)
        docs.append(doc)
    if not docs:
        raise InputError(f"{source} holds no documents")
    return docs


def _value(where: str, row: Any, column: str, several: bool) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object")
    value = row.get(column)
    if value is None:
        there = ", ".join(str(name) for name, found in row.items() if found is not None)[:300]
        raise InputError(f"{where}: field '{column}' is missing; the columns are {there or 'none'}")
    items = value if several else [value]
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise InputError(f"{where}: field '{column}' is not {'a list of strings' if several else 'a string'}")
    if not all(item.strip() for item in items):
        raise InputError(f"{where}: field '{column}' is empty")
    if max(map(len, items)) > MAX_TEXT:
        raise InputError(f"{where}: field '{column}' has more than {MAX_TEXT:,} characters; split the text")
    return value


def lines(task: str, folder: Path, files: Mapping[str, str]) -> list[Document]:
    """Documents of text files that have one value in each line: field -> file. InputError unless all are as long."""
    columns: dict[str, list[str]] = {}
    for name, file in files.items():
        path = folder / file
        try:
            columns[name] = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{task} needs {path}, which cannot be read: {first_line(error)}") from None
    if len({*map(len, columns.values())}) > 1:
        raise InputError(f"{', '.join(files.values())} in {folder} have different numbers of lines")
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return documents(str(folder), numbered(folder, found), {name: name for name in files})


def clusters(docs: Sequence[Document], by: int | str | list[int], places: Sequence[int] | None = None) -> list[int]:
    """The cluster of each document: so many consecutive ones, or those with the same value of a field.

    Of one person of RWKU, all documents would be one cluster, and nothing could have an interval: there each document
    is its own, and an interval is about further questions on this person, not further people.

    Args:
        docs: at least one; a field "cluster" of theirs comes before `by`.
        by: how many, the field, or where each cluster begins.
        places: where they are in the data, if they are not all of it.
    """
    by = "cluster" if "cluster" in docs[0] else by
    places = range(len(docs)) if places is None else places
    if isinstance(by, int):
        return [place // by for place in places]
    if isinstance(by, list):
        return [bisect.bisect_right(by, place) - 1 for place in places]
    first: dict[str, int] = {}
    found = [first.setdefault(doc[by], len(first)) for doc in docs]
    return found if len(first) > 1 or by == "cluster" else list(places)


def own_fields(path: Path) -> dict[str, str]:
    """Which fields a file of unknown make has, by its first row: question and answer, or text."""
    where, row = next(rows(path), (str(path), None))
    if row is None:
        raise InputError(f"{path} holds no documents")
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object")
    for names in (("question", "answer"), ("text",)):
        if row.keys() >= set(names):
            return {name: name for name in names}
    raise InputError(
        f"{where}: neither 'question' and 'answer' nor 'text' among its fields ({', '.join(map(str, [*row][:10]))}); "
        "name them with --fields question=...,answer=... or text=..."
    )


def parse_fields(text: str, option: str = "--fields") -> dict[str, str]:
    """'question=q,answer=a' or 'text=body' as a dict, either with cluster=c. InputError for anything else."""
    pairs = {name.strip(): column.strip() for name, _, column in (part.partition("=") for part in text.split(","))}
    if not all(pairs.values()) or pairs.keys() - {"cluster"} not in ({"question", "answer"}, {"text"}):
        raise InputError(f"{option} {text!r} is neither question=COLUMN,answer=COLUMN nor text=COLUMN")
    return pairs


def names() -> list[str]:
    """The benchmarks of this package: each has a file NAME_suite.yaml."""
    return sorted(path.name.removesuffix("_suite.yaml") for path in tasks_path().glob("*/*_suite.yaml"))


def check_known(benchmark: str) -> str:
    """The name without _suite. InputError for an unknown benchmark, with near names."""
    name = benchmark.removesuffix("_suite")
    if name not in (known := names()):
        raise InputError(f"unknown benchmark '{benchmark}'; {did_you_mean(name, known)}")
    return name


def to_score(
    benchmark: str | None,
    folder: Path | None,
    files: Mapping[str, Path | None],
    fields: str | None,
    prefix: float,
    option: Callable[[str], str],
) -> tuple[str, Path | OwnData | None]:
    """(name, data) of the benchmark that the user chose, or made of files, the first of which it needs.

    option: a name as the user writes it. InputError for neither and for both.
    """
    own = {split: path for split, path in files.items() if path is not None}
    options = " and ".join(map(option, files))
    if benchmark is not None:
        if own or fields is not None:
            raise InputError(
                f"{option('benchmark')} and your own data ({options}, {option('fields')}) exclude each other"
            )
        return benchmark, folder
    if next(iter(files)) not in own:
        raise InputError(f"either {option('benchmark')} or your own data ({options}) names what to score")
    if folder is not None:
        raise InputError(f"{option('data')} goes with {option('benchmark')}; your own files are named one by one")
    return OWN, OwnData(own, None if fields is None else parse_fields(fields, option("fields")), prefix)


def split_text(where: str, text: str, prefix: float) -> tuple[str, str]:
    """(prefix, rest) of a text: prefix words if it is 1 or more, that share of the words if it is less.

    Words are what white space separates; the rest begins with the white space before its first word, so that the two
    together are the text. At least one word is in either part; prefix 0: the whole text is the rest. Words and not
    tokens, so that every model has the same task. InputError for a text too short.
    """
    if prefix == 0:
        return "", text
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    count = int(prefix) if prefix >= 1 else max(1, int(prefix * len(ends)))
    if count >= len(ends):
        raise InputError(f"{where}: a text of {counted(len(ends), 'word')} is too short to be split after {count}")
    return text[: ends[count - 1]], text[ends[count - 1] :]
