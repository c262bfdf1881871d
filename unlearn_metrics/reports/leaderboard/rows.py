"""Records -> rows, and rows -> ranked groups. A rank comes from paired tests of all rows of a group, together."""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from unlearn_metrics.errors import InputError
from unlearn_metrics.places import ends
from unlearn_metrics.record import MeasuredPath, RunRecord
from unlearn_metrics.records import signature
from unlearn_metrics.reports.leaderboard.about import About
from unlearn_metrics.reports.leaderboard.columns import (
    BARRIER,
    NAME,
    Value,
    degenerate,
    estimated,
    incomparable,
    of_reference,
    primary,
    values,
)
from unlearn_metrics.reports.leaderboard.reading import Found, Kept, newest
from unlearn_metrics.scores import curve, equal_retention, stats
from unlearn_metrics.wording import counted

CROSSED = 8  # rows, from the first, whose curves are tested for crossings: as many as there are colours
DRAWN = 4_000_000  # draws of all rows of a table together, so that thousands of rows fit in memory
T = TypeVar("T")
R = TypeVar("R", "Row", "Reference")


@dataclass(frozen=True)
class Row:
    """A record in a table. values: column -> Value.

    Exactly one of `rank` and `unranked`, the reason for having none, is set. Of ranked rows, the true place lies
    between rank and rank_worst. degenerate: what shows that its answers are none. replaces: where older records of the
    same run were found. contested: where records of the same run were found that contradict this one. about: what
    leaderboard.yaml says of it. folder: of the run, on this machine.
    """

    id: str
    source: str
    record_sha256: str
    name: str
    values: dict[str, Value]
    rank: int | None
    rank_worst: int | None
    unranked: str | None
    degenerate: str | None
    replaces: list[str]
    contested: list[str]
    record: RunRecord
    about: About
    folder: Annotated[Path | None, Field(exclude=True)] = None


@dataclass(frozen=True)
class Reference:
    """A model that a table's rows are seen beside: "retain_only" or "original". values: see `columns.of_reference`.

    others: rows that were seen beside another one, or measured it otherwise.
    """

    role: str
    name: str
    values: dict[str, Value]
    others: int


@dataclass(frozen=True)
class Crossing:
    """Two rows of which the one has less at some retentions, the other at others, both significantly; and where."""

    a: str
    b: str
    retentions: list[float]


@dataclass(frozen=True)
class Method:
    """Rows that are seeds of one method: of their residuals the mean, the least, the most, the standard deviation.

    seeds: with a residual; without: others. deviation: of the seeds, with n - 1; None for fewer than two.
    """

    name: str
    seeds: int
    without: int
    mean: float | None
    least: float | None
    most: float | None
    deviation: float | None


@dataclass(frozen=True)
class Group:
    """Rows whose numbers may be compared: same signature but for what is free in it, same original weights.

    base_name: what pages call the original. variant: what sets the group apart from others of the same name, in short;
    empty if it has a name of its own. metric: what the residual is of. retention: at which rows are ranked; None
    where no row can be. common: the highest that all rows reach without extrapolation, where that is more; 1 where none
    is. crossings: of the first rows' curves. references: retain-only model and original, where they are known. methods:
    of rows that are seeds, where asked for. apart: what sets the group apart from the largest of its benchmark, in
    words; empty for that one. ranked: how many rows are; they come first.
    """

    id: str
    benchmark: str
    base: str
    base_name: str
    variant: str
    base_weights_sha256: str | None
    metric: str
    retention: float | None
    common: float | None
    crossings: list[Crossing]
    methods: list[Method]
    signatures: list[str]
    apart: list[str]
    ranked: int
    references: list[Reference]
    rows: list[Row]


# --- ranking ---------------------------------------------------------------------------------------------------------


