"""record.json files -> records: of every run one, or, where they contradict each other, all."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn_metrics.errors import InputError
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.records.store import load_record
from unlearn_metrics.reports.leaderboard import about
from unlearn_metrics.reports.leaderboard.about import About

TOLERANCE = 1e-6  # relative above 1: how far two records of one run may lie apart


@dataclass(frozen=True)
class Found:
    """A record as it was found. source: where, starting at the folder that was given; sha256 of the file.

    about: what leaderboard.yaml says of it. folder: of the run, where its texts are.
    """

    source: str
    sha256: str
    record: RunRecord
    about: About = field(default_factory=About)
    folder: Path | None = None


def read(paths: Iterable[Path]) -> tuple[list[Found], list[str]]:
    """(the records below these files and folders, one line for each that cannot be used).

    Nothing is opened beside them but leaderboard.yaml, in a folder that was given or, where that is a run, beside it.
    """
    found: dict[Path, Found] = {}
    bad: list[str] = []
    said: dict[Path, dict[Path, About]] = {}  # folder -> what its leaderboard.yaml says
    for given in paths:
        run = given.resolve().parent if given.is_file() else given.resolve()
        beside = run.parent if (run / RECORD).is_file() else run
        if beside not in said:
            said[beside], lines = about.read(beside)
            bad += lines
        before = len(bad)
        sources = list(_sources(given, bad))
        if not sources and len(bad) == before:
            bad.append(f"{given} holds no {RECORD} at any depth")
        for source, path in sources:
            try:
                if path.resolve() in found:
                    continue
                record = load_record(path)
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                folder = path.resolve().parent
                words = next((told[folder] for told in said.values() if folder in told), About())
                found[path.resolve()] = Found(source, sha256, record, words, folder)
            except (InputError, OSError) as error:
                bad.append(" ".join(str(error).split()))
    return list(found.values()), bad


def chosen(found: Sequence[Found], benchmarks: Sequence[str], order: Sequence[str]) -> list[Found]:
    """The records of these benchmarks, or all. InputError for a benchmark that no record is of, also in `order`."""
    known = {item.record.benchmark for item in found}
    for option, names in (("--benchmark", benchmarks), ("--order", order)):
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(sorted(known)[:10])
            raise InputError(f"{option} {unknown[0]}: no record is of that benchmark; there are {there}")
    return [item for item in found if not benchmarks or item.record.benchmark in benchmarks]


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


@dataclass(frozen=True)
class Kept:
    """A record that has a row. replaces: where older ones were found that say the same. contested: where others were
    found that do not."""

    found: Found
    replaces: list[str]
    contested: list[str]


def newest(found: Iterable[Found]) -> list[Kept]:
    """Of every run the newest record; of records of one run that contradict each other, each.

    A run is one signature, one pair of checkpoints and one control; where a log is all that is known, that log and the
    name, since a log may hold many checkpoints.
    """
    runs: dict[object, list[Found]] = defaultdict(list)
    for item in found:
        record, control = item.record, item.record.control
        weights = [
            c.weights_sha256 if (c := record.checkpoints.get(role)) else None for role in ("original", "unlearned")
        ]
        if weights[1] is None:
            weights.append(f"{record.imported.sha256} {record.name}" if record.imported else item.sha256)
        given = (control.method, control.metric, control.keep, control.alpha if control.keep is None else None)
        runs[record.signature, *weights, *given, *sorted(control.parameters.items())].append(item)
    kept = []
    for same in runs.values():
        versions: list[list[Found]] = []  # what agrees with the newest of them
        for item in sorted(same, key=lambda item: (_moment(item.record.created), item.sha256), reverse=True):
            mine = next((some for some in versions if agree(some[0].record, item.record)), None)
            if mine is None:
                versions.append([item])
            else:
                mine.append(item)
        for version in versions:
            first, *older = version
            others = sorted(item.source for item in same if item not in version)
            kept.append(Kept(first, sorted(item.source for item in older), others))
    return kept


def agree(a: RunRecord, b: RunRecord) -> bool:
    """Whether two records of one run give the same of all that both hold, up to TOLERANCE."""
    one, two = _numbers(a), _numbers(b)
    if a.checkpoints.get("retain_only") != b.checkpoints.get("retain_only"):  # what depends on it may differ
        one = {key: value for key, value in one.items() if key[0] not in ("retain_only", "composites")}

    def same(x: float | None, y: float | None) -> bool:
        return x == y if x is None or y is None else math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE)

    return all(same(one[key], two[key]) for key in one.keys() & two.keys())


def _numbers(record: RunRecord) -> dict[tuple[str, ...], float | None]:
    found: dict[tuple[str, ...], float | None] = {("control", "alpha"): record.control.alpha}
    for model, splits in record.scores.items():
        found |= {(model, split, name): s.value for split, scores in splits.items() for name, s in scores.items()}
    for model, scores in record.composites.items():
        found |= {("composites", model, name): score.value for name, score in scores.items()}
    return found | {("residual", name): residual.value.value for name, residual in record.residual.items()}


def _moment(created: str) -> datetime.datetime:
    """When a record says it was made; what is no moment is older than any."""
    try:
        moment = datetime.datetime.fromisoformat(created)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
