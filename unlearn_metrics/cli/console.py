"""What the commands print with."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from unlearn_metrics.records.folder import unfinished
from unlearn_metrics.reports.console import Console as Console
from unlearn_metrics.reports.console import plain as plain

if TYPE_CHECKING:
    from unlearn_metrics.record import RunRecord


out = Console()
err = Console(stderr=True)


def tell(text: str | Text, style: str = "") -> None:
    """A sentence: folded at words on a terminal; one line in a pipe or a file, for who searches it."""
    out.print(Text(text, style=style) if isinstance(text, str) else text, soft_wrap=not out.is_terminal)


def show(record: RunRecord, everything: bool) -> None:
    """A record's table, and under it the signature, in one line that can be copied."""
    from unlearn_metrics.reports import table

    out.print(table.table(record, everything))
    for note in table.composite_notes(record):
        tell(note)
    if (residual := table.residual_table(record)) is not None:
        out.print(residual)
        if everything:
            for note in table.residual_notes(record):
                tell(note)
    out.print(Text(record.signature, style="dim"), soft_wrap=True)


@contextlib.contextmanager
def status(out_folder: Path | None = None) -> Iterator[Callable[[str], None]]:
    """A line for every step, on stderr, and below them one bar on a terminal. out_folder: where stages are kept."""
    from unlearn_metrics import progress  # imports tqdm, which `hush` comes before

    def line(message: str) -> None:
        err.print(Text.assemble(("· ", "dim"), message), soft_wrap=True)

    try:
        with progress.shown(line=line) as say:
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
