"""What all formats of a leaderboard say: sentences, headings, cells. Every text of a record is hostile here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unlearn_metrics.metrics import METRICS
from unlearn_metrics.records import signature
from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard.columns import (
    BARRIER,
    COLUMNS,
    GARBLED,
    NAME,
    PUBLISHED,
    REPETITIVE,
    SHOWN,
    SIDES,
    TIMES,
    Shown,
    Value,
    logged,
)
from unlearn_metrics.reports.leaderboard.rows import Crossing, Group, Row, base_label, labels, usual
from unlearn_metrics.splits import is_forget, kept_on
from unlearn_metrics.wording import counted

RULE = (
    "Every unlearned checkpoint was put under control, which makes models between it and its original, and measured "
    "along the way. Rows are compared where all retain exactly the same share of what the original retains, by what is "
    "still there of the forget set: their residual; less is better. So there is no retention target to miss. The 95 % "
    "intervals redraw retain and forget documents together, by clusters: documents that belong together, such as all "
    "questions on one author. Ranks come from paired tests on the same draws, of all rows of a table together at 95 %: "
    "a rank is 1 + the number of rows with significantly less. Rows that cannot be distinguished share a rank (beside "
    "it: the places they may have) and are listed by residual. An interval is about one checkpoint, not about a "
    "method over training seeds."
)
DEGENERATE = (
    f"Degenerate: of the answers on the forget set at least {REPETITIVE:.0%} of the 4-grams are repeated, or their "
    f"perplexity is at least {GARBLED:.0f} and {TIMES:.0f} times that on retain. A low residual of such a row shows "
    "broken text, not forgetting."
)
DOCUMENTS = (
    "documents: questions with their answers, or texts; intervals redraw whole clusters of them, such as all questions "
    "on one author"
)
COARSE = "coarse path: most of what unlearning changed is a step or two of the dtype that mixes are rounded to"
EXTRAPOLATED, UNDER_CONTROL = "extrapolated", SIDES["controlled"]
SEEDS = (
    "Rows that are training seeds of one method, by their names: mean, range and standard deviation of their "
    "residuals. This is the spread between seeds, which no row's interval has in it."
)
SEED_HEADINGS = ("method", "seeds", "without a residual", "mean residual", "least to most", "standard deviation")


@dataclass(frozen=True)
class Head:
    """What a maintainer calls the page, and says of it."""

    title: str = "Unlearning leaderboard"
    intro: str = "How much did an unlearned language model forget, once it is as useful as before?"


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


def titled(group: Group) -> str:
    """Benchmark and original model, and what sets the table apart from others of the same name."""
    return ", ".join(filter(None, [f"{group.benchmark}, original {base_label(group)}", group.variant]))


def rank(row: Row) -> str:
    """'1', or '2–4', the places that a row may have, or a dash."""
    return "—" if row.rank is None else f"{row.rank}" + ("" if row.rank == row.rank_worst else f"–{row.rank_worst}")


def kept(group: Group) -> str:
    """What retention is of, in words."""
    metric = usual([row for row in group.rows if row.rank is not None] or group.rows, _kept)
    return f"{metric} on the retain set" if kept_on(metric) == "retain" else metric


def _kept(row: Row) -> str:
    return (row.record.control.metric or row.record.headline.retain)[:NAME]


def present(group: Group) -> list[Shown]:
    """The columns that some row of the group has a value in; what is known as published alone is said to be so."""
    found: list[Shown] = []
    for column in SHOWN:
        if column.value == "own_retention" and found and found[0].value == "residual":
            continue  # it stands beneath the residual
        known = {name: any(row.values[name].value is not None for row in group.rows) for name in _parts(column)}
        if known[column.value]:
            found.append(column if column.beneath and known[column.beneath] else replace(column, beneath=None))
        elif column.beneath and known[column.beneath]:
            what = column.what.removeprefix(f"{UNDER_CONTROL}, ")
            found.append(
                replace(
                    column, heading=f"{column.heading}, {column.small}", value=column.beneath, beneath=None, what=what
                )
            )
    if any(column.value == "residual" for column in found):
        return found
    often = Counter(name for row in group.rows for name, value in row.values.items() if value.value is not None)
    first = f"{group.metric}, forget"  # there already
    more = [
        name for name, rows in often.items() if name not in COLUMNS and name != first and 2 * rows >= len(group.rows)
    ]
    more.sort(key=lambda name: (-often[name], not is_forget(name.split(", ")[1])))
    return found + [logged(name) for name in more[: max(0, LOGGED - len(found))]]


LOGGED = 6  # columns of a table without control: more would not fit


def _parts(column: Shown) -> list[str]:
    return [column.value, *([column.beneath] if column.beneath else [])]


MARKS = "*†‡§¶‖"


def notes(group: Group, cells: bool = False) -> dict[str, str]:
    """Reason -> its mark under the table: for every dash, every missing interval and every row without a rank.

    What concerns every row has no mark. cells: only of cells, where what concerns a whole row is written into it.
    """
    columns = present(group)
    often: Counter[str] = Counter()
    for row in group.rows:
        said = (row.unranked, *flags(row)) if cells else ()
        often.update({why: 1 for why in _whys(row, columns) if why and why not in said})
    everywhere = [why for why, rows in often.items() if rows == len(group.rows) > 1]
    marked = [why for why in often if why not in everywhere]
    marks = {why: MARKS[i % len(MARKS)] * (1 + i // len(MARKS)) for i, why in enumerate(marked)}
    return dict.fromkeys(everywhere, "") | marks


def legend(numbered: Mapping[str, str]) -> list[tuple[str, str]]:
    """(mark, reason), as it stands beneath a table."""
    return [(mark, why if mark else f"All rows: {why}") for why, mark in numbered.items()]


def _whys(row: Row, columns: Sequence[Shown]) -> Iterator[str | None]:
    yield row.unranked
    yield from flags(row)
    for column in columns:
        for name in _parts(column):
            yield row.values[name].why


def alone(group: Group) -> tuple[Value, str]:
    """Of a single row in a compact list: its residual, or else its value as published; and what that is."""
    (row,) = group.rows
    why = f"; not ranked: {row.unranked}" if row.unranked else ""
    if group.retention is not None and row.values["residual"].value is not None:
        return row.values[
            "residual"
        ], f"residual: {group.metric} on the forget set at {percent(group.retention)} retention ↓{why}"
    known = [column for column in present(group) if row.values[column.value].value is not None]
    if not known:
        return Value(None), f"nothing that this package knows{why}"
    published = "" if known[0].heading.endswith(PUBLISHED) else ", as published"
    return row.values[known[0].value], f"{pointed(group, known[0])}{published}{why}"


def reasons(group: Group) -> list[str]:
    """Sentences: why the rows of a compact table have no rank."""
    whys = dict.fromkeys(row.unranked for row in group.rows if row.unranked)
    return [f"Not ranked: {why}." for why in whys] or ["Ranked alone, which says nothing."]


def explained(group: Group) -> list[tuple[str, str, bool]]:
    """(what stands in the table, what it means, whether a phone, which shows the first column alone, has it)."""
    columns = present(group)
    found = []
    for column in columns:
        found.append((pointed(group, column), _what(group, column), column is columns[0]))
        if column.value == "residual" and column.beneath:
            beneath = f"{group.metric} on the forget set of the checkpoint as it was {column.small}, and its retention"
            found.append((column.small, beneath, False))
    at = _asked(group)
    if (wide := next((row for row in group.rows if row.rank != row.rank_worst), None)) is not None:
        found.insert(0, (rank(wide), "the places that a row may have, from the best to the worst", True))
    if any(extrapolated(row.values) for row in group.rows):
        beyond = f"as published the checkpoint retains more than {at}; the residual is of a mix beyond it, away from "
        found.append((EXTRAPOLATED, f"{beyond}the original, that retains {at}", True))
    if group.metric in METRICS and {column.value for column in columns} & {"residual", "residual_unlearned"}:
        definition = " ".join(METRICS[group.metric].definition.split("\n\n")[0].split())
        found.append((group.metric, definition.split(". ")[0].rstrip("."), True))
    if any(UNDER_CONTROL in what for _, what, _ in found):
        near = "" if group.retention is None else f", as close to the checkpoint as {at} allows"
        found.append((UNDER_CONTROL, f"of a model between the original and the checkpoint{near}", False))
    if any(counts(group, column) for column in columns):
        found.append(("n", DOCUMENTS, False))
    if any(column.way for column in columns):
        found.append(("↓ ↑", "which way is good; without an arrow, neither is", False))
    return found


def _asked(group: Group) -> str:
    """The retention that rows are compared at."""
    return "the share asked for" if group.retention is None else percent(group.retention)


def _what(group: Group, column: Shown) -> str:
    if column.value == "residual":
        what = f"{group.metric} on the forget set where exactly {_asked(group)} (--keep of the runs) of the original's "
        return what + f"{kept(group)} is retained, with its 95 % interval"
    if column.value == "residual_unlearned":
        return f"{group.metric} on the forget set, of the checkpoint as it was published"
    if column.value == "common":
        return "the residual at the least retention that every row reaches without being extrapolated"
    return column.what


def flags(row: Row) -> list[str]:
    """What a reader is warned of beside the row's name."""
    degenerate = [f"degenerate: {row.degenerate}"] if row.degenerate else []
    return degenerate + ([COARSE] if row.record.control.rounding else [])


