"""Plots by matplotlib, in the colours of a page as inline SVG, and in their own in files for a paper.

No text from a record is ever laid out or parsed by matplotlib in a page: names come in afterwards, as escaped tooltips.
Every style attribute, which a page's Content-Security-Policy forbids, becomes a presentation attribute.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree as ET

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES = 8  # colours of lines; what shares one is told apart otherwise
# matplotlib's marker -> the same in 20 x 20. Colours and shapes take turns, so that the first MARKS places differ
SHAPES = {
    "o": "M2.5 10a7.5 7.5 0 1 0 15 0a7.5 7.5 0 1 0-15 0Z",
    "s": "M3.5 3.5L16.5 3.5L16.5 16.5L3.5 16.5Z",
    "^": "M10 2L18 17L2 17Z",
    "v": "M10 18L2 3L18 3Z",
}
MARKS = SERIES * len(SHAPES)
# Colours are called by their place in matplotlib's cycle: first those of lines, then these four.
INK, MUTED, LINE, PAGE = (f"C{SERIES + i}" for i in range(4))
PAPER = ["#1f6fb4", "#b35900", "#2a7d3f", "#b3262e", "#7048a8", "#7d5a3c", "#00767c", "#a8327e"]
PAPER += ["#1c2026", "#59616e", "#d5dae1", "#ffffff"]
# what matplotlib draws in for a page -> what the page makes of it
COLOURS = {f"#0a0b{i:02x}": f"var(--s{i})" for i in range(SERIES)}
COLOURS |= {"#010101": "currentColor", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--card)"}
SIZE = (4.6, 3.3)  # inches of 72 units: on a phone about one pixel each
Draw: TypeAlias = Callable[[Axes], bool]
"""Draws into axes; False where there is nothing to draw."""


def colour(place: int) -> str:
    return f"C{place % SERIES}"


def marker(place: int) -> str:
    return [*SHAPES][(place + place // SERIES) % len(SHAPES)]


def _style(colours: Sequence[str]) -> Any:  # rcParams names its keys
    ink, _, line, _ = colours[SERIES:]
    return {
        "axes.prop_cycle": cycler(color=colours),
        "svg.fonttype": "none",
        "svg.hashsalt": "unlearn-metrics",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "font.size": 8,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": line,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.4,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "lines.solid_capstyle": "round",
    }


def _saved(draw: Draw, form: str, colours: Sequence[str], **options: Any) -> bytes | None:
    with mpl.rc_context(_style(colours)):
        figure = Figure(figsize=SIZE)
        if not draw(figure.add_axes((0.115, 0.14, 0.865, 0.79))):
            return None
        file = io.BytesIO()
        figure.savefig(file, format=form, **options)
    return file.getvalue()


MAKER = "unlearn-metrics, drawn by matplotlib"


def saved(draw: Draw, form: Literal["svg", "pdf", "png"]) -> bytes | None:
    """A plot as a file, the same whenever it is written; None if there is nothing to draw."""
    said = {
        "svg": {"Date": None, "Creator": MAKER},
        "pdf": {"CreationDate": None, "Creator": MAKER},
        "png": {"Software": MAKER},
    }
    return _saved(draw, form, PAPER, metadata=said[form], dpi=200)


def ours(path: Path) -> bool:
    """Whether a file is a plot that `saved` made."""
    return path.is_file() and MAKER.encode() in path.read_bytes()


def inline(draw: Draw, prefix: str, label: str, names: Sequence[str]) -> str | None:
    """A plot as inline SVG of a page; None if there is nothing to draw.

    Args:
        draw: marks what belongs to a row by the gid "rows-PLACE-PLACE-...", in the order in which it is drawn.
        prefix: of ids, so that plots of one page differ.
        label: what is seen, for who does not see it.
        names: of the rows, which a pointer on a row's parts is told.
    """
    drawn = _saved(draw, "svg", [*COLOURS], transparent=True, metadata={"Date": None, "Creator": None})
    return None if drawn is None else for_page(drawn.decode(), prefix, label, names)


_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def for_page(text: str, prefix: str, label: str, names: Sequence[str]) -> str:
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
                title.text = names[int(place)]
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")
