"""Two plots of a group as inline SVG: residual extraction strength against retention, and the calibration.

matplotlib draws; then every style attribute, which the page's Content-Security-Policy forbids, becomes a presentation
attribute, its colours those of the page. Names of rows come in afterwards, as escaped tooltips: no text from a record
is ever laid out or parsed by matplotlib.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas

from unlearn_metrics.reports.leaderboard.rows import MEASURED, Group, Row, measured

SERIES = 8  # colours; the numbers of the rows tell apart what shares one
BARS, NUMBERS = 12, 40  # in a group of more rows: no error bars, no numbers in the points
# what matplotlib draws in -> what the page makes of it
INK, MUTED, LINE, PAGE = "#010101", "#020202", "#030303", "#040404"
COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", PAGE: "var(--card)"}
COLOURS |= {f"#0a0b{i:02x}": f"var(--s{i})" for i in range(SERIES)}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unlearn-metrics",
    "text.parse_math": False,
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.4,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
}
SIZE = (4.6, 3.3)  # inches of 72 units: on a phone about one pixel each


def colour(place: int) -> str:
    return f"#0a0b{place % SERIES:02x}"


def trade_off(group: Group, names: Sequence[str]) -> str | None:
    """x = retention, y = residual extraction strength; a line joins each row's points as published and under control.

    Only measured points are drawn; nothing was measured between them. None if there is none.
    """

    def draw(axes: Axes) -> bool:
        for places in _together(group):
            raw, held = (
                {p: point for p in places if (point := _point(group.rows[p], side)) is not None}
                for side in ("unlearned", "controlled")
            )
            _lines(axes, {p: [raw[p], held[p]] for p in raw if p in held}, lw=1, alpha=0.6)
            for p, (x, y) in held.items() if len(group.rows) <= BARS else ():
                kept, residual = (group.rows[p].values[column]["controlled"] for column in ("retention", "residual"))
                for bar in [((kept.ci_low, y), (kept.ci_high, y)), ((x, residual.ci_low), (x, residual.ci_high))]:
                    if None not in (*bar[0], *bar[1]):
                        _lines(axes, {p: bar}, lw=0.8)
            _points(axes, list(raw.items()), 5, facecolors=PAGE, lw=1.3, zorder=_above(places, group))
            _spots(axes, list(held.items()), group)
        if not axes.collections:
            return False
        if (original := _original(group.rows)) is not None:
            axes.plot(*original, "+", color=INK, ms=9, mew=1.4, zorder=5, gid="original")
        if (target := _target(group.rows)) is not None:
            axes.axvline(target, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            axes.annotate("target", (target, 1.06), ha="right", va="bottom", color=MUTED, annotation_clip=False)
        # a task's name comes from a stranger and stays out of the drawing
        usual = all(measured(row.record, "retention") == MEASURED["retention"] for row in group.rows)
        axes.set_xlabel(
            "retention: " + ("extraction strength on the retain set" if usual else "the metric that the control kept")
        )
        axes.set_ylabel("residual extraction strength")
        return True

    return _svg(draw, f"{group.id}-t", "Residual extraction strength against retention", names)


def calibration(group: Group, names: Sequence[str]) -> str | None:
    """x = alpha, y = retention on the calibration split, at every alpha that the calibration evaluated."""

    def draw(axes: Axes) -> bool:
        for places in _together(group):
            traces = {p: sorted((t.alpha, t.retention) for t in group.rows[p].record.control.trace) for p in places}
            _lines(axes, {p: trace for p, trace in traces.items() if trace}, lw=1)
            tried = [(p, point) for p, trace in traces.items() for point in trace]
            _points(axes, tried, 2.2, lw=1, zorder=2)
            _spots(axes, [(p, point) for p, point in tried if point[0] == group.rows[p].alpha], group)
        if not axes.collections:
            return False
        targets = {row.record.control.target for row in group.rows if row.record.control.trace}
        if len(targets) == 1 and (target := targets.pop()) is not None:
            axes.axhline(target, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            axes.annotate("target", (0, target), ha="left", va="bottom", color=MUTED)
        axes.set_xlabel("alpha: weight of the unlearned model (0 = original)")
        axes.set_ylabel("retention on the calibration split")
        return True

    return _svg(draw, f"{group.id}-c", "Retention at each alpha that the calibration tried", names)


Point = tuple[float, float]


def _together(group: Group) -> list[list[int]]:
    """Places of rows that are drawn at once, the first row last, so that it lies on top: each by itself where points
    have numbers in them, otherwise all, since matplotlib takes as long for one as for many."""
    last_first = list(range(len(group.rows)))[::-1]
    return [[place] for place in last_first] if len(last_first) <= NUMBERS else [last_first]


def _lines(axes: Axes, lines: Mapping[int, Sequence[Any]], **style: Any) -> None:
    """place of a row -> the points that a line of its colour joins."""
    if lines:
        drawn: Any = {"zorder": 2, "capstyle": "round", "colors": [colour(p) for p in lines], "gid": _gid(lines)}
        axes.add_collection(LineCollection(list(lines.values()), **drawn, **style), autolim=False)


def _points(axes: Axes, points: Sequence[tuple[int, Point]], size: float, **style: Any) -> None:
    """(place of a row, where), as circles of its colour, `size` units across."""
    if points:
        tints = [colour(place) for place, _ in points]
        drawn: Any = {"s": size**2, "gid": _gid(place for place, _ in points)}
        drawn |= {key: tints for key in ("facecolors", "edgecolors") if key not in style}
        xs, ys = zip(*(point for _, point in points), strict=True)
        axes.scatter(xs, ys, **drawn, **style)


def _spots(axes: Axes, points: Sequence[tuple[int, Point]], group: Group) -> None:
    """Filled points, the numbers of their rows in them if there is room for numbers."""
    above, room = _above([place for place, _ in points], group), len(group.rows) <= NUMBERS
    _points(axes, points, 9.5 if room else 4, edgecolors=PAGE, lw=0.7, zorder=above)
    for place, (x, y) in points if room else ():
        inside: Any = {"ha": "center", "va": "center_baseline", "fontsize": 6.5, "color": PAGE, "clip_on": True}
        axes.text(x, y, str(place + 1), **inside, zorder=above, gid=_gid([place]))


def _gid(places: Iterable[int]) -> str:
    """The rows whose parts are in an SVG group, in the order in which they are drawn."""
    return "rows-" + "-".join(map(str, places))


def _above(places: Sequence[int], group: Group) -> float:
    """Earlier rows lie on top."""
    return 3 + (len(group.rows) - min(places, default=0)) / (len(group.rows) + 1)


def _point(row: Row, side: str) -> Point | None:
    x, y = (row.values[column][side].value for column in ("retention", "residual"))
    return None if x is None or y is None else (x, y)


def _original(rows: Sequence[Row]) -> tuple[float, float] | None:
    for row in rows:
        splits = row.record.scores.get("original", {})
        found = [splits.get(s, {}).get(m) for s, m in (measured(row.record, c) for c in ("retention", "residual"))]
        x, y = (None if score is None else score.value for score in found)
        if x is not None and y is not None:
            return x, y
    return None


def _target(rows: Sequence[Row]) -> float | None:
    return next((row.target for row in rows if row.target is not None), None)


def _svg(draw: Callable[[Axes], bool], prefix: str, label: str, names: Sequence[str]) -> str | None:
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=SIZE)
        FigureCanvasSVG(canvas)
        axes = canvas.add_axes((0.115, 0.14, 0.865, 0.79))
        axes.set_xlim(-0.03, 1.05)
        axes.set_ylim(-0.03, 1.05)
        if not draw(axes):
            return None
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(text.getvalue(), prefix, label, names)


_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def inline(text: str, prefix: str, label: str, names: Sequence[str]) -> str:
    """matplotlib's SVG for a page: ids prefixed, no style, colours of the page, parts of a row marked data-row.

    names: of the rows, which a pointer on a row's parts is told.
    """
    root = ET.fromstring(text)
    used = set(re.findall(r"""(?:url\(|href=")#([^)"]+)""", text))
    for parent in list(root.iter()):
        parent.tag = parent.tag.removeprefix(_SVG)
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata") or (child.tag == f"{_SVG}defs" and not len(child)):
                parent.remove(child)
    for node in root.iter():
        for key, value in [pair.split(":", 1) for pair in node.attrib.pop("style", "").split(";") if ":" in pair]:
            node.set(key.strip(), value.strip())
        for key in ("font", "font-family"):
            if key in node.attrib:
                size = re.search(r"([\d.]+)px", node.attrib.pop(key))
                if size:
                    node.set("font-size", size[1])
        for key in ("fill", "stroke"):
            if key in node.attrib:
                node.set(key, COLOURS.get(node.attrib[key], node.attrib[key]))
        if _LINK in node.attrib:
            node.set("href", "#" + prefix + node.attrib.pop(_LINK).removeprefix("#"))
        if "clip-path" in node.attrib:
            node.set("clip-path", node.attrib["clip-path"].replace("url(#", f"url(#{prefix}"))
        name = node.attrib.pop("id", "")
        if name in used:
            node.set("id", prefix + name)
        elif name.startswith("rows-"):
            places = name.split("-")[1:]
            defined = {id(part) for defs in node.iter("defs") for part in defs.iter()}
            drawn = [part for part in node.iter() if part.tag in ("path", "use") and id(part) not in defined]
            for part, place in zip(drawn or [node], places, strict=True):
                part.set("data-row", place)
                title = ET.SubElement(part, "title")
                title.text = f"{int(place) + 1}: {names[int(place)]}"
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")
