"""The judgements as pictures. Names are text of records: they are shown as they are, not as formulas."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from unlearn_metrics.records import folder as whole
from unlearn_metrics.reports.console import plain
from unlearn_metrics.reports.meta.judged import VIEWS, MetaEvaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = ("#1f5fbf", "#c2410c", "#15803d", "#7c3aed", "#0e7490", "#a16207")


def figure(found: MetaEvaluation) -> Figure:
    """Faithfulness with its interval, a row for each metric, as published and under control."""
    from matplotlib.figure import Figure

    order = [name for name, _ in found._sorted("unlearned")][::-1]
    made = Figure((6.4, 1.2 + 0.3 * len(order)), layout="constrained")
    axes = made.subplots()
    shift = 0.16 if len(found.judged) > 1 else 0.0
    for (view, judged), colour, up in zip(found.judged.items(), COLOURS, (shift, -shift), strict=False):
        for row, name in enumerate(order):
            it = judged[name].faithfulness
            if it.value is None or it.low is None or it.high is None:
                continue
            axes.plot([it.low, it.high], [row + up] * 2, color=colour, lw=1.5)
            axes.plot(it.value, row + up, "o", color=colour, ms=5, label=VIEWS[view] if row == 0 else None)
    axes.axvline(0.5, color="#888888", lw=0.8, ls=":")
    axes.set_yticks(range(len(order)), [plain(name) for name in order])
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("faithfulness: AUC of models that know against models that do not")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return made


def svg(made: Figure) -> bytes:
    """A figure as SVG, the same bytes each time."""
    import matplotlib as mpl

    canvas = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unlearn-metrics", "text.parse_math": False}):
        made.savefig(canvas, format="svg", metadata={"Date": None})
    return canvas.getvalue()


def write(folder: Path, name: str, text: str, table: DataFrame, made: Figure) -> None:
    """FOLDER/NAME.json, .csv and .svg; files of these names there are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"json": text.encode() + b"\n", "csv": table.to_csv(index=False).encode(), "svg": svg(made)}
    for ending, data in files.items():
        whole.write(folder / f"{name}.{ending}", partial(_put, data))


def _put(data: bytes, file: IO[bytes]) -> None:
    file.write(data)
