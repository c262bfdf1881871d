"""The command that runs a plan: sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from unlearn_metrics.cli.console import asked, emit, err, hush, out
from unlearn_metrics.errors import InputError
from unlearn_metrics.wording import counted

if TYPE_CHECKING:
    from unlearn_metrics.jobs.opening import Warm
    from unlearn_metrics.jobs.plan import Cell

app = typer.Typer()


@app.command(
    epilog="[bold]A plan[/]; the first three are needed, and any setting of `score` may stand in it:\n\n"
    "original: checkpoints/original\n\n"
    "unlearned: checkpoints/ga/*\n\n"
    "benchmarks: [tofu_forget05]\n\n"
    "data: data/tofu\n\n"
    "controls: [none, {control: mix, keep: 0.95}]\n\n"
    "[bold]Examples[/]: unlearn-metrics sweep plan.yaml --out runs/\n\n"
    "unlearn-metrics sweep plan.yaml --out runs/ --shard 2/8\n\n"
    "accelerate launch --multi_gpu --num_processes 4 -m unlearn_metrics.cli sweep plan.yaml --out runs/"
)
def sweep(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML; see docs/sweep.md.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the runs: BENCHMARK/CHECKPOINT/CONTROL.")],
    shard: Annotated[
        str | None,
        typer.Option(help="Only the i-th of n parts of the cells, for a job array.", metavar="I/N"),
    ] = None,
    ray: Annotated[
        int | None, typer.Option(help="Hand the cells to this many workers of a Ray cluster.", metavar="N", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the plan and list its cells.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every step of a cell.")] = False,
) -> None:
    """Score a grid, checkpoints x benchmarks x controls, as `score` would each of its cells, with one model.

    The same command goes on where it was interrupted, and tries again what failed. Exit code 1 if a cell failed.
    """
    from unlearn_metrics.jobs import early, plan

    cells = plan.read(plan_file)
    for cell in cells:
        early.check(cell.original, None, cell.benchmark, cell.data, cell.settings)
    if ray is not None and shard is not None:
        raise InputError("--ray and --shard exclude each other")
    part = plan.parse_shard(shard) if shard is not None else None
    hush()
    from unlearn_metrics.jobs import sweep as job
    from unlearn_metrics.jobs.opening import Warm

    launched = None if dry_run else job.launched()
    if launched is not None:
        if shard is not None or ray is not None:
            raise InputError("under accelerate or torchrun each process does its own part: no --shard and no --ray")
        part = launched[:2]
    mine = plan.shard(cells, *part) if part is not None else cells
    warm = Warm(out_folder / job.COMMON)
    job.check(cells, warm)
    if dry_run:
        _list(mine, out_folder)
        return
    failed = _run(mine, out_folder, warm, ray, verbose, part)
    _emit(mine, out_folder)
    if launched is not None:
        launched[2]()
    if failed:
        sys.exit(1)


def _list(cells: list[Cell], out_folder: Path) -> None:
    from unlearn_metrics.jobs import plan

    for cell in cells:
        out.print(Text(f"{cell.folder}: {plan.state(out_folder, cell)}"), soft_wrap=True)
    _emit(cells, out_folder)


def _emit(cells: list[Cell], out_folder: Path) -> None:
    from unlearn_metrics.jobs import plan

    emit([{"folder": str(cell.folder), "state": plan.state(out_folder, cell)} for cell in cells])


def _run(
    cells: list[Cell], out_folder: Path, warm: Warm, ray: int | None, verbose: bool, part: tuple[int, int] | None
) -> int:
    """How many cells failed."""
    from tqdm import tqdm

    from unlearn_metrics.jobs import ahead
    from unlearn_metrics.jobs import sweep as job

    shown = "" if part is None else f"shard {part[0]} of {part[1]}: "
    quiet = "quiet" in asked
    if not quiet:
        err.print(f"{shown}{counted(len(cells), 'cell')}")
    done, failures, scored, seconds = 0, [], 0, 0.0
    bar = tqdm(total=len(cells), desc="Sweep", unit="cell", disable=quiet or None, smoothing=0)

    def say(cell: Cell, message: str) -> None:
        bar.set_postfix_str(f"{cell.folder}: {message}"[:100])
        if verbose and not quiet:
            with tqdm.external_write_mode(file=sys.stderr):
                err.print(Text(f"· {cell.folder}: {message}"), soft_wrap=True)

    outcomes = job.run(cells, out_folder, warm, say) if ray is None else job.on_ray(cells, out_folder, ray)
    try:
        for outcome in outcomes:
            done += 1
            scored += outcome.scored
            seconds += outcome.seconds if outcome.scored else 0
            what = "there already"
            if outcome.error is not None:
                failures.append(outcome)
                what = f"failed: {outcome.error}"
            elif outcome.scored:
                what = f"{outcome.seconds:.0f} s"
            left = ""
            if scored and done < len(cells):
                left = f", about {ahead.spoken(seconds / scored * (len(cells) - done) / (ray or 1))} left"
            if not quiet or outcome.error is not None:
                with tqdm.external_write_mode(file=sys.stderr):
                    err.print(Text(f"[{done}/{len(cells)}{left}] {outcome.cell.folder}: {what}"), soft_wrap=True)
            bar.update()
    except KeyboardInterrupt:
        bar.close()
        err.print(
            f"interrupted: {done - len(failures)} of {counted(len(cells), 'cell')} done; the same command goes on "
            "from here"
        )
        raise
    bar.close()
    out.print(Text(f"{done - len(failures)} of {counted(len(cells), 'cell')}: {out_folder}"))
    if failures:
        err.print(f"{len(failures)} failed; what stands above is also beside the folder of each, in .CONTROL.json")
    return len(failures)
