"""Every score of a stored run computed again from its documents, by all cores, without a model."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import ATTACKS, METRICS, available
from unlearn_metrics.metrics.retention import stemmer
from unlearn_metrics.record import RunRecord, Score, Scores
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import TOKENS
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.composites import digest, stream
from unlearn_metrics.scores.equal_retention import residuals
from unlearn_metrics.scores.scoring import score_composites, score_split
from unlearn_metrics.splits import parse

T = TypeVar("T")
R = TypeVar("R")
SMALL = 1 << 22  # bytes of token scores that are scored sooner than processes are started


def rescore(folder: Path, more: Iterable[str] = ()) -> RunRecord:
    """The run's record with every score computed again from its documents, and the metrics in `more` beside them.

    "all" in more: every metric that the documents allow. InputError for an unknown metric, or one that no split has.
    What the record holds of metrics that are unknown here (store.unknown_metrics) is left out: nobody computed it.
    """
    for name in more:
        if name not in METRICS and name != "all":
            raise InputError(f"unknown metric '{name}'; {did_you_mean(name, METRICS)}")
    record = store.load_record(folder)
    had = {(m, split): names for m, splits in record.scores.items() for split, names in splits.items()}
    attacked = any(split.startswith("holdout") for _, split in had)  # then composites take all attacks there are
    moments = attacked or bool({"all", "min_k_plus_plus"} & {*more}.union(*had.values()))
    seed = found if isinstance(found := record.settings.get("seed"), int) and found >= 0 else 0
    joined: dict[str, set[int]] = {}
    sizes: dict[tuple[str, str], int] = {}

    def prepare(clusters: store.Clusters) -> None:  # what every process would make for itself
        for key, of_each in clusters.items():
            sizes[key], found = len(of_each), {*of_each.tolist()}
            stats.draws(len(found), seed)
            joined.setdefault(parse(key[1]).whole, set()).update(found)
        if {"rouge", "all"} & {*more}.union(*had.values()):
            stemmer()

    def prepare_composites() -> None:
        for split, clusters in joined.items() if record.composites else ():
            stats.draws(len(clusters), stream(split, seed))

    splits = store.load_splits(folder, moments, prepare)

    def score(key: tuple[str, str]) -> tuple[dict[str, Score], list[Document]]:
        documents = splits[key]()
        allowed, before = available(documents), had.get(key, {})
        wanted = [n for n in METRICS if n in before or (n in allowed and {n, "all"} & {*more})]
        wanted += [n for n in record.ability if n in before]
        scores, found = score_split(documents, wanted, seed)
        return scores, digest(documents, found, ATTACKS if attacked else ())

    large = (folder / TOKENS).stat().st_size > SMALL
    each = forked if large and can_fork() else in_turn
    gc.disable()  # a million objects that stay: the collector would look through them again and again
    try:
        scores: Scores = {}
        known: Observations = {}
        longest_first = sorted(splits, key=lambda key: -sizes[key])
        scored = dict(zip(longest_first, each(score, longest_first, prepare_composites), strict=True))
        for model, split in splits:
            figures, documents = scored[model, split]
            scores.setdefault(model, {})[split], known.setdefault(model, {})[split] = figures, documents
        each = each if attacked else in_turn  # without attacks, composites take less than copies of the process
        composites = each(lambda m: score_composites(known, m, seed, record.benchmark), list(known))
    finally:
        gc.enable()
    for name in {*more} - {"all"} - {name for found in scores.values() for names in found.values() for name in names}:
        raise InputError(f"{folder} holds nothing that {name} could be computed from")
    composed = dict(zip(known, composites, strict=True))
    residual = residuals(record.path, record.control.keep, seed) if record.path is not None else {}
    words = verdict(scores, record.control, record.headline, residual, record.imported)
    return replace(record, scores=scores, composites=composed, residual=residual, verdict=words)


def changed(stored: RunRecord, again: RunRecord) -> tuple[int, list[str]]:
    """(how many stored scores there are, where they are not bit for bit those of `again`, in words).

    Those of metrics that are unknown here are not among them.
    """
    count, differing = 0, []
    unknown = {*store.unknown_metrics(stored)}
    groups: list[tuple[str, Mapping[str, Score], Mapping[str, Score]]] = [
        *(
            (f"{m}, {s}", {n: x for n, x in metrics.items() if n not in unknown}, again.scores.get(m, {}).get(s, {}))
            for m, x in stored.scores.items()
            for s, metrics in x.items()
        ),
        *((m, names, again.composites.get(m, {})) for m, names in stored.composites.items()),
    ]
    for what, mine, theirs in groups:
        count += len(mine)
        differing += [
            f"{what}: {n} is {score}, again {theirs.get(n)}" for n, score in mine.items() if theirs.get(n) != score
        ]
    return count, differing


# --- processes --------------------------------------------------------------------------------------------------------


def can_fork() -> bool:
    """Whether a copy of this process can compute. It would lack torch's threads, and what other systems run beside."""
    return sys.platform == "linux" and "torch" not in sys.modules


def nothing() -> None: ...


def in_turn(work: Callable[[T], R], items: Sequence[T], meanwhile: Callable[[], object] = nothing) -> list[R]:
    """`work` of each item."""
    meanwhile()
    return [work(item) for item in items]


def forked(work: Callable[[T], R], items: Sequence[T], meanwhile: Callable[[], object] = nothing) -> list[R]:
    """`work` of each item, each in one of as many copies of this process as there are cores; only results are sent.

    meanwhile: what this process has to do until they come.
    """
    cores = min(len(os.sched_getaffinity(0)), len(items))
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(cores, fork, initializer=_copies.append, initargs=(work,)) as copies:
        results = copies.map(_work, items)
        meanwhile()
        return list(results)


_copies: list[Callable[[Any], Any]] = []  # in a copy: what it is there for


def _work(item: Any) -> Any:
    return _copies[-1](item)
