"""What the commands print with."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from unlearn_metrics.records.folder import unfinished
from unlearn_metrics.reports.console import Console as Console
from unlearn_metrics.reports.console import plain as plain

if TYPE_CHECKING:
    from unlearn_metrics.record import RunRecord


out = Console()
err = Console(stderr=True)
asked: set[str] = set()  # of --quiet and --json, what the command was given


def be(option: str, given: bool) -> None:
    """Take note of --quiet or --json. With --json nothing else is printed on stdout."""
    if given:
        asked.add(option)
        out.quiet = "json" in asked


def emit(result: Any) -> None:
    """Print what a command found as JSON, if that was asked for; a function is called for it only then."""
    if "json" in asked:
        print(json.dumps(result() if callable(result) else result, indent=2, default=str))


def as_json(record: RunRecord) -> Any:
    from unlearn_metrics.record import RECORD_TYPE

    return RECORD_TYPE.dump_python(record, mode="json")


def tell(text: str, style: str = "") -> None:
    """A sentence: folded at words on a terminal; one line in a pipe or a file, for who searches it."""
    out.print(Text(text, style=style), soft_wrap=not out.is_terminal)


def note(text: str) -> None:
    """A line on stderr, but with --quiet."""
    if "quiet" not in asked:
        err.print(Text(text), soft_wrap=True)


def wrote(what: object) -> None:
    """Say where something lies now."""
    note(f"wrote {what}")


def show(record: RunRecord, everything: bool) -> None:
    """A record's table, and under it the signature, in one line that can be copied."""
    from unlearn_metrics.reports import attacked, table

    out.print(table.table(record, everything))
    for note in table.composite_notes(record):
        tell(note)
    if (residual := table.residual_table(record)) is not None:
        out.print(residual)
        if everything:
            for note in table.residual_notes(record):
                tell(note)
    for attacks in attacked.tables(record, everything):
        out.print(attacks)
    if record.attacks is not None:
        tell(record.attacks.sentence)
    out.print(Text(record.signature, style="dim"), soft_wrap=True)


def explain(record: RunRecord, verbose: bool) -> None:
    """A record's table, and what is to be said of it."""
    from unlearn_metrics.records.verdict import describe
    from unlearn_metrics.reports import table
    from unlearn_metrics.reports.leaderboard.columns import degenerate

    show(record, verbose)
    for line in table.undefined(record):
        tell(f"unknown: {line}", "dim")
    tell(describe(record.control))
    for line in table.residual_reading(record):
        tell(line, "dim")
    tell(record.verdict, "bold")
    if (seen := degenerate(record)) is not None:
        tell(f"degenerate answers to the forget set: {seen}", "bold red")
    if verbose:
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in record.work.items())
        seconds = "" if record.wall_seconds is None else f"; {record.wall_seconds:.1f} s"
        tell(f"work: {counts}{seconds}")


@contextlib.contextmanager
def status(out_folder: Path | None = None) -> Iterator[Callable[[str], None]]:
    """A line for every step, on stderr, and below them one bar on a terminal; neither with --quiet.

    out_folder: where stages are kept.
    """
    from unlearn_metrics import progress  # imports tqdm, which `hush` comes before

    def line(message: str) -> None:
        err.print(Text.assemble(("· ", "dim"), message), soft_wrap=True)

    quiet = "quiet" in asked
    try:
        with progress.shown(visible=False if quiet else None, line=None if quiet else line) as say:
            yield say
    except KeyboardInterrupt:
        resumes = out_folder is not None and unfinished(out_folder)
        what = "the same command goes on from what is complete" if resumes else "nothing was written"
        err.print(f"interrupted; {what}")
        raise


def hush() -> None:
    """Before torch, transformers and lm-eval are imported: no bars or warnings of theirs among our lines."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the default of bars that don't ask; ours do
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
