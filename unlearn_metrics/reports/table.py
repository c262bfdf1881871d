"""A record as a person reads it: one table and one sentence. Nothing is printed here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.record import Estimate, RunRecord, Score, Scores
from unlearn_metrics.reports.console import one_line
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.scores.composites import COMPOSITES, P_VALUE, equivalence
from unlearn_metrics.scores.equal_retention import barrier
from unlearn_metrics.scores.stats import MIN_CLUSTERS
from unlearn_metrics.splits import is_forget, parse

ARROW = {"higher": "↑", "lower": "↓", "zero": "→0", "half": "→½", "neither": "·"}
COLUMNS = {
    "original": "original",
    "unlearned": "as published",
    "controlled": "under control",
    "retain_only": "retain-only",
}
# The rows of the table, by facet: (split, metric). "forget" = it and its further parts, "*" = every other split.
HEADLINE: dict[str, list[tuple[str, str]]] = {
    "Fluency": [("*", "perplexity"), ("forget", "perplexity"), ("*", "repetition"), ("forget", "repetition")],
    "Knowledge retention": [
        ("retain", "extraction_strength"),
        ("retain", "probability"),
        ("retain", "truth_ratio"),
        ("*", "probability_normalised"),
        ("*", "rouge"),
        ("*", "rouge_f1"),
        ("*", "answer_match"),
        ("*", "cosine"),
        ("*", "entailment"),
        ("*", "judge"),
    ],
    "General ability": [],  # whatever other tasks were asked for
    "Other metrics": [],  # of a record, where nothing here knows them
    "Forget quality": [
        ("forget", "extraction_strength"),
        ("forget", "exact_memorization"),
        ("forget", "probability"),
        ("forget", "truth_ratio"),
        ("forget", "rouge"),
        ("forget", "rouge_f1"),
        ("forget", "answer_match"),
        ("forget", "cosine"),
        ("forget", "entailment"),
        ("forget", "judge"),
    ],
}


def rows(names: Mapping[str, Collection[str]], everything: bool = False) -> list[tuple[str, str, str]]:
    """(facet, split, metric) in table order. names: split -> its metrics; everything=True: beyond the headline."""
    splits = [s for s in names if not parse(s).calibration]
    found = [
        (facet, split, metric)
        for facet, wanted in HEADLINE.items()
        for pattern, metric in wanted
        for split in splits
        if (split == pattern or pattern == ("forget" if is_forget(split) else "*")) and metric in names[split]
    ]
    found += [(facet_of(m, split), split, m) for split in splits for m in names[split] if m not in METRICS]
    found.sort(key=lambda row: list(HEADLINE).index(row[0]))
    if everything:
        rest = [(facet_of(metric, split), split, metric) for split in splits for metric in names[split]]
        found = sorted(dict.fromkeys([*found, *rest]), key=lambda row: list(HEADLINE).index(row[0]))
    return found


def facet_of(metric: str, split: str) -> str:
    if metric not in METRICS and "." not in metric:
        return "Other metrics"
    if metric in METRICS and METRICS[metric].facet == "fluency":
        return "Fluency"
    if is_forget(split):
        return "Forget quality"
    return "Knowledge retention" if metric in METRICS else "General ability"


def measured(scores: Scores) -> dict[str, dict[str, None]]:
    """split -> the metrics that at least one model has on it, in order: logs of others need not hold an original."""
    names: dict[str, dict[str, None]] = {}
    for splits in scores.values():
        for split, metrics in splits.items():
            names.setdefault(split, {}).update(dict.fromkeys(metrics))
    return names


def arrow(record: RunRecord, metric: str, split: str) -> str:
    return ARROW[record.ability.get(metric) or good(metric, split)]


def number(value: float) -> str:
    """Three decimals, or two digits where three decimals would say nothing."""
    size = abs(value)
    return f"{value:.3f}" if size == 0 or 5e-4 <= size < 10 else f"{value:.1f}" if 10 <= size < 1000 else f"{value:.1e}"


def cell(score: Score | None) -> str:
    """'value [low, high]', or a dash where nothing could be scored; what is unscored is said."""
    if score is None:
        return "—"
    if score.value is None:
        return f"— ({score.unscored} unscored)" if score.undefined is None else "—"
    text = number(score.value)
    if score.ci_low is not None and score.ci_high is not None:
        text += f" [{number(score.ci_low)}, {number(score.ci_high)}]"
    return text + (f" ({score.unscored} unscored)" if score.unscored else "")


def _documents(scores: Iterable[Score | None]) -> str:
    """How many documents a row is about; of models that were asked different numbers, each."""
    numbers = dict.fromkeys(score.documents for score in scores if score is not None)
    return ", ".join("—" if number is None else str(number) for number in numbers)


def composites(record: RunRecord) -> list[tuple[str, list[Score | None]]]:
    """(name, its score for every model of the table) of the composites that have a value for one model at least."""
    models = [model for model in COLUMNS if model in record.scores]
    found = {name: [record.composites.get(model, {}).get(name) for model in models] for name in COMPOSITES}
    return [(n, scores) for n, scores in found.items() if any(s is not None and s.value is not None for s in scores)]


def composite(name: str) -> str:
    """What tables call it: whether it is a p-value, and which way is good."""
    p_value = " (p-value)" if COMPOSITES[name].no_interval == P_VALUE else ""
    return f"{name}{p_value} {ARROW[COMPOSITES[name].better]}"


def undefined(record: RunRecord) -> list[str]:
    """'name, name: why they have no value' of the composites that the benchmark asks for, but the run can't tell."""
    why: dict[str, dict[str, None]] = {}
    for model, scores in record.composites.items():
        for name, score in scores.items():
            if score.undefined is not None:
                everywhere = all(x.get(name) is None or x[name].value is None for x in record.composites.values())
                where = "" if everywhere else f" ({COLUMNS[model]})"
                why.setdefault(score.undefined, {})[name + where] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in why.items()]


