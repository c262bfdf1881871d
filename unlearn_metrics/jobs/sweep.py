"""Many checkpoints: the cells of a plan, scored one after another by one model, in this process or in Ray's."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from unlearn_metrics.benchmarks import suites
from unlearn_metrics.checkpoints.files import identify, open_checkpoint
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.jobs import identity, plan, score
from unlearn_metrics.jobs.opening import Warm
from unlearn_metrics.jobs.plan import Cell
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import RECORD, claim
from unlearn_metrics.reports import figures

COMMON = ".observed"  # what models said that more than one cell asks: OUT/.observed/<fingerprint>/


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. error: None if its record is there. scored: whether it was made just now."""

    cell: Cell
    error: str | None
    scored: bool
    seconds: float


def check(cells: Sequence[Cell], warm: Warm) -> None:
    """InputError for what would fail every cell: the original, a benchmark, its data."""
    for cell in cells:
        warm("checkpoint", cell.original, make=lambda cell=cell: open_checkpoint(cell.original))  # type: ignore[misc]
        _tasks(cell, warm)


def _tasks(cell: Cell, warm: Warm) -> dict[str, suites.TokenScoreTask]:
    # as open_tasks keeps them, where no metric is added
    asked = cell.benchmark, cell.data, cell.settings.sample
    return warm("tasks", asked[0], repr(asked[1]), asked[2], False, make=lambda: suites.load(*asked))


def run(
    cells: Sequence[Cell], out: Path, warm: Warm, say: Callable[[Cell, str], None] = lambda cell, message: None
) -> Iterator[Outcome]:
    """Score the cells in order, each to its own folder below out. One that fails is noted, and the next one scored."""
    for cell in cells:
        yield _one(cell, out, warm, lambda message, cell=cell: say(cell, message))  # type: ignore[misc]


def _one(cell: Cell, out: Path, warm: Warm, say: Callable[[str], None]) -> Outcome:
    start, folder, scored, error = time.monotonic(), out / cell.folder, False, None
    try:
        if (folder / RECORD).exists():
            say("comparing the run that is there")
            if differing := differences(cell, out, warm):
                raise InputError(
                    f"{folder} holds a run of something else: {differing[0]}; remove it, or choose another --out"
                )
        else:
            with claim(folder, overwrite=False) as kept:
                _score(cell, out, kept, warm, say)
            scored = True
    except InputError as found:
        error = str(found)
    except Exception as found:  # a bug or the machine's: the others may go well
        error = f"{type(found).__name__}: {first_line(found)}"
        warm.made.clear()  # it may have been left half done
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Outcome(cell, error, scored, time.monotonic() - start)


def _score(cell: Cell, out: Path, kept: Path, warm: Warm, say: Callable[[str], None]) -> None:
    plan.note(out, cell, None)
    try:
        given = (cell.original, cell.unlearned, cell.benchmark, cell.data, cell.settings)
        record, observations = score.run(*given, say, kept, warm)
        store.put(out / cell.folder, record, observations)
        figures.put(out / cell.folder, record)
    except Exception as error:
        known = isinstance(error, InputError)
        plan.note(out, cell, str(error) if known else traceback.format_exc())
        raise


def differences(cell: Cell, out: Path, warm: Warm) -> list[str]:
    """Where the run in a cell's folder is not what the cell asks for, in words: settings, weights, data, versions.

    Weights are compared where the checkpoint is a folder here.
    """
    record = store.load_record(out / cell.folder)
    there, asked = plan.noted(out, cell), cell.arguments()
    if there is None:
        return [f"there is no {plan.note_path(out, cell).name} beside it with its arguments"]
    found = [
        f"{key} is {there.get(key, 'not set')} there, {asked.get(key, 'not set')} here"
        for key in sorted((asked.keys() | there.keys()) - {"error"})
        if there.get(key) != asked.get(key)
    ]
    software = identity.software()
    for package in ("unlearn-metrics", "lm-eval"):
        if record.software.get(package) != software[package]:
            found.append(f"{package} is {record.software.get(package)} there, {software[package]} here")
    for split, task in _tasks(cell, warm).items():
        if record.data.get(split) != task.data_sha256:
            found.append(f"its {split} documents are others")
    base = warm("checkpoint", cell.original, make=lambda: open_checkpoint(cell.original))
    roles: dict[str, str | None] = {
        "original": cell.original,
        "unlearned": cell.unlearned,
        "retain_only": cell.settings.retain_model,
    }
    for role, name in roles.items():
        if name is None or role not in record.checkpoints or not Path(name).is_dir():
            continue
        checkpoint = base if role == "original" else open_checkpoint(name, base)
        here = warm("identity", name, make=lambda checkpoint=checkpoint: identify(checkpoint))  # type: ignore[misc]
        if here.weights_sha256 != record.checkpoints[role].weights_sha256:
            found.append(f"the weights of {name} are others")
    return found


# --- several processes ----------------------------------------------------------------------------------------------


def launched() -> tuple[int, int, Callable[[], None]] | None:
    """(shard, of how many, a function that waits for the others to end) under `accelerate launch` or torchrun.

    Each process works for itself, on its own GPU: lm-eval, which would split the documents of every task among them, is
    kept from seeing the others. They end together, since a launcher stops all when one ends with an error. None
    elsewhere.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    local = int(os.environ.get("LOCAL_RANK", rank))
    gpus = visible.split(",") if visible else [str(local)] * (local + 1)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)

    def wait() -> None:
        if store.add("done", 1) == count:
            store.set("all done", "")
        store.wait(["all done"], timedelta(days=365))
        if store.add("gone", 1) < count and rank == 0:  # where it is the first process that keeps the store
            while store.add("gone", 0) < count:
                time.sleep(0.1)

    return rank + 1, count, wait


def on_ray(cells: Sequence[Cell], out: Path, workers: int) -> Iterator[Outcome]:
    """The same by `workers` processes of a Ray cluster (RAY_ADDRESS; without it, of this machine), each with a model of
    its own and, where there are GPUs, one of them. `out` and the checkpoints must be on a disk that all of them see.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise InputError("--ray needs Ray: pip install 'unlearn-metrics[ray]'") from None
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        there = ray.cluster_resources()
        share = {"num_gpus": 1} if there.get("GPU") else {"num_cpus": max(1, int(there["CPU"]) // workers)}
        pool = ActorPool([ray.remote(**share)(_Worker).remote(out.resolve()) for _ in range(workers)])
        yield from pool.map_unordered(lambda worker, cell: worker.score.remote(cell), cells)
    except ray.exceptions.RayError as lost:
        raise InputError(
            f"a worker was lost ({first_line(lost)}); the same command goes on from what is complete"
        ) from None
    finally:
        ray.shutdown()


class _Worker:
    def __init__(self, out: Path) -> None:
        self.out, self.warm = out, Warm(out / COMMON)

    def score(self, cell: Cell) -> Outcome:
        return _one(cell, self.out, self.warm, lambda message: None)
