"""Groups of rows as one HTML page that needs no network. Every text of a record is hostile here."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from unlearn_metrics import __version__
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.record import Estimate, RunRecord
from unlearn_metrics.records import signature
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import attacked, table
from unlearn_metrics.reports.leaderboard import plots, samples, strips, words
from unlearn_metrics.reports.leaderboard.about import About
from unlearn_metrics.reports.leaderboard.answer import answer
from unlearn_metrics.reports.leaderboard.rows import Group, Row, base_label, labels
from unlearn_metrics.reports.leaderboard.words import Head
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.splits import parse

START = "<!doctype html>\n<!-- unlearn-metrics leaderboard -->"
GOOD = {"higher": "↑", "lower": "↓", "zero": "→ 0", "half": "→ ½", "neither": ""}
CURVE = (
    "What is still there where all retain the same: less is better. The point is at the retention of the ranks, the "
    "horizontal line is the retain-only model, which is the goal; bands are 95 % intervals. Dashed: "
    "extrapolated beyond the unlearned model."
)
PATHS = (
    "The way of each row from the original (the cross) to the model as published (the hollow point) and, dashed, "
    "beyond. Small points are measured; bands are 95 % intervals. Right is useful, down is forgotten: the retain-only "
    "model (the diamond) is the goal."
)
MARKED = " A row's mark stands beneath its rank."
OTHERS = 6  # further tables whose answers are listed at the top


def facets(record: RunRecord) -> tuple[list[str], dict[str, list[tuple[str, list[str], str]]]]:
    """(models, split -> rows of (metric and arrow, a cell for each model, n)): everything that the record holds."""
    models = [model for model in table.COLUMNS if model in record.scores]
    splits = list(dict.fromkeys(s for m in models for s in record.scores[m] if not parse(s).calibration))
    tables = {split: [record.scores[model].get(split, {}) for model in models] for split in splits}
    tables["all splits"] = [record.composites.get(model, {}) for model in models]
    found: dict[str, list[tuple[str, list[str], str]]] = {}
    for split, of_models in tables.items():
        for name in COMPOSITES if split == "all splits" else METRICS:
            scores = [of.get(name) for of in of_models]
            if any(scores):
                label = table.composite(name) if split == "all splits" else f"{name} {GOOD[good(name, split)]}".strip()
                n = " / ".join(sorted({"—" if score.n is None else f"{score.n:,}" for score in scores if score}))
                found.setdefault(split, []).append((label, [table.cell(score) for score in scores], n))
    return models, found


def at_equal_retention(record: RunRecord) -> tuple[list[str], list[list[str]]]:
    """(headings, a row for each metric): what a record says is still there, and how it depends on the retain set."""
    parts = list(dict.fromkeys(part for residual in record.residual.values() for part in residual.sensitivity))
    first = next(iter(record.residual.values()))
    heads = ["metric", f"residual at {words.percent(first.retention)}", "mean, 90 to 100 %", table.RESCALED]

    def text(estimate: Estimate | None) -> str:
        if estimate is None or estimate.value is None:
            return "—"
        ends = None in (estimate.low, estimate.high)
        number = words.number(estimate.value)
        return number if ends else f"{number} [{words.number(estimate.low or 0)}, {words.number(estimate.high or 0)}]"

    def alone(value: float | None) -> str:
        return "—" if value is None else words.number(value)

    rows = [
        [name, *map(text, (residual.value, residual.average, residual.above_floor)), _alpha(residual.alpha)]
        + [alone(residual.sensitivity.get(part)) for part in parts]
        for name, residual in record.residual.items()
    ]
    return [*heads, "alpha", *parts], rows


def _alpha(alpha: float | None) -> str:
    return "—" if alpha is None else f"{alpha:.3g}" + (", extrapolated" if alpha > 1 else "")


def as_html(groups: list[Group], head: Head | None = None) -> str:
    head = head or Head()
    templates = PackageLoader("unlearn_metrics.reports.leaderboard")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": words.shown, "breakable": breakable, "glued": glued, "number": table.number}
    environment.filters |= {"base_label": base_label, "findable": findable, "fields_of": _fields}

    def part(name: str) -> str:
        return templates.get_source(environment, name)[0]

    style, script = part("leaderboard.css"), part("leaderboard.js")
    without_script = "[hidden]{display:revert!important}.filters{display:none!important}"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)} {_hash(without_script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )

    def drawn(group: Group) -> list[tuple[Markup, str]]:
        named = labels(group)
        names = [words.shown(named[row.name]) for row in group.rows]
        pairs = [
            (plots.curves(group, names), CURVE + MARKED * plots.has_marks(group)),
            (plots.paths(group, names), PATHS),
        ]
        return [(Markup(svg), text) for svg, text in pairs if svg]  # our own SVG; its names are escaped

    full = [group for group in groups if not is_brief(group, groups)]
    brief = [group for group in groups if is_brief(group, groups)]
    sampled = {row.id for group in full for row in group.rows[: samples.ROWS]}
    return environment.get_template("leaderboard.html").render(
        groups=groups,
        full=full,
        single=[group for group in brief if len(group.rows) == 1],
        logs=[group for group in brief if len(group.rows) > 1],
        answers={group.id: answer(group) for group in full},
        title=head.title,
        intro=head.intro,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        without_script=Markup(without_script),
        start=Markup(START),
        drawn=drawn,
        attacked=attacked,
        samples=lambda row: samples.samples(row) if row.id in sampled else [],
        rule=words.RULE,
        degenerate_rule=words.DEGENERATE,
        seeds_rule=words.SEEDS,
        seed_headings=words.SEED_HEADINGS,
        files=["leaderboard.json", "leaderboard.csv", "leaderboard.md", "leaderboard.tex"],
        version=__version__,
        fields=signature.FIELDS,
        roles=words.ROLES,
        key=strips.KEY,
        OTHERS=OTHERS,
        model_names=table.COLUMNS,
        words=words,
        **{f.__name__: f for f in (facets, labels, at_equal_retention, describe, about_columns)},
        scale=strips.scale,
        strip=strips.strip,
        mark=strips.mark,
        has_marks=plots.has_marks,
    )


def is_brief(group: Group, groups: Sequence[Group]) -> bool:
    """Whether a table is listed in a compact form: nothing in it is ranked, or it is a single row beside others."""
    return group is not groups[0] and (not group.ranked or len(group.rows) == 1)


def about_columns(group: Group) -> list[str]:
    """The columns that leaderboard.yaml fills for some row."""
    said = [row.about for row in group.rows]
    columns = {
        "submitted by": any(a.submitter or a.date or a.link for a in said),
        "checked by": any(a.checked_by for a in said),
    }
    return [name for name, there in columns.items() if there]


def _fields(about: About) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), text) for name, text in asdict(about).items() if text]


def glued(text: str) -> str:
    """No line breaks before a number or a sign."""
    return re.sub(r" (?=[\d%↓↑→])", "\u00a0", text)


def breakable(text: str) -> Markup:
    """Escaped for HTML; a line may break after / and _, and so needs not within a word."""
    return Markup(re.sub("[/_]", r"\g<0><wbr>", str(escape(text))))


def findable(row: Row) -> str:
    """What the page's search looks through."""
    known = [part for c in row.record.checkpoints.values() for part in (c.path, c.revision, c.weights_sha256)]
    return words.shown(" ".join(filter(None, [row.name, row.source, row.record_sha256, *known]))).lower()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
