"""What the commands print with."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from unlearn_metrics.records.folder import unfinished

if TYPE_CHECKING:
    from unlearn_metrics.record import RunRecord


class Console(rich.console.Console):
    """Shows what strangers wrote as it is: no markup, no emoji codes, and control characters seen, not obeyed.

    Names, texts and error messages come from records, logs and checkpoints of anyone. Markup of our own is asked for:
    `print(..., markup=True)`, with nobody else's words in it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def plain(text: str) -> str:
    """Terminal escapes, direction overrides and the like, replaced by U+FFFD; lines stay lines."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


out = Console()
err = Console(stderr=True)


def wide() -> Console:
    """For tables: a pipe or a file has no width of its own, so they are not folded there."""
    return out if out.is_terminal else Console(width=160)


def show(record: RunRecord, everything: bool) -> None:
    """A record's table, and under it the signature, in one line that can be copied."""
    from unlearn_metrics.reports import table

    console = wide()
    console.print(table.table(record, everything))
    console.print(Text(record.signature, style="dim"), soft_wrap=True)


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