def ranked(rows: Sequence[Row], metric: str) -> tuple[list[Row], float | None, float | None]:
    """(the rows in table order with their ranks, the retention of the ranks, the highest that all rows reach)."""
    able = [row for row in rows if row.unranked is None]
    if not able:
        return sorted(rows, key=_order), None, None
    clusters = usual(able, lambda row: equal_retention.clusters_of(_path(row), metric))
    paired = [row for row in able if equal_retention.clusters_of(_path(row), metric) == clusters]
    other = "measured along a path over other clusters of documents than those of most rows"
    rho = paired[0].record.control.keep
    assert rho is not None  # of a row without a reason for no rank; the same in all signatures of a group
    paths = [_path(row) for row in paired]
    reached = curve.common([equal_retention.path_of(path, metric) for path in paths], rho)
    common = min(1.0, math.ceil(reached * 1000 - 1e-6) / 1000) if reached > rho + 1e-6 else None
    at = [rho] if common is None or common == 1 else [rho, common]
    draws = min(curve.DRAWS, max(stats.RESAMPLES, DRAWN // len(paths)))
    found, k = equal_retention.paired(paths, metric, at, draws=draws)
    places = curve.ranks(found[:, 0], k)
    done = {row.id: replace(row, unranked=other) for row in able}
    for row, resampled, place in zip(paired, found, places, strict=True):
        documents = int(sum(_path(row).forget[metric].count[0]))
        here = {"residual": estimated(curve.estimate(resampled[0], k), documents)}
        if common is not None:
            none = Value(None, why="no retention below the original's is reached by all rows without extrapolation")
            here["common"] = estimated(curve.estimate(resampled[1], k), documents) if len(at) > 1 else none
        done[row.id] = replace(
            row,
            values=row.values | here,
            rank=place and place[0],
            rank_worst=place and place[1],
            unranked=None if place else _unplaced(here["residual"], k, rho),
        )
    compared = {row.id for row in paired}
    for row in rows if common is not None else ():
        if row.id not in compared:
            beside = row.values | {"common": Value(None, why=row.unranked or other)}
            done[row.id] = replace(done.get(row.id, row), values=beside)
    return sorted((done.get(row.id, row) for row in rows), key=_order), rho, common


def _unplaced(residual: Value, clusters: int, rho: float) -> str:
    if residual.value is not None and clusters < curve.RANKED:
        few = counted(clusters, "cluster of documents is", "clusters of documents are")
        return f"{few} too few to tell rows apart; a rank takes {curve.RANKED}"
    if residual.ci_low is not None:
        return f"in too few draws do all rows retain as little as {rho:.0%}, so they cannot be told apart"
    return f"no residual with an interval at {rho:.0%} retention: {residual.why}"


def _order(row: Row) -> tuple[float, float, float, str, str]:
    """By rank, then residual; then those that are compared without a rank, those that are on no path, and the rest."""
    last = math.inf
    residual, raw = (row.values[column].value for column in ("residual", "residual_unlearned"))
    kind = 0 if row.rank else 2 if row.unranked == BARRIER else 1 if row.values["average"].value is not None else 3
    by = residual if kind < 2 else raw if kind == 2 else None
    return (kind, row.rank or last, last if by is None else by, row.name, row.id)


def _path(row: Row) -> MeasuredPath:
    assert row.record.path is not None  # see columns.incomparable
    return row.record.path


def crossings(rows: Sequence[Row], metric: str) -> list[Crossing]:
    """Where the curves of ranked rows cross, of the pairs of which it is established that they do."""
    if len(rows) < 2:
        return []
    found, k = equal_retention.paired([_path(row) for row in rows], metric, curve.GRID)
    crossed = []
    for a, b in combinations(range(len(rows)), 2):
        difference = found[b] - found[a]
        known = np.isfinite(difference[:, 0])
        grid = [rho for rho, is_known in zip(curve.GRID, known, strict=True) if is_known]
        at = curve.crossings(grid, difference[known])
        if at and {-1, 1} <= {*curve.signs(difference[known], k).tolist()}:
            crossed.append(Crossing(rows[a].id, rows[b].id, at))
    return crossed


def seed_pattern(text: str) -> re.Pattern[str]:
    """The pattern of names of seeds. InputError if it is none, or has no group to name the method."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(f"--seeds {text!r} is not a regular expression: {error}") from None
    if not pattern.groups:
        raise InputError(f"--seeds {text!r} has no group to name the method; for example '(.*)-seed[0-9]+'")
    return pattern


def methods(rows: Iterable[Row], pattern: re.Pattern[str] | None) -> list[Method]:
    """Rows whose whole name matches, by what the pattern's first group takes of it."""
    found: dict[str, list[float | None]] = defaultdict(list)
    if pattern is None:
        return []
    for row in rows:
        if match := pattern.fullmatch(row.name):
            found[match[1] or ""].append(None if row.contested else row.values["residual"].value)
    return [_method(name, residuals) for name, residuals in sorted(found.items())]


def _method(name: str, residuals: Sequence[float | None]) -> Method:
    known = [value for value in residuals if value is not None]
    if not known:
        return Method(name, 0, len(residuals), None, None, None, None)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Method(
        name, len(known), len(residuals) - len(known), statistics.fmean(known), min(known), max(known), deviation
    )


# --- rows and groups -------------------------------------------------------------------------------------------------


def row(kept: Kept) -> Row:
    item, record = kept.found, kept.found.record
    metric = primary(record)
    why = incomparable(record, metric)
    contested = f"contested by {counted(len(kept.contested), 'other record')} of the same run with other values"
    return Row(
        id=f"r-{item.sha256[:24]}",
        source=item.source,
        record_sha256=item.sha256,
        name=record.name,
        values=values(record, metric, why),
        rank=None,
        rank_worst=None,
        unranked=contested if kept.contested else why,
        degenerate=degenerate(record),
        replaces=kept.replaces,
        contested=kept.contested,
        record=record,
        about=item.about,
        folder=item.folder,
    )


def groups(found: Iterable[Found], seeds: re.Pattern[str] | None = None, first: Sequence[str] = ()) -> list[Group]:
    """All tables, those with the most ranked rows first, then by rows.

    Args:
        found: the records.
        seeds: names of rows -> their method, see `methods`.
        first: benchmarks whose tables come before all others, in this order.
    """
    members: dict[tuple[tuple[tuple[str, str], ...], str], list[Row]] = defaultdict(list)
    for kept in newest(found):
        base = kept.found.record.checkpoints.get("original")
        known = (base.weights_sha256 or f"at {base.path}") if base else "unknown"
        members[signature.comparable(kept.found.record.signature), known].append(row(kept))
    tables = [_group(key, rows, seeds) for key, rows in members.items()]
    place = {benchmark: i for i, benchmark in enumerate(first)}

    def order(g: Group) -> tuple[Any, ...]:
        single = len(g.rows) == 1
        return place.get(g.benchmark, len(place)), single, -g.ranked, -len(g.rows), g.benchmark, g.signatures, g.id

    tables = _base_names(sorted(tables, key=order))
    largest: dict[str, Group] = {}
    for group in tables:
        largest.setdefault(group.benchmark, group)
    return [g if g is largest[g.benchmark] else replace(g, apart=_apart(g, largest[g.benchmark])) for g in tables]


def _group(key: object, rows: list[Row], seeds: re.Pattern[str] | None) -> Group:
    metric = usual(rows, lambda row: primary(row.record))
    other = f"of a benchmark summed up by another metric than that of most rows, {metric[:NAME]}"
    rows = [r if r.unranked or primary(r.record) == metric else replace(r, unranked=other) for r in rows]
    rows, retention, common = ranked(rows, metric)
    able = [row for row in rows if row.rank is not None]
    bases = [row.record.checkpoints.get("original") for row in rows]
    return Group(
        id="g-" + hashlib.sha256(repr(key).encode()).hexdigest()[:12],
        benchmark=rows[0].record.benchmark,
        base=usual(rows, lambda row: c.path if (c := row.record.checkpoints.get("original")) else "unknown"),
        base_name="",
        variant="",
        base_weights_sha256=next((base.weights_sha256 for base in bases if base), None),
        metric=metric,
        retention=retention,
        common=common,
        crossings=crossings(able[:CROSSED], metric),
        methods=methods(rows, seeds),
        signatures=sorted({row.record.signature for row in rows}),
        apart=[],
        ranked=len(able),
        references=_alike(_references(rows, metric), rows),
        rows=_alike(rows, rows),
    )


def _alike(items: Sequence[R], rows: Sequence[Row]) -> list[R]:
    """With the values that any row has: a log need not hold what another does."""
    every = dict.fromkeys((name for row in rows for name in row.values), Value(None, why="not in the record"))
    return [replace(item, values=every | item.values) for item in items]


def _references(rows: Sequence[Row], metric: str) -> list[Reference]:
    """Of each, what most rows measured: anyone may have written one."""
    found = []
    for role in ("retain_only", "original"):
        seen = [
            (row.record, value)
            for row in rows
            if (value := of_reference(row.record, role, metric)["residual"].value) is not None
        ]
        if not seen:
            continue
        keys = [(_weights(record, role), f"{value:.6g}") for record, value in seen]
        most = Counter(keys).most_common(1)[0][0]
        record = seen[keys.index(most)][0]
        checkpoint = record.checkpoints.get(role)
        name = checkpoint.path if checkpoint else "unknown"
        found.append(Reference(role, name, of_reference(record, role, metric), sum(key != most for key in keys)))
    return found


def _weights(record: RunRecord, role: str) -> str | None:
    checkpoint = record.checkpoints.get(role)
    return None if checkpoint is None else checkpoint.weights_sha256 or checkpoint.path


def usual(rows: Sequence[Row], say: Callable[[Row], T]) -> T:
    """What most rows say, since anyone may have written one."""
    return min(Counter(map(say, rows)).items(), key=lambda item: (-item[1], repr(item[0])))[0]


def _apart(group: Group, largest: Group) -> list[str]:
    """What sets a group apart, in names: a hash says that something differs, not what."""
    here, there = (dict(signature.comparable(g.signatures[0])) for g in (group, largest))
    words, unstated = [], []
    for field in signature.FIELDS:
        a, b = here.get(field, "not stated"), there.get(field, "not stated")
        if a == b or (field != "src" and a == "not stated"):  # an imported log states little
            continue
        if field == "src":
            words.append(f"a log of {a}" if b == "not stated" else f"a log of {a} here, of {b} there")
        elif b == "not stated":
            unstated.append(NAMED.get(field, field))
        elif field == "data":
            one, two = (g.rows[0].record.data for g in (group, largest))
            splits = [split for split in one if split in two and one[split] != two[split]]
            words.append("other documents" + (f" ({', '.join(splits)})" if splits else ""))
        elif field in HASHED and not {a, b} & set(NOTHING):
            words.append(HASHED[field])
        else:
            if field == "n":
                words.append(f"{_documents(group)} here, {_documents(largest)} there")
                continue
            a, b = ("one" if field == "tmpl" and value not in NOTHING else value for value in (a, b))
            words.append(f"{NAMED.get(field, field)} is {a} here, {b} there")
    if unstated:
        words.append(f"not stated there: {', '.join(unstated)}")
    if (group.base_weights_sha256, group.base) != (largest.base_weights_sha256, largest.base):
        words.append(f"the original model is {base_label(group)} here, {base_label(largest)} there")
    return words


def _documents(group: Group) -> str:
    return signature.documents(group.signatures[0]) or "all documents"


NOTHING = ("none", "not stated")
HASHED = {"prompt": "other prompts", "tmpl": "another chat template", "util": "other further tasks"}
NAMED = {
    "data": "the documents",
    "prompt": "the prompts",
    "n": "the number of documents",
    "tmpl": "the chat template",
    "eos": "what probabilities are of",
    "ctl": "the control",
    "dtype": "the precision",
    "v": "the version of this package",
}


# --- names in tables -------------------------------------------------------------------------------------------------


def base_label(group: Group) -> str:
    """The name of a table's original model; with the start of its hash where another table's is called the same."""
    return group.base_name


def _base_names(tables: Sequence[Group]) -> list[Group]:
    called = _labels({table.base for table in tables})
    alike = Counter(base for base, _ in {(table.base, table.base_weights_sha256) for table in tables})
    hashes = {
        t.id: f" (weights {(t.base_weights_sha256 or 'unknown')[:8]})" if alike[t.base] > 1 else "" for t in tables
    }
    named = [replace(table, base_name=called[table.base] + hashes[table.id]) for table in tables]
    alike_named: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for table in named:
        alike_named[table.benchmark, table.base_name].append(table)
    variants = {g.id: _variant(g, same) for same in alike_named.values() for g in same if len(same) > 1}
    return [replace(table, variant=variants.get(table.id, "")) for table in named]


def _variant(group: Group, same: Sequence[Group]) -> str:
    """In which fields of the signature that have readable values a group differs from others of its name."""
    fields = {g.id: dict(signature.comparable(g.signatures[0])) for g in same}
    said: dict[str, Callable[[str], str]] = {
        "ctl": lambda v: "no control" if v == "none" else f"control {v.split('.')[0]}",
        "n": lambda v: _documents(group),
        "dtype": str,
        "tmpl": lambda v: "no chat template" if v == "none" else "a chat template",
        "src": lambda v: f"a log of {v}",
        "v": lambda v: f"version {v}",
    }
    mine = fields[group.id]
    differing = [name for name in said if len({found.get(name) for found in fields.values()}) > 1 and name in mine]
    return ", ".join(said[name](mine[name]) for name in differing)


def labels(group: Group) -> dict[str, str]:
    """name -> what tables call it: of a path on somebody's disk the end, as much as distinguishes the rows."""
    return _labels({row.name for row in group.rows})


def _labels(names: Collection[str]) -> dict[str, str]:
    """`org/model` may be on the hub and stays. Of more than NAME characters the middle is left out: what was trained
    comes first in names, how it was comes last."""
    found = ends(names, least=2, most=8)
    found |= {name: name for name in names if not name.startswith(("/", "./", "../", "~"))}
    return {
        name: label if len(label) <= NAME else f"{label[: NAME // 3]}…{label[1 + NAME // 3 - NAME :]}"
        for name, label in found.items()
    }
