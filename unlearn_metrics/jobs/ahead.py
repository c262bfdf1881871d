"""What is still to be done of a run, and how long it takes: measured, never guessed from a machine's name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from unlearn_metrics.benchmarks.task import REQUESTS
from unlearn_metrics.jobs import keep
from unlearn_metrics.jobs.job import Job
from unlearn_metrics.jobs.observing import observe
from unlearn_metrics.records.folder import Stages
from unlearn_metrics.scores.stats import MIN_CLUSTERS

T = TypeVar("T")

MIXES = 15  # that a calibration takes between its ends: 14 or 15 in every run of docs/control.md
SMALL, LARGE = 2, 6  # documents of each split that are observed to see how long one takes
SHORT = 10  # seconds that are not worth a word


@dataclass
class Clock:
    """Steps of a run by kind: how many are to come, and how long those took that are done.

    A "mix" is one evaluation of a calibration; until one was made, it is taken to last as long as a "whole" one.
    """

    to_come: dict[str, int]
    took: dict[str, list[float]] = field(default_factory=dict)
    then: str = ""  # what comes after, whose time is not known

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.to_come[kind] = max(0, self.to_come[kind] - 1)
        self.took.setdefault(kind, []).append(time.monotonic() - start)

    def stage(self, stage: Stages) -> Callable[[str, Callable[[], T]], T]:
        """The stages of a calibration, each a mix."""

        def timed(name: str, compute: Callable[[], T]) -> T:
            with self.step("mix"):
                return stage(name, compute)

        return timed

    def left(self) -> str:
        """', about 3 min left' of the whole run; "" where that is not known yet, or is hardly any time."""
        if "whole" not in self.took:
            return ""
        # the longest: one that an earlier attempt had made took no time
        seconds = sum(count * max(self.took.get(kind, self.took["whole"])) for kind, count in self.to_come.items())
        most = "at most " if self.to_come.get("mix") and "mix" not in self.took else ""
        then = f" before {self.then}" if self.then else ""
        return f", {most}about {spoken(seconds)} left{then}" if seconds >= SHORT else ""


def clock(job: Job) -> Clock:
    """Of a run that has not begun."""
    if job.models is None or job.settings.keep is None:
        mixes = 0
    else:
        mixes = MIXES if job.models.strengths is None else len(job.models.strengths)
    whole = 2 + (job.models is not None) + ("retain_only" in job.published)
    return Clock({"whole": whole, "mix": mixes}, then=beside(job))


def beside(job: Job) -> str:
    """What a run does beside evaluations and calibration, in words: its time is not counted."""
    return " and ".join(name for name in ("attacks", "depth") if getattr(job.settings, name))


def spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 1 else f"{60 * minutes + rest} s"


def plan(job: Job) -> dict[str, Any]:
    """What a run will do, and about how long it takes on this machine.

    Returns:
        splits: split -> documents, clusters, answers and their tokens (positions that are scored), generations. tasks:
        lm-eval's own. evaluations: kind -> how many. beside: what comes on top, in words. seconds: of the evaluations,
        None where it is not known. device, dtype.
    """
    splits = {}
    for split, task in job.tasks.items():
        scored = [request.args[1] for request in task.instances if request.request_type == "token_scores"]
        written = sum(request.request_type == REQUESTS["generation"] for request in task.instances)
        tokens = [job.lm.tok_encode(text, add_special_tokens=False) for text in scored]
        splits[split] = {
            "documents": min(len(task.eval_docs), job.settings.limit or len(task.eval_docs)),
            "clusters": clusters(job, split),
            "answers": len(scored),
            "positions": sum(len(found) + 1 for found in tokens),  # and the end of the sequence
            "generations": written,
        }
    to_come = clock(job).to_come
    return {
        "benchmark": job.benchmark,
        "splits": splits,
        "tasks": list(job.others),
        "evaluations": to_come,
        "beside": beside(job),
        "seconds": None if job.others else _seconds(job, to_come),
        "device": str(job.lm.device),
        "dtype": str(job.lm.model.dtype).removeprefix("torch."),
    }


def clusters(job: Job, split: str) -> int:
    """How many clusters the documents of a split are in, of those that --limit leaves."""
    task, limit = job.tasks[split], job.settings.limit
    return len({*task.clusters[:limit]})


def cost_of_limit(job: Job) -> str | None:
    """What --limit takes away: splits with fewer clusters than an interval needs; None if it does not."""
    if job.settings.limit is None:
        return None
    few = {split: clusters(job, split) for split in job.tasks}
    few = {split: n for split, n in few.items() if n < MIN_CLUSTERS <= len({*job.tasks[split].clusters})}
    if not few:
        return None
    said = ", ".join(f"{n} of {split}" for split, n in few.items())
    limit = job.settings.limit
    few_left = f"--limit {limit} leaves too few clusters for intervals, which need {MIN_CLUSTERS}: {said}"
    return f"{few_left}; --sample {limit} draws from all of them"


def _seconds(job: Job, to_come: dict[str, int]) -> float:
    """By a few documents of each split, observed twice: what more of them took longer is what documents cost."""
    documents = max(len(task.eval_docs) for task in job.tasks.values())
    documents = min(documents, job.settings.limit or documents)

    def timed(limit: int, mix: bool) -> float:
        small = replace(job, settings=replace(job.settings, limit=limit))
        start = time.monotonic()
        if mix:
            wanted = keep.wanted(job.tasks, job.others, job.settings, job.headline)
            keep.observer(job.lm, job.tasks, job.others, small.settings, wanted)()
        else:
            observe(small, job.published["unlearned"], 1.0)
        return time.monotonic() - start

    total = 0.0
    for kind, count in to_come.items():
        if count:
            timed(1, kind == "mix")  # what is slow only once
            few, more = timed(SMALL, kind == "mix"), timed(LARGE, kind == "mix")
            rate = max(0.0, more - few) / (LARGE - SMALL)
            total += count * (more + rate * max(0, documents - LARGE))
    return total
