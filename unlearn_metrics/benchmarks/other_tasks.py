"""General ability: any lm-eval tasks beside a benchmark, evaluated by lm-eval itself, kept as per-document values."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval import evaluator
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM

from unlearn_metrics.benchmarks.data import SUBJECTS
from unlearn_metrics.benchmarks.suites import OurTaskManager, alone, quiet, split_of
from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError, did_you_mean, first_line
from unlearn_metrics.splits import is_forget

Loaded = Mapping[str, Mapping[str, Any]]


def load(
    names: Sequence[str], include_path: Path | None = None, folder: Path | None = None
) -> dict[str, dict[str, Any]]:
    """name -> what lm-eval loads for it: a task, or a group with its tasks. Few-shot examples and their seed are as
    lm-eval's command has them by default. folder: with copies of their repositories on the hub, by name (cais/mmlu).

    InputError for an unknown name, data that cannot be read, and a task none of whose values can be kept.
    """
    loaded: dict[str, dict[str, Any]] = {}
    if not names:
        return loaded
    manager = OurTaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            hint = did_you_mean(name, manager.task_index, "`lm_eval ls tasks` lists them")
            raise InputError(f"lm-eval has no task '{name}'; {hint}")
        try:
            # datasets prefers a folder of the repository's name where there is one
            with quiet(), contextlib.chdir(folder or Path()):
                loaded[name] = dict(manager.load(name))
        except (OSError, ValueError) as error:  # datasets: no network, no such file
            raise InputError(f"cannot load the data of {name}: {first_line(error)}") from error
        for task in loaded[name]["tasks"].values():
            repository = task.config.dataset_path
            if folder is not None and not (folder / repository).is_dir():
                raise InputError(f"{folder} holds no {repository}, a copy of that data set's repository on the hub")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)
        if not _means(name, loaded[name]):  # perplexities of words, corpus scores, groups that weigh all tasks alike
            raise InputError(
                f"no metric of {name} is a mean over its documents, so none can be kept with an interval"
                + ("; name its tasks" if name in loaded[name]["groups"] else "")
            )
    return loaded


def evaluate(
    lm: LM,
    loaded: Loaded,
    limit: int | None = None,
    apply_chat_template: bool = False,
    samples: dict[str, list[int]] | None = None,
) -> dict[str, list[Document]]:
    """split (suites.split_of) -> documents, of a group those of all its tasks, with their metrics in "logged" as
    NAME.METRIC, or NAME.METRIC,FILTER. A metric is left out if lm-eval's own value is not the mean of these values.
    Clusters are the tasks of a group that has SUBJECTS or more of them, such as the subjects of MMLU, since what a
    model lost of one subject shows in all its questions; otherwise each document is its own.

    samples: lm-eval's; a task's name -> ids of the documents wanted, instead of a limit; other tasks stay out.
    """
    return {
        split_of(name): _documents(name, tasks, _run(lm, tasks, limit, apply_chat_template, samples))
        for name, tasks in loaded.items()
    }


def _run(
    lm: LM,
    tasks: Mapping[str, Any],
    limit: int | None,
    apply_chat_template: bool,
    samples: dict[str, list[int]] | None,
) -> Mapping[str, Any]:
    chosen = {name: task for name, task in tasks["tasks"].items() if samples is None or name in samples}
    with quiet(), alone(lm):
        results = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": chosen},
            limit=limit,
            samples=samples,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=apply_chat_template,
        )
    return dict(results)


def _means(name: str, loaded: Mapping[str, Any]) -> set[str]:
    """The metrics of which lm-eval's value is the mean over all documents."""
    each = []
    for task in loaded["tasks"].values():
        how = task.aggregation()
        each.append({metric for metric in task.higher_is_better() if how.get(metric, mean) is mean})
    shared = set.intersection(*each)
    if name in loaded["tasks"]:
        return shared
    weighed = loaded["groups"][name].aggregate_metric_list or []
    return shared & {how.metric for how in weighed if how.weight_by_size}


def _documents(name: str, tasks: Mapping[str, Any], results: Mapping[str, Any]) -> list[Document]:
    means = _means(name, tasks)
    rows: dict[tuple[str, int], dict[str, float]] = {}  # in the order of `places`
    for task, samples in results["samples"].items():
        for sample in samples:
            logged = rows.setdefault((task, int(sample["doc_id"])), {})
            for metric in means & {*sample["metrics"]}:
                logged[f"{name}.{metric}" + ("" if sample["filter"] == "none" else f",{sample['filter']}")] = float(
                    sample[metric]
                )
    subjects = {task: i for i, task in enumerate(sorted(tasks["tasks"]))} if len(tasks["tasks"]) >= SUBJECTS else {}
    return [
        {"id": i, "split": split_of(name), "cluster": subjects.get(key[0], i), "logged": rows[key]}
        for i, key in enumerate(sorted(rows))
    ]


def places(tasks: Mapping[str, Any], limit: int | None) -> list[tuple[str, int]]:
    """(task, id there) of every document that `evaluate` gives for a task or group, in order."""
    return sorted((name, i) for name, task in tasks["tasks"].items() for i in range(len(task.eval_docs))[:limit])


def directions(loaded: Loaded) -> dict[str, Literal["higher", "lower"]]:
    """NAME.METRIC, NAME.METRIC,FILTER -> which way is good, as the tasks say; reversed where they ask about what is
    to be forgotten."""
    found: dict[str, Literal["higher", "lower"]] = {}
    for name, tasks in loaded.items():
        for task in tasks["tasks"].values():
            for metric in sorted(_means(name, tasks)):
                for filtered in (ensemble.name for ensemble in task._filters):
                    key = f"{name}.{metric}" + ("" if filtered == "none" else f",{filtered}")
                    up = task.higher_is_better().get(metric, True)
                    found[key] = "higher" if up != is_forget(split_of(name)) else "lower"
    return found


def data_hash(tasks: Mapping[str, Any]) -> str:
    """sha256 over the tasks' names, versions, examples and documents, in order."""
    digest = hashlib.sha256()
    for name, task in tasks["tasks"].items():
        digest.update(f"{name} {task.VERSION} {task.get_config('num_fewshot')}".encode())
        for doc in task.eval_docs:
            digest.update(repr(sorted(doc.items())).encode())
    return digest.hexdigest()


def versions(loaded: Loaded) -> dict[str, str]:
    return {name: str(task.VERSION) for tasks in loaded.values() for name, task in tasks["tasks"].items()}
