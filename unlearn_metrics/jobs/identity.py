"""What identifies a run: checkpoints, data, prompts, machine, software. From these and the scores, its record."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from unlearn_metrics import __version__
from unlearn_metrics.backends import hf
from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.benchmarks.suites import TokenScoreTask
from unlearn_metrics.checkpoints.tokenizers import DATE_MACRO, TEMPLATE_DATE
from unlearn_metrics.documents import SAMPLINGS, Document
from unlearn_metrics.jobs.job import Job, Tasks
from unlearn_metrics.record import (
    SCHEMA,
    CheckpointInfo,
    Control,
    GitState,
    MeasuredPath,
    Prompt,
    RunRecord,
    Score,
    Scores,
)
from unlearn_metrics.records import signature
from unlearn_metrics.records.signature import short_hash
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores import equal_retention
from unlearn_metrics.settings import Settings

PACKAGES = (
    "lm-eval",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "scipy",
    "rouge-score",
)


def record(
    job: Job,
    firsts: Mapping[str, Document],
    control: Control,
    scores: Scores,
    composites: dict[str, dict[str, Score]],
    path: MeasuredPath | None,
    name: str,
) -> RunRecord:
    """The record of a run that has just been scored. firsts: the first document of each split, with its prompt."""
    tasks, others = job.tasks, job.others
    settings = resolved(job.lm, job.settings)
    if job.reader is not None:
        settings["gibberish_sha256"] = job.reader.sha256
    residual = {} if path is None else equal_retention.residuals(path, control.keep, job.settings.seed)
    measured = {metric for splits in scores.values() for metrics in splits.values() for metric in metrics}
    return RunRecord(
        schema=SCHEMA,
        signature=signature_of(job, {split: [first] for split, first in firsts.items()}, control),
        name=name,
        benchmark=job.benchmark,
        verdict=verdict(scores, control, job.headline, residual),
        control=control,
        scores=scores,
        composites=composites,
        checkpoints=dict(job.checkpoints),
        data={split: task.data_sha256 for split, task in tasks.items()}
        | {name: other_tasks.data_hash(loaded) for name, loaded in others.items()},
        task_versions={task.task_name: str(task.VERSION) for task in tasks.values()} | other_tasks.versions(others),
        prompts={split: prompt_of(task, firsts[split]) for split, task in tasks.items()},
        settings=settings,
        software=software(),
        git=git_state(),
        imported=None,
        work=dict(hf.work(job.lm)),
        wall_seconds=None,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ability={n: better for n, better in other_tasks.directions(others).items() if n in measured},
        headline=job.headline,
        path=path,
        residual=residual,
    )


def resolved(lm: HFLM, settings: Settings) -> dict[str, str | int | float | bool | None]:
    """The settings as they came out: what the user left open, and what the machine decided."""
    gpu = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None
    return {
        "limit": settings.limit,
        "sample": settings.sample,
        "utility_limit": settings.utility_limit,
        "device": str(lm.device),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "dtype": dtype(lm),
        "attention": getattr(lm.model.config, "_attn_implementation", None),
        "apply_chat_template": settings.apply_chat_template,
        "chat_template_sha256": chat_template_hash(lm) if settings.apply_chat_template else None,
        "template_date": template_date(lm) if settings.apply_chat_template else None,
        "max_length": lm.max_length,
        "batch_size": settings.batch_size,
        "model_args": settings.model_args,
        "gibberish_model": settings.gibberish_model,
        "gradnorm": settings.gradnorm,
        "depth": settings.depth,
        "entity_spans": None if settings.entity_spans is None else str(settings.entity_spans),
        "seed": settings.seed,
    }


def fingerprint(
    tasks: Tasks,
    lm: HFLM,
    checkpoints: Mapping[str, CheckpointInfo],
    settings: Settings,
    others: other_tasks.Loaded,
    requests: str,
) -> str:
    """sha256 over everything that determines what is observed: two runs with the same would see the same.

    requests: see requests_hash.
    """
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.parent.rglob("*.py"))]
    parts = {
        "checkpoints": {role: asdict(info) | {"path": None} for role, info in checkpoints.items()},
        "data": {split: task.data_sha256 for split, task in tasks.items()},
        "tasks": {split: task.dump_config() for split, task in tasks.items()},
        "others": {name: other_tasks.data_hash(loaded) for name, loaded in others.items()},
        "other tasks": [task.dump_config() for loaded in others.values() for task in loaded["tasks"].values()],
        "requests": requests,
        "settings": asdict(settings)
        | dict.fromkeys(("name", "retain_model", "reference_record", "attacks"))
        | resolved(lm, settings),
        "software": software() | {"code": short_hash(code)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def as_published(job: Job, model: str, tasks: Tasks, others: other_tasks.Loaded, requests: str) -> str:
    """The fingerprint of a checkpoint without a control, the same in every run that asks it the same."""
    of = {"original": job.checkpoints["original"]}
    if model != "original":
        of["checkpoint"] = job.checkpoints[model]
    return fingerprint(tasks, job.lm, of, asked(job.settings), others, requests)


def requests_hash(tasks: Tasks, lm: HFLM, settings: Settings, others: other_tasks.Loaded) -> str:
    """sha256 over all that the models are sent: prompts, examples and all, as templates render them, and answers."""
    digest = hashlib.sha256()
    ours = [(task, settings.limit) for task in tasks.values()]
    theirs = [(task, settings.utility_limit) for loaded in others.values() for task in loaded["tasks"].values()]
    for task, limit in [*ours, *theirs]:
        for request in _requests(task, limit, lm, settings):
            digest.update(repr((request.request_type, request.args)).encode())
    return digest.hexdigest()


def firsts_now(job: Job) -> dict[str, list[Document]]:
    """The first document of each split as the models would be asked it now: with its prompt alone."""
    built = {split: _requests(task, 1, job.lm, job.settings) for split, task in job.tasks.items()}
    return {split: [{"prompt": requests[0].args[0]}] for split, requests in built.items()}


def _requests(task: Any, limit: int | None, lm: HFLM, settings: Settings) -> list[Any]:
    chat = (
        {"apply_chat_template": True, "chat_template": lm.apply_chat_template} if settings.apply_chat_template else {}
    )
    with suites.quiet():
        task.build_all_requests(limit=limit, rank=0, world_size=1, **chat)
    return list(task.instances)


# settings that choose the control, the reference, the intervals and the name, and change no observation of a model
AFTERWARDS = (
    *("control", "keep", "retention_metric", "alpha", "layers", "trajectory", "name", "seed"),
    *("retain_model", "reference_record", "reference_from", "gibberish_model", "attacks", "depth", "entity_spans"),
)


def asked(settings: Settings) -> Settings:
    """The settings that change observations of a model: runs with the same fingerprint of these observe the same."""
    defaults: dict[str, Any] = {name: getattr(Settings, name) for name in AFTERWARDS}
    return replace(settings, **defaults)


def software() -> dict[str, str]:
    """Versions of what numbers can depend on. No CUDA: no `cuda`."""
    found = {"unlearn-metrics": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {"python": platform.python_version(), "platform": platform.platform()}
    return found | ({} if torch.version.cuda is None else {"cuda": torch.version.cuda})


def dtype(lm: HFLM) -> str:
    return str(lm.model.dtype).removeprefix("torch.")


def chat_template_hash(lm: HFLM) -> str:
    return hashlib.sha256(str(lm.chat_template(True)).removeprefix(DATE_MACRO).encode()).hexdigest()


def template_date(lm: HFLM) -> str | None:
    """The day that a chat template writes as today's, if it writes one."""
    return f"{TEMPLATE_DATE:%Y-%m-%d}" if "strftime_now" in str(lm.chat_template(True)) else None