def cell(value: Value) -> tuple[str, str]:
    """(a value or a dash, its interval and what is unscored, or nothing)."""
    if value.value is None:
        return "—", ""
    ends = "" if value.ci_low is None or value.ci_high is None else f"[{number(value.ci_low)}, {number(value.ci_high)}]"
    unscored = f"({value.unscored} unscored)" if value.unscored else ""
    return number(value.value), " ".join(filter(None, [ends, unscored]))


def beneath(values: Mapping[str, Value], column: Shown) -> list[str]:
    """What stands in small under a value: its interval, whether it is extrapolated, another value."""
    lines = [cell(values[column.value])[1]]
    if column.value == "residual" and extrapolated(values):
        lines.append(EXTRAPOLATED)
    if column.beneath:
        lines.append(f"{column.small} {cell(values[column.beneath])[0]}")
        kept = values["own_retention"].value
        if column.value == "residual" and kept is not None:
            lines.append(f"retention {100 * kept:.0f} %")
    return [line for line in lines if line]


def extrapolated(values: Mapping[str, Value]) -> bool:
    """Whether the residual is of a model beyond the unlearned one, which itself retains more."""
    return (values["alpha"].value or 0) > 1


number = table.number


def counts(group: Group, column: Shown) -> str:
    """'n = 60', or 'n = 4 to 60', of a column's documents; nothing where it is not of documents."""
    values = [row.values[column.value] for row in group.rows]
    found = {value.n for value in values if value.n is not None and value.value is not None}
    if not found:
        return ""
    return f"n = {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")


