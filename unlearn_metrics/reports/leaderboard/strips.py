"""A row's residual as a small picture in the table: a dot with its interval, between goal and start."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from unlearn_metrics.reports.drawing import SERIES, SHAPES, marker
from unlearn_metrics.reports.leaderboard.columns import Value
from unlearn_metrics.reports.leaderboard.rows import Group

WIDTH, HEIGHT, MARGIN = 150, 20, 6
VIEW = f'class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="xMinYMid"'
# what stands in the pictures, and how it is drawn in 20 x 20
KEY = {
    "residual": Markup('<path class="range ref" d="M0 10H20"/><circle class="dot ref" cx="10" cy="10" r="4.5"/>'),
    "as published": Markup('<circle class="published ref" cx="10" cy="10" r="3"/>'),
    "goal": Markup('<path class="retain_only" d="M10 1V19"/>'),
    "original": Markup('<path class="original" d="M10 1V19"/>'),
}


def mark(place: int) -> Markup:
    """What a row's points in the plots look like."""
    path = f'<path class="dot p{place % SERIES}" d="{SHAPES[marker(place)]}"/>'
    return Markup(f'<svg class="mark" viewBox="0 0 20 20" role="img" aria-label="its mark in the plots">{path}</svg>')


def scale(group: Group) -> tuple[float, float] | None:
    """The ends of all strips of a table: 0, or less if a value is, and the largest value. None: nothing to show."""
    rows = [*(row.values for row in group.rows), *(reference.values for reference in group.references)]
    parts = [values[column] for values in rows for column in ("residual", "residual_unlearned")]
    known = [x for v in parts for x in (v.value, v.ci_low, v.ci_high) if x is not None and math.isfinite(x)]
    if not any(row.values["residual"].value is not None for row in group.rows):
        return None
    low, high = min([0.0, *known]), max([0.0, *known])
    return (low, high) if high > low else None


def strip(group: Group, values: Mapping[str, Value], place: int | None, ends: tuple[float, float]) -> Markup:
    """SVG of our own: numbers alone. place: of the row, for its colour; None for a model that rows are seen beside."""

    def x(value: float) -> str:
        share = (min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0])
        return f"{MARGIN + share * (WIDTH - 2 * MARGIN):.1f}"

    middle = HEIGHT / 2
    parts = [f'<path class="base" d="M{MARGIN} {middle}H{WIDTH - MARGIN}"/>']
    for reference in group.references:
        if (at := reference.values["residual"].value) is not None:
            parts.append(f'<path class="{reference.role}" d="M{x(at)} 1V{HEIGHT - 1}"/>')
    of, colour = values["residual"], "ref" if place is None else f"p{place % SERIES}"
    published = values["residual_unlearned"].value
    if published is not None and place is not None:
        parts.append(f'<circle class="published {colour}" cx="{x(published)}" cy="{middle}" r="3"/>')
    if of.ci_low is not None and of.ci_high is not None:
        parts.append(f'<path class="range {colour}" d="M{x(of.ci_low)} {middle}H{x(of.ci_high)}"/>')
    if of.value is not None:
        parts.append(f'<circle class="dot {colour}" cx="{x(of.value)}" cy="{middle}" r="4.5"/>')
    return Markup(f'<svg {VIEW} aria-hidden="true">{"".join(parts)}</svg>')
