"""Judgements as pictures and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_metrics.records import folder as whole
from unlearn_metrics.reports.console import plain
from unlearn_metrics.reports.meta.judged import VIEWS, MetaEvaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def faithfulness(found: MetaEvaluation) -> Callable[[Axes], bool]:
    """A row for each metric: its AUC with the interval, as published and under control."""
    from unlearn_metrics.reports import drawing  # matplotlib takes a while to import

    order = [name for name, _ in found.by_faithfulness("unlearned")][::-1]

    def draw(axes: Axes) -> bool:
        _rows(axes, order)
        shift = 0.16 if len(found.judged) > 1 else 0.0
        for place, (view, judged) in enumerate(found.judged.items()):
            for row, name in enumerate(order):
                it = judged[name].faithfulness
                if it.value is None or it.low is None or it.high is None:
                    continue
                y, ink = row + (-shift if place else shift), drawing.colour(place)
                axes.plot([it.low, it.high], [y, y], color=ink, lw=1.4)
                axes.plot(it.value, y, "o", color=ink, ms=4, label=VIEWS[view] if row == 0 else None)
        axes.axvline(0.5, color=drawing.MUTED, lw=0.9, ls="--")
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("faithfulness: AUC of models that know against models that do not")
        axes.legend(frameon=False, loc="upper left")
        return True

    return draw


def _rows(axes: Axes, names: list[str]) -> None:
    """A row for each name, in a figure as high as they need."""
    figure = axes.figure
    height = 0.8 + 0.22 * len(names)
    figure.set_size_inches(6.4, height)  # type: ignore[union-attr]
    axes.set_position((0.36, 0.5 / height, 0.62, 1 - 0.6 / height))
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)


def write(folder: Path, name: str, text: str, table: DataFrame, draw: Callable[[Axes], bool]) -> None:
    """FOLDER/NAME.json, .csv and .svg; files of these names there are replaced."""
    from unlearn_metrics.reports import drawing

    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "json": text.encode() + b"\n",
        "csv": table.to_csv(index=False).encode(),
        "svg": drawing.saved(draw, "svg"),
    }
    for ending, data in files.items():
        if data is not None:
            whole.write(folder / f"{name}.{ending}", _writer(data))


def _writer(data: bytes) -> Callable[..., object]:
    return lambda file: file.write(data)
