"""What tables are shown with, on a terminal and as HTML: what strangers wrote is shown as it is, never obeyed."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from unlearn_metrics.reports.grid import Grid

HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'


class Console(rich.console.Console):
    """Shows what strangers wrote as it is: no markup, no emoji codes, and control characters seen, not obeyed.

    Names, texts and error messages come from records, logs and checkpoints of anyone. Markup of our own is asked for:
    `print(..., markup=True)`, with nobody else's words in it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            text = segment.text if segment.control else plain(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def plain(text: str) -> str:
    """Terminal escapes, direction overrides and the like, replaced by U+FFFD; lines and spaces of any width stay."""
    return text if text.isprintable() else "".join(c if _seen(c) else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """The same without lines of its own."""
    return plain(text).replace("\n", "\ufffd")


def _seen(c: str) -> bool:
    return c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs"


def html(*parts: Grid | Text) -> str:
    """Tables and lines below one another as HTML, escaped, with no style sheet and no script."""
    # in a notebook rich would display at once what is printed here
    console = Console(record=True, file=io.StringIO(), width=10_000, legacy_windows=False, force_jupyter=False)
    width = max(console.measure(part).maximum for part in parts if isinstance(part, Grid))
    for part in parts:
        console.print(part, width=width)
    return console.export_html(inline_styles=True, code_format=HTML)
