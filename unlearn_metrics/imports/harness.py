"""Output folders of lm-eval itself: results_*.json and samples_*.jsonl, of this package's tasks and of any others.

What a task's requests were is read off the metrics in its configuration, as the task did (observations.layout). Other
tasks become per-document values, as `score --utility` keeps them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unlearn_metrics import tasks_path
from unlearn_metrics.benchmarks.data import OWN
from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports.log import Log, an_object, check_size, clean, hashed, logs_below, sha256
from unlearn_metrics.imports.samples import NAME, Left, Task, documents_of, values_of
from unlearn_metrics.record import Headline, Prompt
from unlearn_metrics.records import store
from unlearn_metrics.splits import parse

MAX_TASKS = 2_000
Run = tuple[str, Path, Mapping[str, Any]]  # the stamp of a results file, the file, and what it holds


@dataclass(frozen=True)
class Suite:
    """A benchmark as its YAML declares it."""

    name: str
    tasks: tuple[str, ...]
    roles: Mapping[str, str]
    headline: Headline


def read(path: Path, benchmark: str | None) -> list[Log]:
    """A Log for each model below the folder; results of one model in one folder are one, the newest of each task.

    Raises InputError for a folder without results or without samples, and where nothing says which benchmark it is of.
    """
    if benchmark is not None and not NAME.fullmatch(benchmark):
        raise InputError(f"{benchmark[:80]!r} is no benchmark's name")
    found: dict[tuple[Path, str], list[Run]] = {}
    for file in logs_below(path, ["results_*.json"]):
        raw = an_object(store.read_json(file), f"{file}")
        stamp = re.fullmatch(r"results_([\w.:-]{1,60})\.json", file.name, re.ASCII)
        if stamp is None or not isinstance(raw.get("configs"), dict):
            raise InputError(f"{file} is no results file of lm-eval")
        found.setdefault((file.parent, _model(raw)), []).append((stamp[1], file, raw))
    often = Counter(model for _, model in found)
    names = {key: f"{key[1]} ({key[0].name})" if often[key[1]] > 1 else key[1] for key in found}
    return [
        _log(path, clean(names[key]), sorted(runs, key=lambda run: run[:2]), benchmark) for key, runs in found.items()
    ]


def _model(raw: Mapping[str, Any]) -> str:
    """What was evaluated: the adapter, the checkpoint, or the name that lm-eval gives."""
    config = raw.get("config")
    given = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(given, str):  # as older versions have it
        given = dict(part.partition("=")[::2] for part in given.split(","))
    arguments = given if isinstance(given, dict) else {}
    names = [*(arguments.get(key) for key in ("peft", "unlearned", "pretrained", "model")), raw.get("model_name")]
    return next((name[-200:] for name in names if isinstance(name, str) and name), "")


def _log(path: Path, model: str, runs: Sequence[Run], benchmark: str | None) -> Log:
    tasks = _tasks(runs)
    if not tasks:
        raise InputError(f"{runs[0][1].parent} holds no samples_*.jsonl of its results; run lm_eval with --log_samples")
    check_size(path, [task.file for task in tasks.values()])
    last = runs[-1][2]
    groups = {name: subtasks for *_, raw in runs for name, subtasks in _groups(raw).items()}
    results = {name: values for *_, raw in runs for name, values in _results(raw).items()}
    suite = _suite(benchmark, tasks, groups, path)
    wanted = {name: task for name, task in tasks.items() if name in suite.tasks or not task.ours}
    notes = [f"not imported: {name}, which is not of {suite.name}" for name in tasks if name not in wanted]
    left = Left()
    splits: dict[str, list[Document]] = {}
    data: dict[str, str] = {}
    prompts: dict[str, Prompt] = {}
    for task in wanted.values():
        if not task.ours:
            continue
        split = str(task.metadata["split"])
        if not NAME.fullmatch(split) or parse(split).calibration:
            raise InputError(f"{task.file}: {split[:80]!r} is no split's name")
        if split in splits:
            raise InputError(f"{path}: two tasks of {suite.name} are of split {split}; import them apart")
        splits[split], data[split], said = documents_of(task, split, left)
        notes += said
        prompts |= _prompt(task, splits[split], split)
    own = [*splits]
    ability: dict[str, str] = {}
    others = {name: task for name, task in wanted.items() if not task.ours}
    for name, parts in _together(others, groups).items():
        split = f"{suite.roles[name]}_{name}" if name in suite.roles else name
        if split in splits or parse(split).calibration:
            raise InputError(f"{path}: the task {name} is called as one of this package's splits")
        documents, better, digest, said = values_of(name, parts, results.get(name, {}), split, left)
        notes += said
        if better:
            splits[split], data[name] = documents, digest
            ability |= better
    if not splits:
        raise InputError(f"{path} has no metric that is a mean over documents")
    config = an_object(last.get("config") or {}, f"{runs[-1][1]}, config")
    return Log(
        path,
        sha256([file for _, file, _ in runs] + [task.file for task in tasks.values()], runs[0][1].parent),
        splits,
        name=model,
        benchmark=suite.name,
        notes=notes,
        fields=_fields(last, config, [data[split] for split in own], [data[name] for name in data if name not in own]),
        known={
            "ability": ability,
            "data": data,
            "prompts": prompts,
            "task_versions": {name: task.version for name, task in wanted.items()},
            "software": _software(last),
            "settings": _settings(last, config),
            "headline": suite.headline,
        },
    )


# --- files


def _tasks(runs: Sequence[Run]) -> dict[str, Task]:
    """The tasks of the runs that have samples, the newest of each."""
    found: dict[str, Task] = {}
    for stamp, file, raw in runs:

        def of(part: str, name: str, raw: Mapping[str, Any] = raw) -> Any:
            return raw[part].get(name) if isinstance(raw.get(part), dict) else None

        for name, config in raw["configs"].items():
            if not NAME.fullmatch(name) or not isinstance(config, dict):
                continue
            samples = file.with_name(f"samples_{name}_{stamp}.jsonl")
            if not samples.is_file():
                continue
            higher = of("higher_is_better", name)
            found[name] = Task(
                name,
                config,
                higher if isinstance(higher, dict) else {},
                clean(str(of("versions", name))[:100]),
                clean(str(of("n-shot", name))[:100]),
                samples,
            )
            if len(found) > MAX_TASKS:
                raise InputError(f"{file.parent} holds more than {MAX_TASKS:,} tasks")
    return found


def _groups(raw: Mapping[str, Any]) -> dict[str, list[str]]:
    """lm-eval's groups, each with its tasks and groups."""
    found = raw.get("group_subtasks")
    groups = {} if not isinstance(found, dict) else {name: of for name, of in found.items() if NAME.fullmatch(name)}
    return {name: [str(one) for one in of] for name, of in groups.items() if isinstance(of, list) and of}


