"""Judgements as pictures and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_metrics.record import Estimate
from unlearn_metrics.records import folder as whole
from unlearn_metrics.reports.console import plain
from unlearn_metrics.reports.meta.judged import VIEWS, MetaEvaluation
from unlearn_metrics.reports.meta.lasting import RobustnessReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from unlearn_metrics.reports.drawing import Draw


def faithfulness(found: MetaEvaluation) -> Draw:
    """A row for each metric: its AUC, as published and under control."""
    order = [name for name, _ in found.by_faithfulness("unlearned")]
    series = {
        VIEWS[view]: {name: it.faithfulness for name, it in judged.items()} for view, judged in found.judged.items()
    }
    return rows(order, series, "faithfulness: AUC of models that know against models that do not", (0, 1.02), 0.5)


def correlations(found: RobustnessReport) -> Draw:
    """A row for each metric: Pearson's correlation of values before with those after, of each attack, as published."""
    attacks = found.lasting["unlearned"]
    order = list(next(iter(attacks.values())))
    series = {attack: {name: it.pearson for name, it in metrics.items()} for attack, metrics in attacks.items()}
    return rows(order, series, "Pearson's correlation of values before and after the attack", (-1.02, 1.02), 0)


def rows(
    names: Sequence[str],
    series: Mapping[str, Mapping[str, Estimate]],
    what: str,
    ends: tuple[float, float],
    nothing: float,
) -> Draw:
    """A row for each name, the first on top, with a point and an interval of each series. nothing: where a line is."""

    def draw(axes: Axes) -> bool:
        from unlearn_metrics.reports import drawing

        height = 1.05 + 0.22 * len(names)
        axes.figure.set_size_inches(6.4, height)  # type: ignore[union-attr]
        axes.set_position((0.36, 0.5 / height, 0.62, 1 - 0.85 / height))
        axes.set_yticks(range(len(names)), [plain(name) for name in names][::-1])
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_xlim(*ends)
        axes.set_xlabel(what)
        axes.axvline(nothing, color=drawing.MUTED, lw=0.9, ls="--")
        for place, (label, found) in enumerate(series.items()):
            ink, up = drawing.colour(place), 0.5 - (place + 1) / (len(series) + 1)
            for row, name in enumerate(reversed(names)):
                it = found[name]
                if it.value is not None:
                    axes.plot(it.value, row + up, "o", color=ink, ms=4)
                if it.low is not None and it.high is not None:
                    axes.plot([it.low, it.high], [row + up] * 2, color=ink, lw=1.4)
            axes.plot([], [], "o", color=ink, ms=4, label=plain(label))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))
        return True

    return draw


def write(folder: Path, name: str, text: str, table: DataFrame, draw: Draw) -> None:
    """FOLDER/NAME.json, .csv and .svg. InputError if that fails, and for files of others with these names."""
    from unlearn_metrics.reports import drawing

    rows = table.to_csv(index=False)
    files = {f"{name}.json": text.encode() + b"\n", f"{name}.csv": rows.encode()}
    if (drawn := drawing.saved(draw, "svg")) is not None:
        files[f"{name}.svg"] = drawn
    # those of an earlier call begin with the same key, or the same columns
    starts = {f"{name}.json": text.partition(":")[0], f"{name}.csv": ",".join(rows.split(",")[:3])}
    whole.write_files(folder, files, {**starts, f"{name}.svg": drawing.ours})