def composite_notes(record: RunRecord) -> list[str]:
    """What composites establish of each model, and what not, in words."""
    found = {model: record.composites.get(model, {}).get("log_truth_ratio_difference") for model in COLUMNS}
    said = {model: equivalence(score) for model, score in found.items() if score is not None}
    return [f"{COLUMNS[model]}: {words}" for model, words in said.items() if words is not None]


def table(record: RunRecord, everything: bool = False) -> Grid:
    models = [model for model in COLUMNS if model in record.scores]
    heads = ["facet, metric (arrow: good)", "on", *(COLUMNS[model] for model in models), "n"]
    result = Grid(record.benchmark, heads, spare=["original"] if len(models) > 1 else [])
    facet = ""
    for row_facet, split, metric in rows(measured(record.scores), everything):
        if row_facet != facet:
            result.add(row_facet)
            facet = row_facet
        found = [record.scores[model].get(split, {}).get(metric) for model in models]
        result.add(f"  {metric} {arrow(record, metric, split)}", split, *map(cell, found), _documents(found))
    figures = composites(record)
    if figures:
        result.add("Composites")
    for name, found in figures:
        result.add(f"  {composite(name)}", "", *map(cell, found), _documents(found))
    return result


RESCALED = "rescaled: retain-only 0, original 1"
RESIDUAL = ("at {:.0%} retention", "mean, 90 to 100%", RESCALED, "alpha")


def residual_rows(record: RunRecord) -> list[list[str]]:
    """A row for each metric of the path: its name, and what is still there at equal retention. See RESIDUAL."""
    rows = []
    for metric, found in record.residual.items():
        alpha = "—" if found.alpha is None else f"{found.alpha:.3f}" + (" (extrapolated)" if found.alpha > 1 else "")
        values = [estimate(found.value), estimate(found.average)]
        rows.append([metric, *values, "—" if found.above_floor is None else estimate(found.above_floor), alpha])
    return rows


def estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "—"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def residual_table(record: RunRecord) -> Grid | None:
    """What is still there of the forget set at equal retention; None where no path was measured."""
    if not record.residual:
        return None
    retention = next(iter(record.residual.values())).retention
    heads = ["metric", *(heading.format(retention) for heading in RESIDUAL)]
    result = Grid("residual on the forget set, at equal retention", heads, words=1)
    for row in residual_rows(record):
        result.add(*row)
    return result


SIMULATED = 10  # clusters, at least, in the simulation of the intervals (docs/control.md)


def residual_reading(record: RunRecord) -> list[str]:
    """How the two alphas of a run belong together, and whether its clusters are fewer than were simulated."""
    if not record.residual or record.path is None:
        return []
    lines = [
        "columns under control: that checkpoint, the largest alpha measured that keeps the share on the calibration "
        "split; residual: interpolated where retention on all retain documents is exactly that share"
    ]
    clusters = min(len(sums.clusters) for sums in (*record.path.retain[:1], *record.path.forget.values()))
    if MIN_CLUSTERS <= clusters < SIMULATED:
        lines.append(f"{clusters} clusters: intervals from fewer than {SIMULATED} were not simulated")
    return lines


def residual_notes(record: RunRecord) -> list[str]:
    """Sentences on how far the values at equal retention can be relied on: unknown ones, a barrier, sensitivity."""
    notes = []
    if record.path is not None and barrier(record.path):
        notes.append(
            "not on a linear path: far less is retained half-way than at either end, as where a model was retrained or "
            "distilled; it is scored as it is, and ranked apart"
        )
    for metric, found in record.residual.items():
        if found.value.why is not None:
            notes.append(f"{metric}: {found.value.why}")
    for metric, found in list(record.residual.items())[:1]:
        by = ", ".join(f"{part} {'—' if v is None else number(v)}" for part, v in found.sensitivity.items())
        notes.append(f"{metric} by parts of the retain documents: {by}")
    return notes


def escape_markdown(text: str) -> str:
    """A stranger's text as text: what could be Markdown, HTML or a link becomes a character reference."""
    text = one_line(text)
    risky = r"[^\w /,.:;=()%'-]|:(?!\s)|(?<!\d)\.(?!\s)|(?<=\d)\.(?![\d\s])|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(risky, lambda found: f"&#{ord(found[0])};", text)


def markdown(record: RunRecord) -> str:
    """The same table for a README."""
    models = [model for model in COLUMNS if model in record.scores]
    lines = [
        "| facet | metric | on | " + " | ".join(COLUMNS[model] for model in models) + " | n |",
        "|---|---|---|" + "---:|" * (len(models) + 1),
    ]
    for facet, split, metric in rows(measured(record.scores)):
        found = [record.scores[model].get(split, {}).get(metric) for model in models]
        cells = [
            facet,
            f"{metric} {arrow(record, metric, split)}",
            escape_markdown(split),
            *map(cell, found),
            _documents(found),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for name, found in composites(record):
        cells = ["Composites", composite(name), "", *map(cell, found), _documents(found)]
        lines.append("| " + " | ".join(cells) + " |")
    if record.residual:
        retention = next(iter(record.residual.values())).retention
        headings = ["residual on the forget set", *(heading.format(retention) for heading in RESIDUAL)]
        lines += ["", "| " + " | ".join(headings) + " |", "|---|" + "---:|" * len(RESIDUAL)]
        lines += ["| " + " | ".join(row) + " |" for row in residual_rows(record)]
    return "\n".join(lines) + "\n"
