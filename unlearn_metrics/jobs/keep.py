"""What a control keeps: whether it can be kept, how it is observed under a model, and the control that keeps it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.control.calibration import calibrate
from unlearn_metrics.control.controls import Family
from unlearn_metrics.control.mixing import mix_into
from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.job import Job
from unlearn_metrics.metrics import good, values
from unlearn_metrics.record import Control, TracePoint
from unlearn_metrics.records.folder import Stages
from unlearn_metrics.scores import stats
from unlearn_metrics.settings import Settings
from unlearn_metrics.splits import halves, kept_on


def check(metric: str, benchmark: str, tasks: Mapping[str, suites.TokenScoreTask], others: other_tasks.Loaded) -> None:
    """InputError unless this run can calibrate on it: higher must be better. It lists what can be used."""
    retain = tasks["retain"].metrics if "retain" in tasks else []
    known = {name: good(name, "retain") for name in retain} | other_tasks.directions(others)
    if known.get(metric) == "higher":
        return
    usable = ", ".join(name for name, better in known.items() if better == "higher")
    if metric in known:
        raise InputError(f"--retention-metric {metric}: higher is not better; there are {usable}")
    if kept_on(metric) == "retain" and "retain" not in tasks:
        raise InputError(
            f"{benchmark} has no retain split to calibrate on; pass --retain beside --forget, a --retention-metric "
            "TASK.METRIC of one of --utility-tasks, --alpha or --control none"
        )
    hint = "" if kept_on(metric) in ("retain", *others) else f" and what --utility-tasks {kept_on(metric)} would bring"
    raise InputError(f"unknown --retention-metric '{metric}'; there are {usable or 'none'}{hint}")


def observer(
    lm: HFLM, tasks: Mapping[str, suites.TokenScoreTask], others: other_tasks.Loaded, settings: Settings, step: int = 1
) -> Callable[[], list[Document]]:
    """A function that observes every step-th document that the retention metric is of, under the model as it is."""
    metric, split = settings.retention_metric, kept_on(settings.retention_metric)
    chat, samples = settings.apply_chat_template, dict[str, list[int]]()
    if split in others:
        for name, i in other_tasks.places(others[split], settings.utility_limit)[::step]:
            samples.setdefault(name, []).append(i)
        only = {split: others[split]}
        return lambda: other_tasks.evaluate(lm, only, None, chat, samples)[suites.split_of(split)]
    return observer_of(lm, tasks[split], metric, settings, step)


def observer_of(
    lm: HFLM, task: suites.TokenScoreTask, metric: str, settings: Settings, step: int = 1
) -> Callable[[], list[Document]]:
    """A function that observes what one metric needs of every step-th document of a task."""
    task = copy.copy(task)
    task.metrics = [metric]  # what others need is not asked for
    samples = {task.task_name: [*range(len(task.eval_docs))][: settings.limit : step]}
    chat = settings.apply_chat_template
    return lambda: suites.evaluate(lm, {"": task}, None, chat, samples)[""]


def mean(metric: str, documents: Sequence[Document]) -> float:
    """The mean over the documents that have a value; NaN if none has."""
    found = np.array(values([metric], documents)[metric])
    return stats.mean(found[~np.isnan(found)])


def choose(job: Job, originals: Mapping[str, Sequence[Document]]) -> Control:
    """The control of a run: none, at the strength that was given, or calibrated on the original's documents."""
    models, settings = job.models, job.settings
    if models is None:
        return Control(method="none", alpha=1.0)
    if settings.alpha is not None:
        return Control(method=models.method, alpha=settings.alpha, parameters=models.given(settings.alpha))
    metric, kept = settings.retention_metric, kept_on(settings.retention_metric)
    job.say(f"calibrating the control {models.method} on {metric}")
    half = observer(job.lm, job.tasks, job.others, settings, step=2)
    beside = None
    if models.strengths is not None and kept == "retain" and metric in job.tasks["forget"].metrics:
        beside = observer_of(job.lm, job.tasks["forget"], metric, settings)
    return calibrated(job.lm, models, settings, originals[kept], half, job.say, job.stage, beside)


def calibrated(
    lm: HFLM,
    models: Family,
    settings: Settings,
    documents: Sequence[Document],
    half: Callable[[], list[Document]],
    say: Callable[[str], None],
    stage: Stages,
    beside: Callable[[], list[Document]] | None = None,
) -> Control:
    """Calibrate a control so that retention is at least settings.keep times the original's.

    documents: the original's, of the split that the metric is of; half: observes the calibration half of them, and
    beside what else is measured at each strength, under the model as it is. Leaves the model at the last alpha tried.
    """
    metric, keep = settings.retention_metric, settings.keep
    assert keep is not None
    calibrating, held_out = halves(documents)
    if not held_out:
        raise InputError(
            f"calibration needs at least two {kept_on(metric)} documents (one half to calibrate on, one to report)"
        )
    target = keep * mean(metric, calibrating)
    if not target > 0:
        raise InputError(
            f"the original model's {metric} on the {kept_on(metric)} documents is {target / keep:g}: there is nothing "
            "to keep; check the checkpoint and the prompt format, or pass --alpha or --control none"
        )
    observers = [half] if beside is None else [half, beside]
    found: dict[float, list[float]] = {}

    def controlled(alpha: float) -> list[float]:
        mix_into(lm.model, models.original, models.unlearned, alpha, models.fn)
        return [mean(metric, observe()) for observe in observers]

    def retention(alpha: float) -> float:
        value, *_ = found[alpha] = stage(f"retention at alpha {alpha!r}", lambda: controlled(alpha))
        say(f"alpha {alpha:.4f}: retention {value:.4f}, target {target:.4f}")
        return value

    alpha, trace = calibrate(retention, target, models.strengths)
    achieved = found[alpha][0] if alpha in found else mean(metric, calibrating)
    return Control(
        method=models.method,
        alpha=alpha,
        parameters=models.given(alpha),
        keep=keep,
        metric=metric,
        target=target,
        achieved=achieved,
        original_held_out=mean(metric, held_out),
        trace=[TracePoint(point.alpha, *found[point.alpha]) for point in trace],
    )
