"""The ranking as a terminal shows it: the answer, and a narrow table; what does not fit is on the page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from unlearn_metrics.reports.leaderboard import words
from unlearn_metrics.reports.leaderboard.answer import answer
from unlearn_metrics.reports.leaderboard.columns import SHOWN
from unlearn_metrics.reports.leaderboard.rows import Group, labels

TABLES, ROWS = 5, 20  # that are printed


def ranking(groups: list[Group]) -> Iterator[Table | Text]:
    shown = [group for group in groups if group.ranked > 1][:TABLES] or groups[:1]
    for group in shown:
        found = answer(group)
        yield Text(f"\n{words.titled(group)}", style="dim")
        yield Text(found.best, style="bold")
        yield Text(found.rest)
        if group.ranked:
            yield _table(group)
    if rest := len(groups) - len(shown):
        yield Text(f"and {rest} more table{'s'[: rest > 1]} on the page")


def _table(group: Group) -> Table:
    table, named = Table(), labels(group)
    table.add_column("rank", no_wrap=True)
    table.add_column("checkpoint", overflow="fold")
    for heading in (words.heading(group, SHOWN[0]), "published"):
        table.add_column(heading, justify="right", no_wrap=True)
    beside = {r.role: ("", words.ROLES[r.role][0], r.values, True) for r in group.references}
    listed = [(words.rank(row), named[row.name], row.values, False) for row in group.rows[: min(ROWS, group.ranked)]]
    listed = [*filter(None, [beside.get("retain_only")]), *listed, *filter(None, [beside.get("original")])]
    for rank, name, values, reference in listed:
        value, interval = words.cell(values["residual"])
        published = "" if reference else words.cell(values["residual_unlearned"])[0]
        style = "dim" if reference else ""
        table.add_row(*(Text(text, style=style) for text in (rank, name, f"{value} {interval}".strip(), published)))
    if group.ranked > ROWS:
        table.add_row("", Text(f"and {group.ranked - ROWS} more"), "", "")
    return table
