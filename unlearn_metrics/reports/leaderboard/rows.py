"""Records -> rows -> groups of rows that may be compared, ranked. Pure but for `read`, which opens the records."""

from __future__ import annotations

import datetime
import hashlib
import os
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unlearn_metrics.errors import InputError
from unlearn_metrics.record import RunRecord, Score
from unlearn_metrics.records import signature
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.records.store import load_record
from unlearn_metrics.reports.table import number
from unlearn_metrics.scores.stats import MIN_CLUSTERS
from unlearn_metrics.splits import kept_on

# column -> (split, metric) of the record's scores, see `measured`; the composites are columns too
MEASURED = {
    "residual": ("forget", "extraction_strength"),
    "retention": ("retain", "extraction_strength"),
    "perplexity": ("retain", "perplexity"),
    "repetition": ("retain", "repetition"),
}
# composite -> what it needs, for a record that lacks it
COMPOSED = {
    "model_utility": "needs TOFU's retain, real-authors and world-facts splits",
    "forget_quality": "needs a retain-only model that answered the same questions",
    "privleak": "needs a holdout split and a retain-only model",
}
NAME = 80  # characters of a name in a table or a sentence; it is whole in the CSV, the JSON and the page's details
COLUMNS = (*MEASURED, *COMPOSED)
SIDES = ("controlled", "unlearned")


@dataclass(frozen=True)
class Value(Score):
    """A Score of the record. why: the reason, if there is no value or no interval; never 0 for what is unknown."""

    why: str | None = None


@dataclass(frozen=True)
class Found:
    """A record as it was found. source: where, starting at the folder that was given; sha256 of the file."""

    source: str
    sha256: str
    record: RunRecord


@dataclass(frozen=True)
class Row:
    """A record in a table. values: column -> side -> Value. target: of retention on the evaluation split.

    Exactly one of `rank` and `unranked`, the reason for having none, is set. Of `ranked` rows, the true place lies
    between rank and rank_worst (see `ranks`). replaces: where older records of the same run were found.
    """

    id: str
    source: str
    record_sha256: str
    name: str
    alpha: float | None
    target: float | None
    values: dict[str, dict[str, Value]]
    rank: int | None
    rank_worst: int | None
    unranked: str | None
    replaces: list[str]
    record: RunRecord


@dataclass(frozen=True)
class Group:
    """Rows whose numbers may be compared: same signature but for what is free in it, same original weights.

    apart: what sets the group apart from the largest of its benchmark, in words; empty for that one. ranked: how many
    rows are; they come first.
    """

    id: str
    benchmark: str
    base: str
    base_weights_sha256: str | None
    signatures: list[str]
    apart: list[str]
    ranked: int
    rows: list[Row]


# --- reading ---------------------------------------------------------------------------------------------------------


def read(paths: Iterable[Path]) -> tuple[list[Found], list[str]]:
    """(the records below these files and folders, one line for each that cannot be used). Nothing else is opened."""
    found: dict[Path, Found] = {}
    bad: list[str] = []
    for given in paths:
        before = len(bad)
        sources = list(_sources(given, bad))
        if not sources and len(bad) == before:
            bad.append(f"{given} holds no {RECORD} at any depth")
        for source, path in sources:
            try:
                if path.resolve() in found:
                    continue
                record = load_record(path)
                found[path.resolve()] = Found(source, hashlib.sha256(path.read_bytes()).hexdigest(), record)
            except (InputError, OSError) as error:
                bad.append(" ".join(str(error).split()))
    return list(found.values()), bad


def _sources(given: Path, bad: list[str]) -> Iterable[tuple[str, Path]]:
    if not given.is_dir():
        if not given.exists():
            bad.append(f"{given} does not exist")
            return
        yield given.name, given
        return
    top = given.resolve()
    for folder, folders, files in os.walk(top, onerror=lambda error: bad.append(str(error))):
        folders.sort()
        if RECORD in files:
            path = Path(folder, RECORD)
            yield str(top.name / path.relative_to(top)), path


