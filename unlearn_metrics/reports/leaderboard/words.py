"""What all formats of a leaderboard say: sentences, headings, cells. Every text of a record is hostile here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard.columns import (
    BARRIER,
    COLUMNS,
    GARBLED,
    REPETITIVE,
    TIMES,
    Value,
)
from unlearn_metrics.reports.leaderboard.rows import Crossing, Group, Row, labels

RULE = (
    "Every unlearned checkpoint was put under control, which makes models between it and its original, and measured "
    "along the way. Rows are compared where all retain exactly the same share of what the original retains, by what is "
    "still there of the forget set: their residual; less is better. So there is no retention target to miss. The 95 % "
    "intervals redraw retain and forget documents together, by clusters. Ranks come from paired tests on the same "
    "draws, of all rows of a table together at 95 %: a rank is 1 + the number of rows with significantly less. Rows "
    "that cannot be distinguished share a rank (beside it: the places they may have) and are listed by residual. An "
    "interval is about one checkpoint, not about a method over training seeds."
)
DEGENERATE = (
    f"Degenerate: of the answers on the forget set at least {REPETITIVE:.0%} of the 4-grams are repeated, or their "
    f"perplexity is at least {GARBLED:.0f} and {TIMES:.0f} times that on retain. A low residual of such a row shows "
    "broken text, not forgetting."
)
SEEDS = (
    "Rows that are training seeds of one method, by their names: mean, range and standard deviation of their "
    "residuals. This is the spread between seeds, which no row's interval has in it."
)
SEED_HEADINGS = ("method", "seeds", "without a residual", "mean residual", "least to most", "standard deviation")


def shown(text: str) -> str:
    r"""A text of a stranger on one line: control and formatting characters as \uXXXX."""
    if text.isprintable():
        return text
    keep = "\u200c\u200d"  # joiners: Persian and emoji need them
    return "".join(
        c if c in keep or (unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029") else f"\\u{ord(c):04x}"
        for c in text
    )


def percent(retention: float) -> str:
    """95 %, 98.8 %."""
    return f"{100 * retention:.4g} %"


def rank(row: Row) -> str:
    """'1', or '1 (1–3)' where rows share it, or a dash."""
    if row.rank is None:
        return "—"
    return f"{row.rank}" if row.rank == row.rank_worst else f"{row.rank} ({row.rank}–{row.rank_worst})"


def present(group: Group) -> list[str]:
    """The columns that some row of the group has a value in."""
    return [column for column in COLUMNS if any(row.values[column].value is not None for row in group.rows)]


def notes(group: Group) -> dict[str, int]:
    """Reason -> its number under the table: for every dash, every missing interval and every row without a rank."""
    columns = present(group)
    whys = [why for row in group.rows for why in _whys(row, columns)]
    return {why: place for place, why in enumerate(dict.fromkeys(filter(None, whys)), 1)}


def _whys(row: Row, columns: Sequence[str]) -> Iterator[str | None]:
    yield row.unranked
    if row.degenerate:
        yield flag(row)
    for column in columns:
        yield row.values[column].why


def flag(row: Row) -> str:
    return f"degenerate: {row.degenerate}"


def cell(column: str, value: Value) -> tuple[str, str]:
    """(a value or a dash, its interval and what is unscored, or nothing)."""
    if value.value is None:
        return "—", ""
    if column == "alpha":
        return f"{value.value:.4g}", "extrapolated" if value.value > 1 else ""
    ends = "" if value.ci_low is None or value.ci_high is None else f"[{number(value.ci_low)}, {number(value.ci_high)}]"
    unscored = f"({value.unscored} unscored)" if value.unscored else ""
    return number(value.value), " ".join(filter(None, [ends, unscored]))


number = table.number


def counts(group: Group, column: str) -> str:
    """'n = 60', or 'n = 4 to 60', of a column's documents; nothing where it is not of documents."""
    found = {
        n for row in group.rows if (n := row.values[column].n) is not None and row.values[column].value is not None
    }
    if not found:
        return ""
    return f"n = {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")


def heading(group: Group, column: str) -> str:
    """With the retention that it is at."""
    text = COLUMNS[column].heading
    if column == "residual" and group.retention is not None:
        text = f"residual at {percent(group.retention)}"
    if column == "common" and group.common is not None and group.common < 1:
        text = f"residual at {percent(group.common)}"
    return text


def full_heading(group: Group, column: str) -> str:
    """For formats without headings above headings."""
    at, said = COLUMNS[column], counts(group, column)
    return f"{heading(group, column)} {at.way}, {at.block}" + (f" ({said})" if said else "")


def about(group: Group) -> list[str]:
    """Sentences above a table: how many rows are ranked, what of, and how far it can be relied on."""
    rows = f"{len(group.rows)} row" + ("s" if len(group.rows) > 1 else "")
    none = "none" if len(group.rows) > 1 else "not"
    sentences = [f"{rows}, {group.ranked or none} ranked."]
    if group.retention is not None:
        at = f"at {percent(group.retention)} of the original's retention"
        sentences.append(f"The residual is {group.metric} on the forget set {at}.")
    if group.common is not None:
        reach = f"The highest retention that all rows reach without extrapolation is {percent(group.common)} of the "
        reach += "original's: the column beside the mean compares them there."
        nowhere = "Some row retains at no alpha less than the original, so nowhere do all rows retain the same."
        sentences.append(reach if group.common < 1 else nowhere)
    sentences += [crossing(group, one) for one in group.crossings]
    if any(row.unranked == BARRIER for row in group.rows):
        sentences.append(
            "Rows that are not on a linear path are scored as published and listed apart: no mixture shows what such a "
            "checkpoint still has at the retention of the others."
        )
    return sentences


def apart(group: Group) -> str | None:
    if not group.apart:
        return None
    return f"Not comparable with the largest table of {group.benchmark}: {'; '.join(group.apart)}."


def crossing(group: Group, of: Crossing) -> str:
    """A sentence."""
    named, names = labels(group), {row.id: row.name for row in group.rows}
    places = {row.id: place for place, row in enumerate(group.rows, 1)}
    a, b = (f"{named[names[row]]} ({places[row]})" for row in (of.a, of.b))
    at = " and ".join(f"{100 * retention:.1f} %" for retention in of.retentions)
    return f"Which of {a} and {b} has less depends on the retention: their curves cross at {at}."


def seed_rows(group: Group) -> list[list[str]]:
    """The table of methods, see SEED_HEADINGS."""

    def text(value: float | None) -> str:
        return "—" if value is None else number(value)

    return [
        [
            shown(m.name)[:200],
            str(m.seeds),
            str(m.without),
            text(m.mean),
            "—" if m.least is None else f"{text(m.least)} to {text(m.most)}",
            text(m.deviation),
        ]
        for m in group.methods
    ]