def _results(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Task or group -> METRIC,FILTER -> lm-eval's own value."""
    found = [raw.get(part) for part in ("groups", "results")]
    return {n: of for one in found if isinstance(one, dict) for n, of in one.items() if isinstance(of, dict)}


# --- the benchmark


@cache
def _suites() -> tuple[Suite, ...]:
    """This package's benchmarks, as their YAML declares them; read without lm-eval."""
    found = []
    for file in sorted(tasks_path().glob("*/*_suite.yaml")):
        declared = yaml.safe_load(file.read_text(encoding="utf-8"))
        metadata = declared.get("metadata", {})
        headline = Headline(**metadata.get("headline", {}))
        name = declared["group"].removesuffix("_suite")
        found.append(Suite(name, tuple(declared["task"]), metadata.get("roles", {}), headline))
    return tuple(found)


def _suite(given: str | None, tasks: Mapping[str, Task], groups: Mapping[str, list[str]], path: Path) -> Suite:
    """The benchmark: as given, or the one that most of the tasks are of; of several alike, the smallest."""
    suites = [*_suites()]
    forget = {name for name, task in tasks.items() if task.ours} | {r for suite in suites for r in suite.roles}
    suites += [
        Suite(name.removesuffix("_suite"), tuple(of), {}, Headline())
        for name, of in groups.items()
        if name.endswith("_suite") and name.removesuffix("_suite") not in {suite.name for suite in suites}
    ]
    own = tuple(name for name in tasks if name.startswith(f"{OWN}_"))
    suites.append(Suite(OWN, own, {}, Headline()))
    if given is not None:
        named = next((suite for suite in suites if suite.name == given), None)
        return named or Suite(given, tuple(tasks), {}, Headline())
    fitting = [suite for suite in suites if {*suite.tasks} & tasks.keys() & forget]
    if not fitting:
        raise InputError(f"{path} does not say which benchmark it is of; name it with --benchmark")
    return min(fitting, key=lambda suite: (-len({*suite.tasks} & tasks.keys()), len(suite.tasks)))


# --- other tasks


def _together(tasks: Mapping[str, Task], groups: Mapping[str, list[str]]) -> dict[str, dict[str, Task]]:
    """name -> tasks: of a group that is there as a whole, all of them; of a task that is in no such group, itself."""
    inner = {name for of in groups.values() for name in of}
    found: dict[str, dict[str, Task]] = {}
    for group in groups.keys() - inner:
        leaves = _leaves(group, groups, frozenset())
        if leaves and leaves <= tasks.keys():
            found[group] = {name: tasks[name] for name in sorted(leaves)}
    covered = {name for of in found.values() for name in of}
    return found | {name: {name: task} for name, task in tasks.items() if name not in covered}


def _leaves(name: str, groups: Mapping[str, list[str]], above: frozenset[str]) -> set[str]:
    if name not in groups or name in above or len(above) > 20:
        return {name}
    return {leaf for one in groups[name] for leaf in _leaves(one, groups, above | {name})}


# --- what identifies the run


def _prompt(task: Task, documents: Sequence[Document], split: str) -> dict[str, Prompt]:
    asked, wanted = (task.config.get(key) for key in ("doc_to_text", "doc_to_target"))
    if "prompt" not in documents[0] or not all(isinstance(one, str) and len(one) <= 10_000 for one in (asked, wanted)):
        return {}
    return {split: Prompt(clean(str(asked)), clean(str(wanted)), documents[0]["prompt"])}


def _fields(
    raw: Mapping[str, Any], config: Mapping[str, Any], own: Sequence[str], others: Sequence[str]
) -> dict[str, str]:
    limit = config.get("limit")
    shown = "all" if limit is None else f"{limit:g}" if isinstance(limit, (int, float)) else "unknown"
    dtype = str(config.get("model_dtype")).removeprefix("torch.")
    known = {
        "n": shown,
        "tmpl": "chat" if raw.get("chat_template") else "none",
        "dtype": dtype if dtype != "None" else "",
        "data": hashed(own or others)[:8],
        "util": hashed([shown, *others])[:8] if own and others else "",
        "lm-eval": str(raw.get("lm_eval_version") or ""),
    }
    return {key: value for key, value in known.items() if re.fullmatch(r"[\w.,+@=-]{1,60}", value, re.ASCII)}


def _software(raw: Mapping[str, Any]) -> dict[str, str]:
    names = {"lm-eval": "lm_eval_version", "transformers": "transformers_version"}
    return {name: clean(str(raw[key])[:100]) for name, key in names.items() if isinstance(raw.get(key), str)}


def _settings(raw: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: config.get(key) for key in ("model", "limit", "batch_size", "device")}
    kept |= {"apply_chat_template": bool(raw.get("chat_template"))}
    kept |= {"chat_template_sha256": raw.get("chat_template_sha"), "model_args": json.dumps(config.get("model_args"))}
    texts = {key: clean(value[:10_000]) for key, value in kept.items() if isinstance(value, str)}
    numbers = {key: value for key, value in kept.items() if isinstance(value, (int, float)) and abs(value) < 1 << 53}
    return texts | numbers | {"seed": 0}