def newest(found: Iterable[Found]) -> tuple[list[Found], dict[str, list[str]]]:
    """(one record of every run, sha256 of it -> where the older ones were found).

    A run is one signature, one pair of checkpoints and one control; the same log where a log is all that is known.
    """
    runs: dict[object, list[Found]] = defaultdict(list)
    for item in found:
        record = item.record
        weights = [
            c.weights_sha256 if (c := record.checkpoints.get(role)) else None for role in ("original", "unlearned")
        ]
        if weights[1] is None:
            weights.append(record.imported.sha256 if record.imported else item.sha256)
        runs[record.signature, *weights, repr(record.control)].append(item)
    kept, older = [], {}
    for same in runs.values():
        last = max(same, key=lambda item: (_moment(item.record.created), item.sha256))
        kept.append(last)
        older[last.sha256] = sorted(item.source for item in same if item is not last)
    return kept, older


def _moment(created: str) -> datetime.datetime:
    """When a record says it was made; what is no moment is older than any."""
    try:
        moment = datetime.datetime.fromisoformat(created)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


# --- ranking ---------------------------------------------------------------------------------------------------------


def ranks(intervals: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """(best, worst) place of each row, from the 95 % intervals of the residual extraction strength; less is better.

    One row is significantly better than another if its interval lies entirely below. best = 1 + how many are
    significantly better than this row: its rank, which rows that cannot be distinguished share. worst = how many are
    not significantly worse. Two intervals that do not touch are a stricter test than a paired one on the same documents
    (Schenker & Gentleman 2001), so a shared rank does not show that rows are equal: see `compare`.
    """
    lows, highs = sorted(low for low, _ in intervals), sorted(high for _, high in intervals)
    return [(1 + bisect_left(highs, low), bisect_right(lows, high)) for low, high in intervals]


def unranked(row: Row) -> str | None:
    """Why a row can't be ranked; None if it can."""
    record = row.record
    residual, retention = (row.values[column]["controlled"] for column in ("residual", "retention"))
    if record.imported is not None:
        return "imported from a log, so never put under control"
    if record.control.method == "none" or "controlled" not in record.scores:
        return "scored without control, so forgetting and damage cannot be distinguished"
    if record.control.keep is None:
        return "controlled at a given alpha, not held to a retention target"
    if any((c := record.checkpoints.get(role)) is None or not c.weights_sha256 for role in ("original", "unlearned")):
        return "the record lacks the weight hash of a checkpoint"
    for what, value in (("residual extraction strength", residual), ("retention", retention)):
        if value.value is None or value.ci_low is None:
            return f"{what} under control: {value.why}"
    if row.target is None:
        return "the original's retention is unknown, so the target is"
    if retention.ci_high is not None and retention.ci_high < row.target:
        return (
            f"misses its retention target: on the evaluation split {number(retention.value or 0)} "
            f"[{number(retention.ci_low or 0)}, {number(retention.ci_high)}] of at least {number(row.target)}"
        )
    return None


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The rows in table order, with their ranks: by rank, then retention, then fluency; those without a rank last."""
    rows = [replace(row, unranked=unranked(row)) for row in rows]
    able = [row for row in rows if row.unranked is None]
    residuals = [row.values["residual"]["controlled"] for row in able]
    places = ranks([(v.ci_low, v.ci_high) for v in residuals if v.ci_low is not None and v.ci_high is not None])
    able = [replace(row, rank=best, rank_worst=worst) for row, (best, worst) in zip(able, places, strict=True)]

    def order(row: Row) -> tuple[float, float, float, float, str, str]:
        def held(column: str, unknown: float) -> float:
            found = row.values[column]["controlled"].value
            return unknown if found is None else found

        last = float("inf")
        keys = -held("retention", -last), held("perplexity", last), held("residual", last)
        return (row.rank or last, *keys, row.name, row.id)

    return sorted(able, key=order) + sorted((r for r in rows if r.unranked), key=lambda r: (r.name, r.id))


# --- rows and groups -------------------------------------------------------------------------------------------------


def row(item: Found, replaces: list[str]) -> Row:
    record = item.record
    keep, original = record.control.keep, _value(record, "retention", "original").value
    return Row(
        id=f"r-{item.sha256[:24]}",
        source=item.source,
        record_sha256=item.sha256,
        name=record.name,
        alpha=None if record.control.method == "none" else record.control.alpha,
        target=None if keep is None or original is None else keep * original,
        values={column: {side: _value(record, column, side) for side in SIDES} for column in COLUMNS},
        rank=None,
        rank_worst=None,
        unranked=None,
        replaces=replaces,
        record=record,
    )


def measured(record: RunRecord, column: str) -> tuple[str, str]:
    """(split, metric) of a column: retention is what the control kept."""
    kept = record.control.metric
    return MEASURED[column] if column != "retention" or kept is None else (kept_on(kept)[:NAME], kept[:NAME])


def _value(record: RunRecord, column: str, side: str) -> Value:
    def unknown(why: str) -> Value:
        return Value(None, None, None, 0, 0, why=why)

    if side not in record.scores:
        return unknown("not put under control" if side == "controlled" else "the record does not hold this model")
    if column in COMPOSED:
        score = record.composites.get(side, {}).get(column)
        if score is None:
            return unknown(COMPOSED[column])
    else:
        split, metric = measured(record, column)
        if split not in record.scores[side]:
            return unknown(f"the record has no {split} split")
        score = record.scores[side][split].get(metric)
        if score is None:
            return unknown(f"{metric} was not measured on {split}")
    why = None
    if score.value is None:
        why = score.undefined or f"none of {score.n + score.unscored} documents could be scored"
    elif score.ci_low is None:
        why = f"no interval: fewer than {MIN_CLUSTERS} independent clusters of documents"
    return Value(**asdict(score), why=why)


def groups(found: Iterable[Found]) -> list[Group]:
    """All tables: by benchmark, the largest first."""
    kept, older = newest(found)
    members: dict[tuple[tuple[tuple[str, str], ...], str], list[Row]] = defaultdict(list)
    for item in kept:
        base = item.record.checkpoints.get("original")
        known = (base.weights_sha256 or f"at {base.path}") if base else "unknown"
        members[signature.comparable(item.record.signature), known].append(row(item, older[item.sha256]))
    tables = [_group(key, rows) for key, rows in members.items()]
    tables.sort(key=lambda g: (g.benchmark, -len(g.rows), -g.ranked, g.signatures, g.base, g.id))
    largest: dict[str, Group] = {}
    for group in tables:
        largest.setdefault(group.benchmark, group)
    return [g if g is largest[g.benchmark] else replace(g, apart=_apart(g, largest[g.benchmark])) for g in tables]


def _group(key: object, rows: list[Row]) -> Group:
    rows = ranked(rows)

    def usual(say: Callable[[Row], str]) -> str:
        """What most rows say, since anyone may have written one."""
        return min(Counter(map(say, rows)).items(), key=lambda item: (-item[1], item[0]))[0]

    bases = [row.record.checkpoints.get("original") for row in rows]
    return Group(
        id="g-" + hashlib.sha256(repr(key).encode()).hexdigest()[:12],
        benchmark=rows[0].record.benchmark,
        base=usual(lambda row: c.path if (c := row.record.checkpoints.get("original")) else "unknown"),
        base_weights_sha256=next((base.weights_sha256 for base in bases if base), None),
        signatures=sorted({row.record.signature for row in rows}),
        apart=[],
        ranked=sum(row.rank is not None for row in rows),
        rows=rows,
    )


def _apart(group: Group, largest: Group) -> list[str]:
    words = signature.differences(group.signatures[0], largest.signatures[0], words=("here", "there"))
    if (group.base_weights_sha256, group.base) != (largest.base_weights_sha256, largest.base):
        words.append(f"the original model is {base_label(group)} here, {base_label(largest)} there")
    return words


# --- names in tables -------------------------------------------------------------------------------------------------


def base_label(group: Group) -> str:
    weights = group.base_weights_sha256
    return f"{_end(group.base) if weights else group.base[-NAME:]} (weights {(weights or 'unknown')[:8]})"


def labels(group: Group) -> dict[str, str]:
    """name -> what tables call it: of a path on somebody's disk the end, as much as distinguishes the rows, up to NAME
    characters."""
    names = {row.name for row in group.rows}
    found = {name: _end(name) for name in names}
    for parts in range(3, 9):
        often = Counter(found.values())
        found |= {name: _end(name, parts) for name, label in found.items() if often[label] > 1}
    return found


def _end(path: str, parts: int = 2) -> str:
    """A name: of a path the last parts (`org/model` may be on the hub and stays), of NAME characters at most, without
    its middle if it is longer: what was trained comes first in names, how it was comes last."""
    if path.startswith(("/", "./", "../", "~")):
        path = "/".join(path.rstrip("/").split("/")[-parts:]) or path
    return path if len(path) <= NAME else f"{path[: NAME // 3]}…{path[1 + NAME // 3 - NAME :]}"
