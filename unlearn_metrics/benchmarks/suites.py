"""Benchmarks: which there are, `load` one as lm-eval tasks, `evaluate` them by lm-eval's own evaluator."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from unlearn_metrics import tasks_path
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.benchmarks.data import OWN, check_known
from unlearn_metrics.benchmarks.task import (
    TokenScoreTask as TokenScoreTask,  # the YAML and the entry point name it here
)
from unlearn_metrics.documents import Document, TokenScores
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.record import Headline
from unlearn_metrics.settings import OwnData


class OurTaskManager(TaskManager):
    """lm-eval's, which also finds the tasks of this package."""

    def __init__(self, *args: Any, include_path: str | Path | list[str | Path] | None = None, **kwargs: Any) -> None:
        given = include_path if isinstance(include_path, list) else [include_path] if include_path else []
        super().__init__(*args, include_path=[tasks_path(), *given], **kwargs)


def benchmarks() -> dict[str, list[str]]:
    """Name for `--benchmark` -> its tasks: every group NAME_suite of ours."""
    index = _index()
    suites = {name.removesuffix("_suite"): index[name].cfg for name in index if name.endswith("_suite")}
    return {name: list(cfg["task"]) for name, cfg in suites.items() if cfg}


def foreign(benchmark: str) -> list[str]:
    """The tasks of lm-eval's own that a benchmark is made of: WMDP."""
    return [task for task in benchmarks().get(benchmark.removesuffix("_suite"), ()) if task not in _index()]


def headline(benchmark: str) -> Headline:
    """What a benchmark is summed up by: its suite's `metadata: headline`, where it differs from a TOFU-like one."""
    suite = _index().get(f"{benchmark.removesuffix('_suite')}_suite")
    return Headline(**((suite.cfg or {}).get("metadata", {}).get("headline", {}) if suite else {}))


def split_of(task: str) -> str:
    """The split that the documents of one of lm-eval's own tasks are: forget_TASK where a suite of ours declares so."""
    role = _roles().get(task)
    return task if role is None else f"{role}_{task}"


@cache
def _roles() -> dict[str, str]:
    """lm-eval's task -> its role, from `metadata: roles` of all suites."""
    found: dict[str, str] = {}
    for entry in _index().values():
        found |= ((entry.cfg or {}).get("metadata") or {}).get("roles", {})
    return found


@cache
def _index() -> Mapping[str, Any]:
    """What the package's YAML declares, by name, read once."""
    return _manager({}).task_index


def _manager(metadata: dict[str, Any]) -> TaskManager:
    return OurTaskManager(include_defaults=False, metadata=metadata)


def load(benchmark: str, source: Path | OwnData | None, sample: int | None = None) -> dict[str, TokenScoreTask]:
    """split -> task of a benchmark; its data in a local folder, the user's own, or None: on the hub. Empty where it is
    made of lm-eval's own tasks: see `foreign`. sample: only so many documents of each split.

    InputError for an unknown benchmark, with near names, and for bad data.
    """
    drawn = {} if sample is None else {"sample": sample}
    if isinstance(source, OwnData):
        return _load_own(source, drawn)
    name = check_known(benchmark)
    if foreign(name):
        return {}
    manager = _manager(drawn | ({} if source is None else {"data_dir": str(source)}))
    try:
        tasks = manager.load(f"{name}_suite")["tasks"]
    except (OSError, ValueError) as error:  # datasets: no such repository, no network, no such config
        where = f"in {source}" if source else "on the hub (give a local folder with --data)"
        raise InputError(f"cannot load the data of {name} {where}: {first_line(error)}") from error
    return _by_split(tasks)


def _load_own(own: OwnData, drawn: dict[str, int]) -> dict[str, TokenScoreTask]:
    metadata: dict[str, Any] = {f"{split}_file": str(path) for split, path in own.files.items()}
    if own.fields is not None:
        metadata["fields"] = dict(own.fields)
    manager = _manager(metadata | drawn | {"prefix": own.prefix})
    return _by_split(manager.load([f"{OWN}_{split}" for split in own.files])["tasks"])


def _by_split(tasks: Mapping[str, TokenScoreTask]) -> dict[str, TokenScoreTask]:
    for task in tasks.values():
        task.set_fewshot_seed(seed=0)
    return {task.split: task for task in tasks.values()}


def evaluate(
    lm: LM,
    tasks: Mapping[str, TokenScoreTask],
    limit: int | None = None,
    apply_chat_template: bool = False,
    samples: dict[str, list[int]] | None = None,
    said: dict[Pair, TokenScores] | None = None,
) -> dict[str, list[Document]]:
    """Run the tasks by lm-eval's own evaluate() and return split -> documents, each with "prompt" beside.

    samples: lm-eval's; the task's name -> ids of the documents wanted, instead of a limit. said: where the token scores
    of generations are put, as far as decoding gives them.
    """
    for task in tasks.values():
        task.said = said
    with quiet(), alone(lm):
        results = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task for task in tasks.values()}},
            limit=limit,
            samples=samples,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=apply_chat_template,
        )
    documents = {}
    for split, task in tasks.items():
        rows = sorted(results["samples"][task.task_name], key=lambda s: int(s["doc_id"]))
        documents[split] = [
            task.document(s["doc"], [r[0] for r in s["resps"]], s["doc_id"])
            | {"prompt": s["arguments"][0][0], "answers": [a[1] for a in s["arguments"]]}
            for s in rows
        ]
    return documents


@contextlib.contextmanager
def alone(lm: LM) -> Iterator[None]:
    """Keep lm-eval from dealing out the documents among the processes of a launcher: each evaluates all of them, and
    each has the results, which lm-eval gives to the first alone."""
    before = lm._rank, lm._world_size
    lm._rank, lm._world_size = 0, 1
    try:
        yield
    finally:
        lm._rank, lm._world_size = before


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """lm-eval narrates every step at INFO, and warns of unscored documents; `score` reports what matters itself."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "unlearn_metrics")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.setLevel(was)
