"""Tables are whole at every width: no figure is cut or folded, and no line is longer than the terminal."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.reports.test_leaderboard import record
from unlearn_metrics.reports import table
from unlearn_metrics.reports.console import Console
from unlearn_metrics.reports.grid import Grid

WIDTHS = (60, 80, 100, 140)


def printed(grid: Grid, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(grid)
    return console.file.getvalue()


def example(models: int, big: float = 1.5e4) -> Grid:
    cells = [f"{big:.1e} [{big / 2:.1e}, {big * 2:.1e}] ({i} unscored)" for i in range(11, 11 + models)]
    grid = Grid("t", ["metric (arrow: good)", "on", *[f"model {i}" for i in range(models)], "n"], spare=["model 0"])
    grid.add("Fluency")
    grid.add("  perplexity ↓", "retain", *cells, "60")
    return grid


def test_forms_by_hand():
    """Four columns with intervals: at 200 characters side by side, at 80 stacked without the first, at 60 in lines."""
    assert "1.5e+04 [7.5e+03, 3.0e+04] (11 unscored)" in printed(example(4), 240)
    stacked = printed(example(4), 80)
    assert "left out, for want of width: model 0" in stacked
    assert re.search(r"\[7.5e\+03, 3.0e\+04\] +\[7.5e\+03, 3.0e\+04\] +\[7.5e", stacked)
    assert "(11 unscored)" not in stacked
    assert "(12 unscored)" in stacked
    lines = printed(example(4), 60).splitlines()
    assert lines[2:5] == [
        "  perplexity ↓, retain",
        "    model 0  1.5e+04 [7.5e+03, 3.0e+04] (11 unscored)",
        "    model 1  1.5e+04 [7.5e+03, 3.0e+04] (12 unscored)",
    ]


numbers = st.floats(-1e6, 1e6).map(lambda x: f"{x:.3g}")
cells = st.tuples(numbers, numbers, numbers).map(lambda x: f"{x[0]} [{x[1]}, {x[2]}]") | numbers | st.just("—")
heads = st.text("ab c_-/", min_size=1, max_size=30)


@given(st.lists(heads, min_size=2, max_size=6, unique=True), st.data(), st.sampled_from(WIDTHS))
def test_nothing_is_cut_or_folded(heads, data, width):
    grid = Grid("title", ["metric", "on", *heads])
    for _ in range(data.draw(st.integers(1, 4))):
        grid.add("a_long_name_of_a_metric ↓", "some_split", *data.draw(st.tuples(*[cells for _ in heads])))
    text = printed(grid, width)
    assert "…" not in text
    assert max(map(cell_len, text.splitlines())) <= width
    wanted = [piece for row, _ in grid.rows for cell in row[2:] for piece in re.split(r" (?=\[)", cell)]
    for piece in set(wanted):
        found = re.findall(rf"(?<![^\s│┃]){re.escape(piece)}(?![^\s│┃])", text)
        assert len(found) >= wanted.count(piece), piece


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_record_says_is_on_the_screen_whole(width):
    told = record("a checkpoint", 0.1)
    console = Console(file=io.StringIO(), width=width)
    console.print(table.table(told), table.residual_table(told))
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    for line in table.residual_rows(told):
        for cell in line[1:]:
            assert all(piece in text for piece in re.split(r" (?=\[)", cell))


def test_spaces_of_any_width_are_shown_and_what_a_terminal_obeys_is_not():
    grid = Grid("t", ["metric", "difference [95\u00a0%]"])
    grid.add("漢字\u3000漢字 12\u202f%", "1 \x1b[31m\u202e\x9b")
    text = printed(grid, 80)
    assert "[95\u00a0%]" in text
    assert "漢字\u3000漢字 12\u202f%" in text
    assert "1 \ufffd[31m\ufffd\ufffd" in text
