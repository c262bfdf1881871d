"""The main job: observe the original and the unlearned model, control the latter, observe it again, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import hf
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.control.controls import Family
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import ahead, attacking, identity, keep
from unlearn_metrics.jobs.depth import observe_depth
from unlearn_metrics.jobs.job import Job
from unlearn_metrics.jobs.observing import Splits, judge_generations, observe, observe_as_published
from unlearn_metrics.jobs.opening import Warm, open_job, open_tasks
from unlearn_metrics.metrics import JUDGED, READ
from unlearn_metrics.record import Control, MeasuredPath, RunRecord
from unlearn_metrics.records import signature
from unlearn_metrics.records.folder import Stages
from unlearn_metrics.scores import equal_retention
from unlearn_metrics.scores.scoring import layer_drops, score_all
from unlearn_metrics.settings import OwnData, Settings
from unlearn_metrics.splits import halves, kept_on, parse


def run(
    original: str,
    unlearned: str,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    say: Callable[[str], None] = lambda message: None,
    partial: Path | None = None,
    warm: Warm | None = None,
) -> tuple[RunRecord, Observations]:
    """Score an unlearned checkpoint, as published and under control, beside the original. InputError for bad input.

    partial: where each stage is kept as it completes, and taken from if the same run was killed (folder.claim).
    warm: what runs before this one left, and this one leaves; without it, nothing. The record is the same.
    """
    start = time.monotonic()
    job = open_job(original, unlearned, benchmark, data, settings, say, partial, warm or Warm())
    if (cost := ahead.cost_of_limit(job)) is not None:
        say(cost)
    clock = ahead.clock(job)
    prepared = attacking.prepare(job, settings.attacks)
    say("evaluating the original")
    with clock.step("whole"):
        observed: Observations = {"original": observe_as_published(job, "original")}
    check_reference(job, observed["original"])
    if settings.keep is not None and job.models is not None:
        keep.target_of(job.settings, observed["original"])  # its refusals come before the rest of the work
    say(f"evaluating the unlearned model{clock.left()}")
    with clock.step("whole"):
        observed["unlearned"] = observe_as_published(job, "unlearned")
    control, path = choose_control(job, observed, clock)
    clock.to_come["mix"] = 0
    if job.models is not None:
        with clock.step("whole"):
            telling = replace(job, say=lambda message: say(message + clock.left()))
            observed["controlled"] = observe_controlled(telling, control, observed)
    if "retain_only" in job.published:
        say(f"evaluating the retain-only model{clock.left()}")
        with clock.step("whole"):
            observed["retain_only"] = observe_as_published(job, "retain_only")
    elif job.reference is not None:
        observed["retain_only"] = job.reference.documents
    if settings.depth:
        observe_depth(job, control, observed)
    judge_generations(job, observed)
    attacked = attacking.observe(job, prepared, control)
    record = sum_up(job, observed, control, path, settings.name or unlearned)
    observed |= attacked
    record = attacking.summed_up(record, observed, attacked, prepared, settings.seed)
    seconds = time.monotonic() - start + job.stage.seconds
    return replace(record, depth=layer_drops(observed), wall_seconds=seconds), observed


def check_reference(job: Job, originals: Splits) -> None:
    """InputError if the run that stands for the retain-only model was measured otherwise."""
    if job.reference is None:
        return
    mine = identity.signature_of(job, originals, Control("none", 1.0), beside=False)
    if differing := signature.differences(job.reference.record.signature, mine, besides=("ctl",)):
        where = f"{job.settings.reference_record} can't be the reference of this run"
        raise InputError(f"{where}: {'; '.join(differing)}")


def choose_control(job: Job, observed: Observations, clock: ahead.Clock) -> tuple[Control, MeasuredPath | None]:
    """No control, one at the strength that was given, or one that was calibrated along a path."""
    models, settings = job.models, job.settings
    if models is None:
        return Control(method="none", alpha=1.0), None
    if settings.alpha is not None:
        given = models.given(settings.alpha)
        return Control(models.method, settings.alpha, parameters=given, rounding=job.rounding), None
    job.say(f"calibrating the control {models.method} on {settings.retention_metric}")
    wanted = keep.wanted(job.tasks, job.others, settings, job.headline)
    observe = keep.observer(job.lm, job.tasks, job.others, settings, wanted)
    known = {0.0: observed["original"], 1.0: observed["unlearned"]}

    def say(message: str) -> None:
        job.say(message + clock.left())

    control, path = keep.calibrated(job.lm, models, settings, wanted, known, observe, say, clock.stage(job.stage))
    return replace(control, rounding=job.rounding), path


def observe_controlled(job: Job, control: Control, observed: Observations) -> Splits:
    """The unlearned model under control. At either end of the control it has been observed already."""
    assert job.models is not None
    held = job.models.at(control.alpha)
    for model in ("original", "unlearned"):
        if job.published[model][1] is held:
            return {split: [dict(d) for d in documents] for split, documents in observed[model].items()}
    job.say(f"evaluating the unlearned model under control ({job.models.method}, alpha {control.alpha:.4g})")
    pair, fn = job.published["unlearned"], job.models.fn
    return job.stage("controlled", lambda: observe(job, pair, control.alpha, fn))


def sum_up(job: Job, observed: Observations, control: Control, path: MeasuredPath | None, name: str) -> RunRecord:
    """The record of what was observed. After a calibration, `observed` has the split that it was on in two halves."""
    originals = observed["original"]
    firsts = {split: originals[split][0] for split in job.tasks}
    metrics = {split: [*task.metrics, *_judged(job, task)] for split, task in job.tasks.items()}
    metrics |= {split: list(originals[split][0]["logged"]) for split in map(suites.split_of, job.others)}
    if control.keep is not None:
        kept = kept_on(job.settings.retention_metric)
        calibration = str(replace(parse(kept), calibration=True))
        for splits in observed.values():
            if kept in splits:  # a reference record has no other tasks
                splits[calibration], splits[kept] = halves(splits[kept])
    wanted = {m: {split: metrics.get(parse(split).whole, []) for split in splits} for m, splits in observed.items()}
    scores, composites = score_all(observed, wanted, job.settings.seed, job.benchmark)
    if path is not None and "retain_only" in observed:
        path = equal_retention.with_retain_only(path, observed["retain_only"])
    return identity.record(job, firsts, control, scores, composites, path, name)


def _judged(job: Job, task: suites.TokenScoreTask) -> list[str]:
    unread = {*READ} | (set() if job.reader is not None else {"gibberish"})
    return sorted(JUDGED - unread) if "generation" in task.needs else []


def calibrate_only(
    lm: HFLM,
    models: Family,
    benchmark: str | None,
    data: Path | OwnData | None,
    settings: Settings,
    say: Callable[[str], None],
) -> Control:
    """The control that `run` would choose, evaluating nothing but what it is calibrated on."""
    tasks, others, settings = open_tasks(benchmark, data, settings, Warm())
    wanted = {kept_on(settings.retention_metric): [settings.retention_metric]}
    observe = keep.observer(lm, tasks, others, settings, wanted)
    stage = Stages(None, hf.work(lm), say)
    return keep.calibrated(lm, models, settings, wanted, {0.0: observe()}, observe, say, stage)[0]
