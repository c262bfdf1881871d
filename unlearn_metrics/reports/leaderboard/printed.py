"""The ranking as a terminal shows it: the answer, and a narrow table; what does not fit is on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.text import Text

from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.reports.leaderboard import words
from unlearn_metrics.reports.leaderboard.answer import answer
from unlearn_metrics.reports.leaderboard.columns import SHOWN, Value
from unlearn_metrics.reports.leaderboard.rows import Group, labels
from unlearn_metrics.wording import counted

TABLES, ROWS = 5, 20  # that are printed


def ranking(groups: list[Group]) -> Iterator[Grid | Text]:
    shown = [group for group in groups if group.ranked > 1][:TABLES] or groups[:1]
    for group in shown:
        found = answer(group)
        yield Text(f"\n{words.titled(group)}", style="dim")
        yield Text(found.best, style="bold")
        yield Text(found.rest)
        if group.ranked:
            yield _table(group)
    if rest := len(groups) - len(shown):
        yield Text(f"and {counted(rest, 'more table')} on the page")


def _table(group: Group) -> Grid:
    """Whole at every width. Words: rank and name; then the residual, and the value as published."""
    named, residual = labels(group), words.heading(group, SHOWN[0])
    grid = Grid("", ["rank", "checkpoint", residual, "published"], words=2, spare=["published"])
    beside = {reference.role: reference for reference in group.references}

    def add(rank: str, name: str, values: Mapping[str, Value], published: str, style: str | None = None) -> None:
        grid.add(rank, name, " ".join(words.cell(values["residual"])).strip(), published, style=style)

    if goal := beside.get("retain_only"):
        add("", words.ROLES["retain_only"][0], goal.values, "", "dim")
    for row in group.rows[: min(ROWS, group.ranked)]:
        add(words.rank(row), named[row.name], row.values, words.cell(row.values["residual_unlearned"])[0])
    if group.ranked > ROWS:
        grid.add("", f"and {group.ranked - ROWS} more", "", "")
    if start := beside.get("original"):
        add("", words.ROLES["original"][0], start.values, "", "dim")
    return grid
