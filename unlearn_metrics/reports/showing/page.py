"""A run as one HTML page that needs no network. Every text of a record is hostile here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unlearn_metrics import __version__
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.places import ends
from unlearn_metrics.record import Estimate, RunRecord
from unlearn_metrics.records.folder import check_folder, foreign, write
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import drawing, table
from unlearn_metrics.reports.leaderboard.words import shown
from unlearn_metrics.reports.showing import plots
from unlearn_metrics.reports.showing.examples import Example
from unlearn_metrics.splits import parse

START = "<!doctype html>\n<!-- unlearn-metrics show -->"
LONG = 400  # characters of a text; the rest is folded away


def as_html(record: RunRecord, observations: Observations, metric: str, examples: Sequence[Example]) -> str:
    """The page of a run, with these examples, which were ordered by the metric."""
    templates = PackageLoader("unlearn_metrics.reports.showing")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "shown": shown,
        "plain": _lines,
        "called": called,
        "number": table.number,
        "estimate": _estimate,
    }
    style = templates.get_source(environment, "report.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    models = [model for model in table.COLUMNS if model in record.scores]
    drawn = {
        name: (drawing.inline(draw, f"{name}-", text, ()), text)
        for name, (draw, text) in plots.plots(record, observations).items()
    }
    page: str = environment.get_template("report.html").render(
        start=Markup(START),
        style=Markup(style),
        policy=policy,
        record=record,
        name=called(record.name),
        models={model: table.COLUMNS[model] for model in models},
        facets=_facets(record, models),
        residual=(table.RESIDUAL, table.residual_rows(record)),
        retention=next((found.retention for found in record.residual.values()), None),
        reading=[*table.residual_reading(record), *table.residual_notes(record), *table.composite_notes(record)],
        undefined=table.undefined(record),
        control=describe(record.control),
        plots={name: (Markup(svg), text) for name, (svg, text) in drawn.items() if svg},  # our own SVG
        metric=metric,
        examples=examples,
        columns=table.COLUMNS,
        attacks=_attacks(record),
        depth=_depth(record),
        long=LONG,
        version=__version__,
    )
    return page


def save(path: Path, text: str, start: str = START) -> None:
    """Write the page, or another text that starts so. InputError if that fails, and for a file of others."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file to write to")
        check_folder(path.parent, {})
        if foreign(path, start):
            raise InputError(f"{path} was not written by unlearn-metrics show; choose another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise InputError(f"{path} cannot be written to: {first_line(error)}") from None


def called(name: str) -> str:
    """A name of a checkpoint: of a path on somebody's disk the end."""
    return ends([name], least=2)[name] if name.startswith(("/", "./", "../", "~")) else name


def _facets(record: RunRecord, models: Sequence[str]) -> list[tuple[str, list[tuple[str, str, list[str], bool]]]]:
    """(facet, its rows of metric and arrow, split, a cell for each model, whether it is of the headline)."""
    found: dict[str, list[tuple[str, str, list[str], bool]]] = {}
    names = table.measured(record.scores)
    headline = {*table.rows(names)}
    for facet, split, metric in table.rows(names, everything=True):
        if parse(split).calibration:
            continue
        cells = [table.cell(record.scores[model].get(split, {}).get(metric)) for model in models]
        row = (f"{metric} {table.arrow(record, metric, split)}", split, cells, (facet, split, metric) in headline)
        found.setdefault(facet, []).append(row)
    for name, scores in table.composites(record):
        found.setdefault("Composites", []).append((table.composite(name), "", [*map(table.cell, scores)], True))
    return [*found.items()]


def _estimate(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return "—"
    ends = (
        "" if None in (found.low, found.high) else f" [{table.number(found.low or 0)}, {table.number(found.high or 0)}]"
    )
    return table.number(found.value) + ends


def _attacks(record: RunRecord) -> dict[str, Any] | None:
    """What attacks bring back, of records that have it: the sentence, and a row for each model, metric and attack."""
    attacks: Any = getattr(record, "attacks", None)
    if attacks is None:
        return None
    rows = [
        (table.COLUMNS.get(model, model), metric, name, _estimate(found.value), _estimate(found.net))
        for model, metrics in attacks.recovery.items()
        for metric, made in metrics.items()
        for name, found in made.items()
    ]
    return {"sentence": attacks.sentence, "rows": rows, "made": {name: of.what for name, of in attacks.made.items()}}


def _depth(record: RunRecord) -> tuple[list[str], list[list[str]]] | None:
    """(models, a row of drops for each layer, the first first) of records that have it."""
    if not record.depth:
        return None
    models = [model for model in table.COLUMNS if model in record.depth]
    count = max(len(record.depth[model]) for model in models) if models else 0
    drops = [
        [table.number(d[i]) if i < len(d := record.depth[model]) else "—" for model in models] for i in range(count)
    ]
    return [table.COLUMNS[model] for model in models], drops


def _lines(text: str) -> str:
    """A text of a stranger with its lines."""
    return "\n".join(shown(line) for line in text.splitlines())
