"""What an attacker gets, as a person reads it: a report card, and what each attack brings back."""

from __future__ import annotations

from unlearn_metrics.record import Estimate, RunRecord, Score, under
from unlearn_metrics.records.attacked import SAMPLED
from unlearn_metrics.reports import table
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.scores.recovery import ATTACKED, SPLIT

CARD = ("as it is", "after the worst attack", "in 1,000 samples", "net recovery", "n")


def tables(record: RunRecord, everything: bool = False) -> list[Grid]:
    """The report card and, if everything is wanted, all attacks. None where a record has no attacks."""
    rows, metric = card(record), _metric(record)
    if metric is None:
        return []
    result = Grid(f"report card: what an attacker gets of the forget set ({metric})", ["model", *CARD], words=1)
    for row in rows:
        result.add(*row)
    return [result, *([_each(record, metric)] if everything else [])]


def _metric(record: RunRecord) -> str | None:
    """The headline's metric that was attacked."""
    if record.attacks is None:
        return None
    return next((metric for metrics in record.attacks.recovery.values() for metric in metrics), None)


def card(record: RunRecord) -> list[list[str]]:
    """The report card's rows: a model's name, and CARD of it, by the headline's first metric. None without attacks."""
    metric = _metric(record)
    if record.attacks is None or metric is None:
        return []
    rows = []
    for model in ATTACKED:
        worst = record.attacks.worst.get(model, {}).get(metric)
        if worst is None:
            continue
        base = _score(record, model, metric)
        gained = record.attacks.recovery.get(model, {}).get(metric, {}).get(worst.attack)
        rows.append(
            [
                table.COLUMNS[model],
                table.cell(base),
                _by(worst.value, worst.attack, None if gained is None else gained.value),
                table.cell(_score(record, model, SAMPLED)),
                "—" if worst.net is None else _by(worst.net, worst.net_attack, worst.net),
                "—" if base is None or base.n is None else str(base.n),
            ]
        )
    return rows


def _by(value: Estimate, attack: str | None, more: Estimate | None) -> str:
    """A worst case, and which attack it is under: unless that brings nothing back, when it could be any."""
    return table.estimate(value) + (f" ({attack})" if more is not None and (more.value or 0) > 0 else "")


def markdown(record: RunRecord) -> list[str]:
    """The report card and its sentence as lines of Markdown; none without attacks."""
    rows = card(record)
    if record.attacks is None or not rows:
        return []
    lines = [f"| what an attacker gets ({_metric(record)}) | " + " | ".join(CARD) + " |", "|---|" + "---:|" * len(CARD)]
    lines += ["| " + " | ".join(map(table.escape_markdown, row)) + " |" for row in rows]
    return ["", *lines, "", table.escape_markdown(record.attacks.sentence)]


def _each(record: RunRecord, metric: str) -> Grid:
    assert record.attacks is not None
    models = [model for model in ATTACKED if model in record.attacks.recovery]
    named = [table.COLUMNS[model] for model in models]
    heads = ["attack", *(head for name in named for head in (name, f"net, {name}")), "retain-only"]
    result = Grid(
        f"{metric} of the forget set under attacks; net of what an attack gives the retain-only model", heads, words=1
    )
    for attack in record.attacks.made:
        cells = []
        for model in models:
            found = record.attacks.recovery[model].get(metric, {}).get(attack)
            net = found.net if found is not None else None
            cells += [table.cell(_score(record, under(model, attack), metric)), table.estimate(net or Estimate(None))]
        result.add(attack, *cells, table.cell(_score(record, under("retain_only", attack), metric)))
    return result


def _score(record: RunRecord, model: str, metric: str) -> Score | None:
    return record.scores.get(model, {}).get(SPLIT, {}).get(metric)
