"""What the commands print with."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)


def wide() -> Console:
    """For tables: a pipe or a file has no width of its own, so they are not folded there."""
    return out if out.is_terminal else Console(width=160)


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A line for every step, on stderr; the bars within a step are tqdm's."""
    try:
        yield lambda message: err.print(f"[dim]·[/] {escape(message)}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written", highlight=False)
        raise


def hush() -> None:
    """Before torch, transformers and lm-eval are imported: no bars or warnings of theirs among our lines."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the default of bars that don't ask; ours do
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
