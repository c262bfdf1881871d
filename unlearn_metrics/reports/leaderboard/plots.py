"""Two plots of a group as inline SVG: the residual at equal retention, and the whole path of each row.

Points carry the places of rows; their names come in afterwards (see `drawing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba_array

from unlearn_metrics.reports import drawing
from unlearn_metrics.reports.drawing import INK, MARKS, MUTED, PAGE, SERIES, Draw, colour, marker
from unlearn_metrics.reports.leaderboard.rows import Group, Row
from unlearn_metrics.scores import curve, equal_retention

BARS = 12  # in a group of more rows: no bands
BAND_DRAWS, BAND_STEPS = 400, 40  # of the band along a whole path


def curves(group: Group, names: Sequence[str]) -> str | None:
    """x = retention relative to the original's, from 0.9 to 1; y = the residual there, with its band.

    Rows that are compared at equal retention; a point at the group's retention. What lies beyond alpha 1 is
    dashed. A horizontal line is the retain-only model. None if there is no curve.
    """

    def draw(axes: Axes) -> bool:
        axes.set_xlim(curve.GRID[0] - 0.004, 1.004)
        for places in _together(group):
            inner: dict[int, list[Point]] = {}
            beyond: dict[int, list[Point]] = {}
            bands: dict[int, list[Point]] = {}
            spots: list[tuple[int, Point]] = []
            for place in places:
                row = group.rows[place]
                if row.values["average"].value is None and row.values["residual"].value is None:
                    continue
                inner[place], beyond[place], bands[place] = _curve(row, group.metric)
                if (at := row.values["residual"].value) is not None and group.retention is not None:
                    spots.append((place, (group.retention, at)))
            if len(group.rows) <= BARS:
                _bands(axes, {place: band for place, band in bands.items() if len(band) > 2})
            _lines(axes, {place: line for place, line in inner.items() if len(line) > 1}, lw=1.4)
            _lines(axes, {p: line for p, line in beyond.items() if len(line) > 1}, lw=1.4, linestyles=[(0, (2.5, 2))])
            _spots(axes, spots, group)
        if not axes.collections:
            return False
        _target(axes, group)
        goal = _reference(group, "retain_only")
        if goal is not None:
            axes.axhline(goal[1], color=MUTED, lw=1.2, zorder=1, gid="goal")
            beside: Any = {"ha": "right", "va": "bottom", "color": MUTED, "textcoords": "offset points"}
            axes.annotate("retain-only: the goal", (1.003, goal[1]), (0, 2), **beside)
        axes.set_xlabel("retention, as a share of the original's")
        axes.set_ylabel("residual on the forget set")
        return True

    return _svg(draw, f"{group.id}-c", "Residual against retention, from 90 % of the original's", names)


def paths(group: Group, names: Sequence[str]) -> str | None:
    """x = retention relative to the original's, y = the metric on the forget set, at every alpha that was measured.

    From the original (cross) to the unlearned model as published (hollow), and on beyond it (dashed); of ranked rows
    with the band of what is left at each retention. Rows without a path have the hollow point alone, if retention and
    metric are known of it. The retain-only model is a diamond. None if there is nothing to draw.
    """

    def draw(axes: Axes) -> bool:
        original = None
        if len(group.rows) <= BARS:
            bands = {place: _band(row, group.metric) for place, row in enumerate(group.rows) if row.rank is not None}
            _bands(axes, {place: band for place, band in bands.items() if len(band) > 2})
        for places in _together(group):
            inner: dict[int, list[Point]] = {}
            beyond: dict[int, list[Point]] = {}
            ends: list[tuple[int, Point]] = []
            for place in places:
                row = group.rows[place]
                walk = _walk(row, group.metric)
                inner[place] = [point for alpha, point in walk if alpha <= 1]
                beyond[place] = [point for alpha, point in walk if alpha >= 1]
                if walk and walk[0][0] == 0:
                    original = walk[0][1]
                end: list[Point] = [point for alpha, point in walk if alpha == 1]
                x, y = (row.values[column].value for column in ("own_retention", "residual_unlearned"))
                if not end and x is not None and y is not None:
                    end = _finite([(x, y)])
                ends += [(place, point) for point in end]
            _lines(axes, {place: line for place, line in inner.items() if len(line) > 1}, lw=1)
            _lines(axes, {p: line for p, line in beyond.items() if len(line) > 1}, lw=1, linestyles=[(0, (2.5, 2))])
            _points(
                axes,
                [(place, point) for lines in (inner, beyond) for place, line in lines.items() for point in line],
                2.2,
                lw=1,
                zorder=2,
            )
            _spots(axes, ends, group, hollow=True)
        if not axes.collections:
            return False
        original = original or _reference(group, "original")
        if original is not None:
            axes.plot(*original, "+", color=INK, ms=9, mew=1.4, zorder=5, gid="original")
        if (goal := _reference(group, "retain_only")) is not None:
            axes.plot(*goal, "D", color=INK, ms=6, zorder=5, gid="goal")
        _target(axes, group)
        axes.set_xlabel("retention, as a share of the original's")
        axes.set_ylabel("on the forget set")
        return True

    return _svg(draw, f"{group.id}-p", "The path of each row from the original to the unlearned model", names)


def _curve(row: Row, metric: str) -> tuple[list[Point], list[Point], list[Point]]:
    """(the curve up to alpha 1, the curve beyond it, the outline of its band) of a row."""
    path = row.record.path
    if path is None or metric not in path.forget or metric not in row.record.residual:
        return [], [], []
    of = equal_retention.path_of(path, metric)
    once = curve.draw(of, 0, 0)
    points = [point for point in row.record.residual[metric].curve if point.value.value is not None]
    alphas = curve.strength(of, once, [point.retention for point in points])[:, 0].tolist()
    found = [(point.retention, float(point.value.value or 0)) for point in points]
    # at a retention that is reached a little before alpha 1 both lines meet
    inner = [point for point, alpha in zip(found, alphas, strict=True) if alpha <= 1]
    beyond = [point for point, alpha in zip(found, alphas, strict=True) if alpha > 1]
    if beyond and inner:
        beyond.append(inner[0])
    known = [(p.retention, p.value.low, p.value.high) for p in points]
    low = [(x, a) for x, a, b in known if a is not None and b is not None]
    high = [(x, b) for x, a, b in known if a is not None and b is not None]
    return _finite(inner), _finite(beyond), _finite(low + high[::-1])


def _walk(row: Row, metric: str) -> list[tuple[float, Point]]:
    """(alpha, (retention, the metric on the forget set)) at every alpha that was measured."""
    path = row.record.path
    if path is None or metric not in path.forget:
        return []
    of = equal_retention.path_of(path, metric)
    once = curve.draw(of, 0, 0)
    retained, left = curve.retention(of, once)[:, 0], curve.means(of.forget[metric], once.forget)[:, 0]
    walk = zip(path.alphas, retained.tolist(), left.tolist(), strict=True)
    return [(alpha, point) for alpha, x, y in walk for point in _finite([(x, y)])]


def shares(lowest: float) -> list[float]:
    """BAND_STEPS retentions above the lowest, of which the last is 1 itself: a sum of steps can pass it."""
    return [float(share) for share in np.linspace(lowest, 1, BAND_STEPS + 1)[1:]]


def _band(row: Row, metric: str) -> list[Point]:
    """The outline of what is left at each retention that the path reaches, with its 95 % interval."""
    path = row.record.path
    if path is None or metric not in path.forget:
        return []
    of = equal_retention.path_of(path, metric)
    drawn = curve.draw(of, 0, BAND_DRAWS)
    lowest = float(curve.retention(of, drawn)[:, 0].min())
    grid = shares(max(lowest, 0.0))
    found = [curve.estimate(line, of.clusters) for line in curve.residual(of, metric, drawn, grid)]
    known = [(x, e.low, e.high) for x, e in zip(grid, found, strict=True)]
    low = [(x, a) for x, a, b in known if a is not None and b is not None]
    high = [(x, b) for x, a, b in known if a is not None and b is not None]
    return _finite(low + high[::-1])


def _reference(group: Group, role: str) -> Point | None:
    """(retention, the metric on the forget set) of a model that rows are seen beside; retention 1 if unknown."""
    for reference in group.references:
        value = reference.values["residual"].value
        if reference.role == role and value is not None:
            retained = reference.values["own_retention"].value
            return next(iter(_finite([(1.0 if retained is None else retained, value)])), None)
    return None


def _finite(points: Sequence[Point]) -> list[Point]:
    """What can be drawn: a record may hold any number."""
    return [(min(max(x, -9), 9), min(max(y, -9), 9)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _target(axes: Axes, group: Group) -> None:
    if group.retention is not None:
        axes.axvline(group.retention, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        at = (group.retention, 1.06)
        axes.annotate(
            f"{100 * group.retention:.4g} %", at, ha="center", va="bottom", color=MUTED, annotation_clip=False
        )


def _bands(axes: Axes, outlines: Mapping[int, Sequence[Point]]) -> None:
    """place of a row -> the outline of its band."""
    for place, outline in outlines.items():
        drawn: Any = {"facecolors": [colour(place)], "alpha": 0.13, "lw": 0, "zorder": 1.5, "gid": _gid([place])}
        axes.add_collection(PolyCollection([outline], **drawn), autolim=False)


Point = tuple[float, float]


def has_marks(group: Group) -> bool:
    """Whether each row has a colour and shape of its own."""
    return len(group.rows) <= MARKS


def _together(group: Group) -> list[list[int]]:
    """Places of rows that are drawn at once, the first row last, so that it lies on top: each by itself where points
    have shapes, otherwise all, since matplotlib takes as long for one as for many."""
    last_first = list(range(len(group.rows)))[::-1]
    return [[place] for place in last_first] if has_marks(group) else [last_first]


def _lines(axes: Axes, lines: Mapping[int, Sequence[Any]], **style: Any) -> None:
    """place of a row -> the points that a line of its colour joins."""
    if lines:
        drawn: Any = {"zorder": 2, "capstyle": "round", "colors": [colour(p) for p in lines], "gid": _gid(lines)}
        axes.add_collection(LineCollection(list(lines.values()), **drawn, **style), autolim=False)


def _points(axes: Axes, points: Sequence[tuple[int, Point]], size: float, **style: Any) -> None:
    """(place of a row, where), as circles of its colour, `size` units across."""
    if points:
        tints = to_rgba_array([colour(place) for place in range(SERIES)])[[place % SERIES for place, _ in points]]
        drawn: Any = {"s": size**2, "gid": _gid(place for place, _ in points)}
        drawn |= {key: tints for key in ("facecolors", "edgecolors") if key not in style}
        xs, ys = zip(*(point for _, point in points), strict=True)
        axes.scatter(xs, ys, **drawn, **style)


def _spots(axes: Axes, points: Sequence[tuple[int, Point]], group: Group, hollow: bool = False) -> None:
    """Points, in their rows' shapes if there are shapes for all."""
    above = _above([place for place, _ in points], group)
    filling: Any = {"facecolors": PAGE, "lw": 1.2} if hollow else {"edgecolors": PAGE, "lw": 0.7}
    if not has_marks(group):
        return _points(axes, points, 4, zorder=above, **filling)
    for place, point in points:
        _points(axes, [(place, point)], 8, zorder=above, marker=marker(place), **filling)
    return None


def _gid(places: Iterable[int]) -> str:
    """The rows whose parts are in an SVG group, in the order in which they are drawn."""
    return "rows-" + "-".join(map(str, places))


def _above(places: Sequence[int], group: Group) -> float:
    """Earlier rows lie on top."""
    return 3 + (len(group.rows) - min(places, default=0)) / (len(group.rows) + 1)


def _svg(draw: Draw, prefix: str, label: str, names: Sequence[str]) -> str | None:
    def in_frame(axes: Axes) -> bool:
        axes.set_xlim(-0.03, 1.05)
        axes.set_ylim(-0.03, 1.05)
        return draw(axes)

    return drawing.inline(in_frame, prefix, label, names)
