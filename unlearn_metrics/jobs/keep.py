"""What a control keeps: whether it can be kept, the path along which it is measured, and the control that keeps it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.control.controls import Family
from unlearn_metrics.control.mixing import mix_into
from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, good, values
from unlearn_metrics.record import Control, Headline, MeasuredPath, TracePoint
from unlearn_metrics.scores import curve, equal_retention, stats
from unlearn_metrics.settings import Settings
from unlearn_metrics.splits import CALIBRATION, EVALUATION, halves, is_forget, kept_on

RESOLUTION = 1 / 128  # of the strength that is chosen
MARGIN = 0.05  # of retention, below what is kept, that is resolved too: redrawn documents may have less
Wanted: TypeAlias = Mapping[str, list[str]]


def check(metric: str, benchmark: str, tasks: Mapping[str, suites.TokenScoreTask], others: other_tasks.Loaded) -> None:
    """InputError unless this run can calibrate on it: higher must be better. It lists what can be used."""
    retain = tasks["retain"].metrics if "retain" in tasks else []
    known = {name: good(name, "retain") for name in retain} | other_tasks.directions(others)
    if known.get(metric) == "higher":
        return
    usable = [name for name, better in known.items() if better == "higher"]
    every = f"there are {', '.join(usable) or 'none'}"
    if metric in known:
        raise InputError(f"--retention-metric {metric}: higher is not better; {every}")
    if kept_on(metric) == "retain" and "retain" not in tasks:
        raise InputError(
            f"{benchmark} has no retain split to calibrate on; pass --retain beside --forget, a --retention-metric "
            "TASK.METRIC of one of --utility-tasks, --alpha or --control none"
        )
    hint = "" if kept_on(metric) in ("retain", *others) else f" and what --utility-tasks {kept_on(metric)} would bring"
    raise InputError(f"unknown --retention-metric '{metric}'; {did_you_mean(metric, usable, every + hint)}")


def wanted(
    tasks: Mapping[str, suites.TokenScoreTask], others: other_tasks.Loaded, settings: Settings, headline: Headline
) -> Wanted:
    """split -> the metrics that a path is measured by: what is kept, and the headline's of the forget set.

    Of our tasks, those alone that one pass over the answers gives: generations at every strength would cost too much.
    """
    found = {kept_on(settings.retention_metric): [settings.retention_metric]}
    for metric in headline.forget:
        task = metric.partition(".")[0]
        if task in others:
            found.setdefault(suites.split_of(task), []).append(metric)
        elif "forget" in tasks and metric in tasks["forget"].metrics and METRICS[metric].needs == ("answer",):
            found.setdefault("forget", []).append(metric)
    return found


def observer(
    lm: HFLM, tasks: Mapping[str, suites.TokenScoreTask], others: other_tasks.Loaded, settings: Settings, wanted: Wanted
) -> Callable[[], dict[str, list[Document]]]:
    """A function that observes what the wanted metrics need, under the model as it is: split -> documents."""
    only = {split: copy.copy(tasks[split]) for split in wanted if split in tasks}
    for split, task in only.items():
        task.metrics = wanted[split]  # what other metrics need is not observed
    beside = {name: loaded for name, loaded in others.items() if suites.split_of(name) in wanted}
    chat = settings.apply_chat_template

    def observe() -> dict[str, list[Document]]:
        ours = suites.evaluate(lm, only, settings.limit, chat) if only else {}
        return ours | other_tasks.evaluate(lm, beside, settings.utility_limit, chat)

    return observe


def mean(metric: str, documents: Sequence[Document]) -> float:
    """The mean over the documents that have a value; NaN if none has."""
    return _mean(values([metric], documents)[metric])


def too_few(kept: str) -> InputError:
    return InputError(f"calibration needs at least two {kept} documents (one half to calibrate on, one to report)")


def target_of(settings: Settings, originals: Mapping[str, Sequence[Document]]) -> float:
    """The retention that calibration holds a model to, on the calibration split of the original's documents.

    InputError if there is nothing to keep, or nothing to calibrate on.
    """
    metric, kept, keep = settings.retention_metric, kept_on(settings.retention_metric), settings.keep
    assert keep is not None
    calibration, evaluation = halves(originals[kept])
    if not evaluation:
        raise too_few(kept)
    target = keep * mean(metric, calibration)
    if not target > 0:
        raise InputError(
            f"the original model's {metric} on the {kept} documents is {target / keep:g}: there is nothing "
            "to keep; check the checkpoint and the prompt format, or pass --alpha or --control none"
        )
    return target


def search(
    retained: Callable[[float], float], holds: Callable[[float], bool], low: float = curve.GRID[0], top: float = 1.0
) -> tuple[float, list[float]]:
    """The largest strength up to 1 that holds, and all that were tried, in order.

    Args:
        retained: measures a strength; its retention, relative to the original's.
        holds: whether a strength that was measured holds.
        low: the path is resolved down to this retention. top: no strength above is tried.

    Strengths are proposed by `curve.propose` until retention is resolved. Then the edge above the largest that holds is
    narrowed to RESOLUTION. Retention need not fall monotonically: a stretch that holds, between two strengths tried and
    above the edge, can be missed.
    """
    seen = {0.0: 1.0}
    while proposed := curve.propose(seen, low, top):
        seen |= {alpha: retained(alpha) for alpha in proposed}
    chosen = max((alpha for alpha in seen if 0 < alpha <= 1 and holds(alpha)), default=0.0)
    while chosen < 1 and (above := min(a for a in seen if a > chosen)) - chosen > RESOLUTION:
        middle = (chosen + above) / 2
        seen[middle] = retained(middle)
        chosen = middle if holds(middle) else chosen
    return chosen, [alpha for alpha in seen if alpha > 0]


def calibrated(
    lm: HFLM,
    models: Family,
    settings: Settings,
    wanted: Wanted,
    known: Mapping[float, Mapping[str, Sequence[Document]]],
    observe: Callable[[], dict[str, list[Document]]],
    say: Callable[[str], None],
    stage: Callable[[str, Callable[[], Any]], Any],
) -> tuple[Control, MeasuredPath]:
    """Measure the path of a control, and find the largest strength on it that keeps settings.keep of the retention.

    known: strength -> documents observed already: the original's (0), and the unlearned model's (1) if at hand. The
    strengths in between are proposed by `curve.propose`, until retention is resolved; then the edge of what holds on
    the calibration split is narrowed to 1/128. The strength chosen was itself observed, and holds. Leaves the model at
    the last strength tried.
    """
    metric, kept, keep = settings.retention_metric, kept_on(settings.retention_metric), settings.keep
    assert keep is not None
    target = target_of(settings, known[0.0])
    at = {alpha: _values(wanted, documents) for alpha, documents in known.items()}

    def retention(alpha: float, half: slice = slice(None)) -> float:
        return _mean(at[alpha][kept][metric][half])

    def retained(alpha: float) -> float:
        def measure() -> dict[str, dict[str, list[float]]]:
            mix_into(lm.model, models.original, models.unlearned, alpha, models.fn)
            return _values(wanted, observe())

        if alpha not in at:
            at[alpha] = stage(f"alpha {alpha!r}", measure)
        say(f"alpha {alpha:.4f}: retention {retention(alpha, CALIBRATION):.4f}, target {target:.4f}")
        return retention(alpha) / retention(0.0)

    def holds(alpha: float) -> bool:
        return retention(alpha, CALIBRATION) >= target

    if models.strengths is not None:
        tried = sorted(models.strengths, reverse=True)
        for alpha in tried:
            retained(alpha)
        chosen = max(filter(holds, tried), default=0.0)
    else:
        low = min(keep - MARGIN, curve.GRID[0])
        chosen, tried = search(retained, holds, low, curve.TOP if models.extrapolates else 1.0)
    primary = next(((split, names[0]) for split, names in wanted.items() if is_forget(split)), None)
    control = Control(
        method=models.method,
        alpha=chosen,
        parameters=models.given(chosen),
        keep=keep,
        metric=metric,
        target=target,
        achieved=retention(chosen, CALIBRATION),
        original_held_out=retention(0.0, EVALUATION),
        achieved_held_out=retention(chosen, EVALUATION),
        trace=[
            TracePoint(a, retention(a, CALIBRATION), None if primary is None else _mean(at[a][primary[0]][primary[1]]))
            for a in tried
        ],
    )
    clusters = {split: [d["cluster"] for d in known[0.0][split]] for split in wanted}
    return control, equal_retention.measured(metric, kept, dict(sorted(at.items())), clusters)


def _values(wanted: Wanted, observed: Mapping[str, Sequence[Document]]) -> dict[str, dict[str, list[float]]]:
    return {split: values(names, observed[split]) for split, names in wanted.items()}


def _mean(found: Sequence[float]) -> float:
    known = np.array(found)
    return stats.mean(known[~np.isnan(known)])
