"""A table of figures that is whole at every width: no number is ever cut or folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

HEAD, WORDS = 10, 24  # characters in a line of a heading, and of what a row is about, where intervals are stacked
BREAK = re.compile(r" (?=[\[(])")  # before an interval and before a remark


@dataclass
class Grid:
    """Rows under headings, shown as the widest of these forms that fits: a table with a cell in a line; a table with
    intervals beneath their values; the same with the columns in `spare` left out, from the first, which it says; lines.

    Attributes:
        title: above the table.
        heads: a heading for each column.
        rows: (cells, style); a row of one cell is a heading for those beneath.
        words: how many columns from the left hold words; the others hold figures.
        spare: headings of columns that can be left out, in this order.
    """

    title: str
    heads: Sequence[str]
    rows: list[tuple[list[str], str | None]] = field(default_factory=list)
    words: int = 2
    spare: Sequence[str] = ()

    def add(self, *cells: str, style: str | None = None) -> None:
        self.rows.append(([*cells], style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._table(stacked=False))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        def fits(table: Table) -> bool:
            wide = options.update(width=10_000, max_width=10_000)
            return Measurement.get(console, wide, table).maximum <= options.max_width

        for number in range(-1, len(self.spare) + 1):
            left_out = list(self.spare[: max(0, number)])
            table = self.without(left_out)._table(stacked=number >= 0)
            if fits(table):
                yield table
                if left_out:
                    yield Text(f"left out, for want of width: {', '.join(left_out)}", style="dim")
                return
        yield from self._lines(options.max_width)

    def without(self, heads: Sequence[str]) -> Grid:
        kept = [i for i, head in enumerate(self.heads) if head not in heads]
        rows = [(cells if len(cells) == 1 else [cells[i] for i in kept], style) for cells, style in self.rows]
        return replace(self, heads=[self.heads[i] for i in kept], rows=rows)

    def _stacked(self) -> Grid:
        """What a row is about in one cell, and a figure's interval and remarks beneath it."""

        def stack(cells: list[str]) -> list[str]:
            if len(cells) == 1:
                return cells
            what, *others = filter(None, cells[: self.words])
            about = [
                *_wrapped(what, WORDS, "  "),
                *(line for other in others for line in _wrapped(other, WORDS, "    ")),
            ]
            return ["\n".join(about), *(BREAK.sub("\n", cell) for cell in cells[self.words :])]

        rows = [(stack(cells), style) for cells, style in self.rows]
        return replace(self, heads=[self.heads[0], *self.heads[self.words :]], rows=rows, words=1)

    def _table(self, stacked: bool) -> Table:
        grid = self._stacked() if stacked else self
        form: dict[str, Any] = {"box": box.HEAVY_HEAD}
        if stacked:
            form = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
        result = Table(title=Text(grid.title), title_style="bold", **form)
        for i, head in enumerate(grid.heads):
            cells = [line for row, _ in grid.rows if len(row) > 1 for line in row[i].split("\n")]
            widest = max([*map(cell_len, cells), HEAD if stacked else cell_len(head)])
            heading = Text("\n".join(_wrapped(head, widest)))
            result.add_column(heading, justify="left" if i < grid.words else "right", no_wrap=True)
        for place, (row, style) in enumerate(grid.rows):
            if len(row) == 1 and place:
                result.add_section()
            bold = "bold" if len(row) == 1 else style
            result.add_row(*map(Text, row), style=bold)
        return result

    def _lines(self, width: int) -> Iterator[Text]:
        """Every figure in a line of its own, under what it is about."""
        yield Text(self.title, style="bold")
        heads = self.heads[self.words :]
        room = max(map(cell_len, heads), default=0)
        for row, style in self.rows:
            if len(row) == 1:
                yield Text(row[0], style="bold")
                continue
            yield Text(", ".join(filter(None, row[: self.words])), style=style or "")
            for head, cell in zip(heads, row[self.words :], strict=True):
                line = f"    {head}{' ' * (room - cell_len(head))}  {cell}"
                short = line if cell_len(line) <= width else f"    {head}\n      {cell}"
                yield Text(short if cell_len(f"      {cell}") <= width else f"    {head}\n      " + _stack(cell))


def _stack(cell: str) -> str:
    return BREAK.sub("\n      ", cell)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most this width and the indent, broken at spaces, /, - and _, or else anywhere."""
    lines = [""]
    for part in re.findall(r"[^ /_-]*[ /_-]?", text.strip()):
        if cell_len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while cell_len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [indent + line.strip() for line in lines if line.strip()]