def prompt_of(task: TokenScoreTask, first: Document) -> Prompt:
    return Prompt(str(task.config.doc_to_text), str(task.config.doc_to_target), first["prompt"])


def git_state() -> GitState | None:
    """Commit of the source tree this runs from, and whether it has changes; None if installed, or without git."""
    folder = Path(__file__).parent

    def git(*command: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    # an installed package may lie in a virtual environment within somebody else's repository
    if not git("ls-files", "--error-unmatch", Path(__file__).name):
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if commit is None or changes is None else GitState(commit.strip(), bool(changes))


def _drawn(job: Job) -> bool:
    """Whether a sample leaves documents out: one that is larger than every split does not."""
    sample = job.settings.sample
    return sample is not None and any(len(task.eval_docs) == sample for task in job.tasks.values())


def signature_of(job: Job, asked: Mapping[str, Sequence[Document]], control: Control, beside: bool = True) -> str:
    """The signature of a run, see signature.py. asked: at least the first document of each split, with its prompt.

    beside: whether other lm-eval tasks than the benchmark's own count.
    """
    own = [name for name in suites.foreign(job.benchmark) if name in job.others]
    hashes = {name: other_tasks.data_hash(loaded) for name, loaded in job.others.items()}
    rest = [found for name, found in hashes.items() if name not in own] if beside else []
    fields = {
        "n": str(job.settings.limit or (f"{job.settings.sample}-drawn" if _drawn(job) else "all")),
        "tmpl": "chat" if job.settings.apply_chat_template else "none",
        **({"prompt": short_hash(asked[split][0]["prompt"] for split in job.tasks)} if job.tasks else {}),
        "eos": "prob+",
        "ctl": signature.ctl(control),
        "dtype": dtype(job.lm),
        "data": short_hash([*(task.data_sha256 for task in job.tasks.values()), *(hashes[name] for name in own)]),
        "draw": ",".join(SAMPLINGS),
        **({"util": short_hash([str(job.settings.utility_limit), *rest])} if rest else {}),
        "seed": str(job.settings.seed),
        "lm-eval": importlib.metadata.version("lm-eval"),
        "v": __version__,
    }
    return signature.make(job.benchmark, fields)