def heading(group: Group, column: Shown) -> str:
    """With the retention that it is at."""
    if column.value == "residual" and group.retention is not None:
        return f"residual at {percent(group.retention)}"
    if column.value == "residual_unlearned":
        return f"{group.metric}, forget"
    if column.value == "common" and group.common is not None and group.common < 1:
        return f"residual at {percent(group.common)}, none {EXTRAPOLATED}"
    return column.heading


def pointed(group: Group, column: Shown) -> str:
    """The heading, and an arrow that shows which way is good."""
    return f"{heading(group, column)} {column.way}".strip()


def about(group: Group) -> list[str]:
    """Sentences beneath the answer: how many rows are ranked, and how far the table can be relied on."""
    none = "none" if len(group.rows) > 1 else "not"
    of = signature.documents(group.signatures[0])
    sentences = [f"{counted(len(group.rows), 'row')}, {group.ranked or none} ranked" + (f", on {of}." if of else ".")]
    if group.common == 1:
        sentences.append("Some row retains at no alpha less than the original, so nowhere do all rows retain the same.")
    sentences += [crossing(group, one) for one in group.crossings]
    if any(row.unranked == BARRIER for row in group.rows):
        sentences.append(
            "Rows that are not on a linear path are scored as published and listed apart: no mixture shows what such a "
            "checkpoint still has at the retention of the others."
        )
    others = [r for r in group.references if r.others]
    seen = "seen beside another"
    sentences += [
        f"{counted(r.others, 'row is', 'rows are')} {seen} {REFERENCES[r.role]} than is shown." for r in others
    ]
    return sentences


REFERENCES = {"retain_only": "retain-only model", "original": "original"}
ROLES = {
    "retain_only": ("retain-only model", "the goal: never saw the forget set"),
    "original": ("original", "the start: nothing unlearned"),
}


def apart(group: Group) -> str | None:
    if not group.apart:
        return None
    return f"Not comparable with the largest table of {group.benchmark}: {'; '.join(group.apart)}."


def crossing(group: Group, of: Crossing) -> str:
    """A sentence."""
    named, rows = labels(group), {row.id: row for row in group.rows}
    a, b = (named[rows[row].name] for row in (of.a, of.b))
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
