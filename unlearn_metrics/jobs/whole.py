"""Whole jobs, from settings to a folder: the command line and the Python API call these two."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unlearn_metrics import attacks
from unlearn_metrics.backends import hf
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.checkpoints.files import check_finite, check_free, open_checkpoint, write_checkpoint
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.control.controls import steps
from unlearn_metrics.control.mixing import FINER, write_mix
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import ahead, attacking, early, identity
from unlearn_metrics.jobs import score as main_job
from unlearn_metrics.jobs.opening import Warm, build_lm, family_of, open_job, open_pair
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.progress import Say
from unlearn_metrics.record import Control, RunRecord
from unlearn_metrics.records import signature, store
from unlearn_metrics.records.folder import claim
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import figures
from unlearn_metrics.scores.scoring import with_more
from unlearn_metrics.settings import OwnData, Settings, chosen


def score(
    original: str,
    unlearned: str | None,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    out: Path | None,
    overwrite: bool,
    say: Say,
    more: Sequence[str] = (),
) -> tuple[RunRecord, Observations]:
    """Score an unlearned checkpoint beside the original, as published and under control; write the run to `out`, if
    given.

    A run that was interrupted goes on from the stages that it left in `out`. more: metrics beyond the benchmark's.
    InputError for bad input.
    """
    _check_alone()
    early.check(original, unlearned, benchmark, data, settings)
    given = (original, _latest(unlearned, settings), benchmark, data, settings, say)
    _check_more(more, benchmark, data, settings)
    with contextlib.nullcontext() if out is None else claim(out, overwrite) as kept:
        record, observations = main_job.run(*given, kept)
        record = with_more(record, observations, more, settings.seed)
        if out is not None:
            store.put(out, record, observations)
            figures.put(out, record)
    return record, observations


def dry_run(
    original: str, unlearned: str | None, benchmark: str, data: Path | OwnData | None, settings: Settings, say: Say
) -> dict[str, Any]:
    """Open and check all that `score` needs, and say what it would do, and for how long: see `ahead.plan`."""
    _check_alone()
    early.check(original, unlearned, benchmark, data, settings)
    job = open_job(original, _latest(unlearned, settings), benchmark, data, settings, say, None, Warm())
    attacking.prepare(job, settings.attacks)
    if (cost := ahead.cost_of_limit(job)) is not None:
        say(cost)
    say("observing a few documents, to see how long they take")
    return ahead.plan(job)


def _check_more(names: Sequence[str], benchmark: str, data: Path | OwnData | None, settings: Settings) -> None:
    """InputError, before any work, for a metric whose arguments no document of the benchmark will hold."""
    tasks = suites.load(benchmark, data) if names else {}
    held = {need for task in tasks.values() for need in task.needs} | {"split", "question", "prompt", "reference"}
    held |= {"judged_generation", "self_judged_generation"} if "generation" in held else set()
    held |= {"clean_probability"} if settings.gibberish_model is not None else set()
    held |= {"gradient"} if settings.gradnorm else set()
    for name in names:
        if lacking := [need for need in METRICS[name].needs if need not in held]:
            raise InputError(f"{name} needs {' and '.join(lacking)}, which {benchmark} does not observe")


def control(
    original: str,
    unlearned: str | None,
    benchmark: str | None,
    data: Path | OwnData | None,
    settings: Settings,
    out: Path | None,
    dtype: str | None,
    say: Say,
) -> Control:
    """Control an unlearned checkpoint at an alpha, or calibrate that first; write the checkpoint to `out`, if given.

    benchmark, data: what calibrates; None where another lm-eval task does, or nothing. dtype: of the tensors written,
    by default the unlearned checkpoint's. InputError for bad input.
    """
    _check_alone()
    if settings.control == "none":
        raise InputError(
            "control none leaves the unlearned checkpoint as it is: there is nothing to calibrate or write"
        )
    unlearned, elsewhere = _latest(unlearned, settings), "." in settings.retention_metric
    if settings.alpha is None and benchmark is None and not elsewhere:
        raise InputError(
            f"control {settings.control} needs --alpha, or --benchmark or --retain (with --keep) to calibrate it"
        )
    early.check(original, unlearned, benchmark, data, settings)
    if out is not None:
        check_free(out)
    say(f"checking {original} and {unlearned}")
    o, u = open_pair(original, unlearned)
    for note in u.notes:
        say(note)
    models = family_of(settings, o, u)
    coarse = models.rounding(settings.alpha)
    if coarse is not None:
        say(f"{coarse}; {FINER}")
    if settings.alpha is None:
        if elsewhere:
            benchmark, data = None, None
        lm = build_lm(o, u, settings)
        found = main_job.calibrate_only(lm, models, benchmark, data, settings, say)
        found = replace(found, rounding=coarse)
        note = f"- {describe(found)}{'' if elsewhere else f'; benchmark {benchmark}'}\n"
    else:
        found = Control(settings.control, settings.alpha, parameters=models.given(settings.alpha), rounding=coarse)
        note = "".join(f"- {name}: {value}\n" for name, value in found.parameters.items())
        note += f"- {coarse}\n" if coarse else ""
    if out is not None:
        say(f"writing {out}")
        stored = None if dtype is None else getattr(torch, dtype)
        what = CONTROLS[settings.control].what
        write_mix(o, u, found.alpha, out, note, stored, control=models.fn, what=what)
    return found


def attack(name: str, model: str, base: str | None, out: Path, say: Say) -> None:
    """Write a checkpoint as an attack on weights leaves it. base: the model that an adapter belongs to.

    InputError for bad input, and for an attack that leaves a NaN or an infinity.
    """
    _check_alone()
    check_free(out)
    fn = attacks.known(name, on=("weights",)).fn
    say(f"checking {model}")
    opened = open_checkpoint(model, None if base is None else open_checkpoint(base))
    check_finite(opened)
    after = replace(fn(opened), name=f"{opened.name} after {name}")
    check_finite(after)
    say(f"writing {out}")
    done = attacks.ATTACKS[name]
    readme = f"# Attacked checkpoint\n\n{opened.name} after the attack {name}: {done.what}.\n"
    tokenizer = opened if base is None else open_checkpoint(base)
    write_checkpoint(out, after, tokenizer, f"{readme}\nMade by unlearn-metrics, `attack`.\n")


def attack_run(
    run: Path,
    names: Sequence[str],
    data: Path | OwnData | None,
    places: Mapping[str, str | None],
    device: str | None,
    say: Say,
) -> tuple[RunRecord, Observations]:
    """Add attacks to a run: the forget set of its models under each. An interrupted call goes on where it was.

    Args:
        run: the folder of the run, which is written anew once all is done.
        names: of attacks, "all", relearn=CHECKPOINT, relearn_retain=CHECKPOINT.
        data: as the run was given it.
        places: model -> where its checkpoint lies now; None: where the record says.
        device: by default the run's.
        say: is told each step.

    Returns:
        The record and all of the run's documents, those under attacks too.

    Raises:
        InputError: bad input; checkpoints, data or software that are not the run's.
    """
    _check_alone()
    if not names:
        raise InputError("no attack is named; see docs/attacks.md for their names, or say all")
    record, observed = store.load_record(run), store.load_documents(run)
    there = {model: places.get(model) or info.path for model, info in record.checkpoints.items()}
    if record.imported is not None or "unlearned" not in there or "original" not in there:
        raise InputError(f"{run} was imported or is of no checkpoints: there is nothing to attack")
    settings = _of_record(record, names, there.get("retain_only"), device)
    with claim(run, overwrite=True) as kept:
        given = (there["original"], there["unlearned"], record.benchmark, data, settings, say, kept, Warm())
        job = open_job(*given)
        for model, info in job.checkpoints.items():
            if info.weights_sha256 != record.checkpoints[model].weights_sha256:
                raise InputError(f"{info.path} is not the {model} model of {run}: its weights are others")
        mine = identity.signature_of(job, identity.firsts_now(job), record.control)
        if differing := signature.differences(record.signature, mine, words=("in the run", "now")):
            raise InputError(f"{run} can't be attacked as it was scored: {'; '.join(differing)}")
        prepared = attacking.prepare(job, names)
        attacked = attacking.observe(job, prepared, record.control)
        observed |= attacked
        work = Counter(record.work) + hf.work(job.lm)
        record = replace(record, work=dict(work))
        record = attacking.summed_up(record, observed, attacked, prepared, settings.seed)
        store.put(run, record, observed)
        figures.put(run, record)
    return record, observed


def _of_record(record: RunRecord, names: Sequence[str], retain: str | None, device: str | None) -> Settings:
    """The settings of a run as far as they say how its models are asked, with its control at the strength it had."""
    kept = ("limit", "sample", "device", "dtype", "apply_chat_template", "batch_size", "model_args", "seed")
    given: dict[str, Any] = {name: record.settings.get(name) for name in kept}
    control = record.control
    given |= {"attacks": tuple(names), "retain_model": retain, "control": control.method}
    if control.method != "none":
        given |= {"alpha": control.alpha} | {k: control.parameters.get(k) for k in ("layers", "trajectory")}
    return chosen(given | ({} if device is None else {"device": device}))


def _check_alone() -> None:
    """InputError under torchrun or `accelerate launch`, whose processes would all do the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        raise InputError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes for a job of one: start it without, or score "
            "several checkpoints by `sweep`, which deals them out"
        )


def _latest(unlearned: str | None, settings: Settings) -> str:
    """What is unlearned: as given, or the latest checkpoint of the trajectory."""
    if unlearned is not None:
        return unlearned
    if settings.trajectory is None:
        raise InputError("--unlearned is missing")
    return str([*steps(settings.trajectory).values()][-1])
