"""What a table says, in a sentence or two: which row has forgotten most, and how sure that is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard import words
from unlearn_metrics.reports.leaderboard.columns import Value
from unlearn_metrics.reports.leaderboard.rows import Group, Row, labels
from unlearn_metrics.reports.leaderboard.words import extrapolated, percent
from unlearn_metrics.scores import equal_retention
from unlearn_metrics.wording import counted

TESTED = "tests paired by document, 95 % for all; intervals may overlap"
MORE = "significantly more of the forget set left"
NAMED = 3  # rows that a sentence names; of more it gives the number


@dataclass(frozen=True)
class Answer:
    """Sentences. best: the answer. sure: how sure it is, in a word or two; why: what that rests on. beside: the value
    of the first row beside those of the models that show the goal and the start. doubts: what else to bear in mind."""

    best: str
    sure: str
    why: str
    beside: str = ""
    doubts: str = ""

    @property
    def rest(self) -> str:
        return " ".join(filter(None, [f"{self.sure}: {self.why}", self.beside, self.doubts]))

    def __str__(self) -> str:
        return f"{self.best} {self.rest}"


def answer(group: Group) -> Answer:
    named = labels(group)
    ranked = [row for row in group.rows if row.rank is not None]
    if not ranked:
        return _unranked(group)
    first, names = ranked[0], [named[row.name] for row in ranked]
    tied = [row for row in ranked if row.rank == 1]
    rest = len(ranked) - len(tied)
    if len(ranked) == 1:
        best, sure = f"{names[0]} is the only row that is ranked.", "No comparison"
        why = "a rank needs a second checkpoint under the same conditions."
    elif len(tied) == 1:
        best, sure = f"{names[0]} has forgotten the most.", "Sure"
        who = f"{names[1]}, the only other one, has" if rest == 1 else f"the other {rest} ranked rows all have"
        why = f"{who} {MORE} ({TESTED})."
    else:
        best, sure = f"No single best: {listed(names[: len(tied)])} cannot be told apart.", "Not decided"
        why = "what sets them apart may be chance"
        why += f"; {_number(rest)} {'has' if rest == 1 else 'have'} {MORE}" if rest else ""
        why += f" ({TESTED})."
    clusters, doubts = _clusters(first, group.metric), _doubts(group, tied, named)
    if len(ranked) > 1 and clusters < table.SIMULATED:
        sure += ", but from few documents" if len(tied) == 1 else ", and from few documents"
        few = f"With {counted(clusters, 'cluster')} (documents that belong together, such as all questions on one "
        less = f"{few}author), tests are less exact than with {table.SIMULATED} or more."
        doubts = [less, *doubts]
    return Answer(best, sure, why, _beside(group, first, named[first.name]), " ".join(doubts))


def _beside(group: Group, first: Row, name: str) -> str:
    """Both names that the table uses, residual and retention, are explained in this sentence."""
    assert group.retention is not None  # of a ranked row's table
    text = f"Each row is held to {percent(group.retention)} of the original's {words.kept(group)}; its residual is the "
    text += f"{group.metric} still left on the forget set: "
    text += f"{name} {_value(first.values['residual'])}"
    said = {"retain_only": "retain-only model (the goal)", "original": "original"}
    known = {reference.role: reference.values["residual"].value for reference in group.references}
    beside = [f"{said[role]} {table.number(value)}" for role, value in known.items() if value is not None]
    return "; ".join([text, *beside]) + "."


def _doubts(group: Group, tied: list[Row], named: dict[str, str]) -> list[str]:
    """What makes the answer doubtful though it is established."""
    assert group.retention is not None  # of a ranked row's table
    at, found = percent(group.retention), []
    if broken := [named[row.name] for row in tied if row.degenerate]:
        found.append(f"The answers of {listed(broken)} are degenerate: broken text, not forgetting.")
    if beyond := [row for row in tied if extrapolated(row.values)]:
        kept = [(named[row.name], row.values["own_retention"].value) for row in beyond]
        names = listed([name if share is None else f"{name} ({100 * share:.0f} %)" for name, share in kept])
        one = len(beyond) == 1
        more = f"As published, {names} {'retains' if one else 'retain'} more than {at}, so "
        more += f"{'its residual is' if one else 'their residuals are'} {words.EXTRAPOLATED}: "
        found.append(more + f"of mixes beyond them, away from the original, that retain {at}.")
    return found


def _unranked(group: Group) -> Answer:
    reason, rows = Counter(row.unranked for row in group.rows).most_common(1)[0]
    many = len(group.rows)
    which = "the only row" if many == 1 else f"{rows} of {many} rows" if rows < many else f"all {many} rows"
    return Answer("Nothing can be ranked here.", "Unknown", f"{reason} ({which}).")


def listed(names: list[str]) -> str:
    """a, b and c; of many names the first, and how many more there are."""
    shown = names if len(names) <= NAMED else names[: NAMED - 1]
    more = [f"{len(names) - len(shown)} more"] if len(shown) < len(names) else []
    *first, last = [*shown, *more]
    return f"{', '.join(first)} and {last}" if first else last


def _number(rows: int) -> str:
    return "the other one" if rows == 1 else f"the other {rows}"


def _value(value: Value) -> str:
    assert value.value is not None  # of a ranked row
    ends = [end for end in (value.ci_low, value.ci_high) if end is not None]
    return table.number(value.value) + (
        f" [{table.number(ends[0])}, {table.number(ends[1])}]" if len(ends) == 2 else ""
    )


def _clusters(row: Row, metric: str) -> int:
    assert row.record.path is not None  # of a ranked row
    return min(map(len, equal_retention.clusters_of(row.record.path, metric)))
