"""Plots of one run: its path from the original to the unlearned model, how its documents differ, and its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearn_metrics.documents import Observations
from unlearn_metrics.metrics import values
from unlearn_metrics.metrics.depth import THRESHOLD, erased_share
from unlearn_metrics.record import ClusterSums, RunRecord
from unlearn_metrics.records.folder import write_files
from unlearn_metrics.registry import NAME
from unlearn_metrics.reports import drawing
from unlearn_metrics.reports.drawing import INK, MUTED, PAGE, Draw, colour
from unlearn_metrics.reports.table import COLUMNS
from unlearn_metrics.scores import curve, equal_retention

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS: tuple[Literal["svg", "pdf", "png"], ...] = ("svg", "pdf", "png")


def plots(record: RunRecord, observations: Observations) -> dict[str, tuple[Draw, str]]:
    """Name of a plot -> (what draws it, what it shows, in a sentence)."""
    return {
        "path": (
            path(record),
            "The way from the original (the cross) to the unlearned model as published (hollow): what is left of the "
            "forget set at each retention. Small points are measured, lines only join them; beyond alpha 1 they are "
            "dashed. The dashed vertical is the retention that is kept; there, the residual with its 95 % interval. "
            "The dotted horizontal is the retain-only model, where it was measured.",
        ),
        "documents": (
            documents(record, observations),
            "What is left of each document of the forget set, sorted, one line for each model: whether all documents "
            "are a little remembered, or a few wholly.",
        ),
        "depth": (
            depth(record),
            "What each layer still holds of the forget set, as a share of what the original's layer holds beyond the "
            "retain-only model's: 1 is intact, 0 as if never trained on it.",
        ),
    }


def save(folder: Path, record: RunRecord, observations: Observations) -> list[Path]:
    """Write the plots as SVG, PDF and PNG. InputError if the folder cannot be written to, and for files of others."""
    made = {
        f"{name}.{form}": drawn
        for name, (draw, _) in plots(record, observations).items()
        for form in FORMS
        if (drawn := drawing.saved(draw, form)) is not None
    }
    write_files(folder, made, dict.fromkeys(made, drawing.ours))
    return [folder / name for name in made]


def path(record: RunRecord) -> Draw:
    """x = retention relative to the original's, y = each metric of the forget set, at every alpha measured."""

    def draw(axes: Axes) -> bool:
        if record.path is None or not record.path.forget:
            return False
        for i, metric in enumerate(record.path.forget):
            of = equal_retention.path_of(record.path, metric)
            once = curve.draw(of, 0, 0)
            retained, left = curve.retention(of, once)[:, 0], curve.means(of.forget[metric], once.forget)[:, 0]
            walk = [
                (alpha, x, y)
                for alpha, x, y in zip(record.path.alphas, retained.tolist(), left.tolist(), strict=True)
                if math.isfinite(x) and math.isfinite(y)
            ]
            _walk(axes, walk, i, metric)
            if i == 0:
                _residual(axes, record, metric)
        if not axes.lines:
            return False
        axes.set_xlabel("retention, as a share of the original's")
        axes.set_ylabel("on the forget set")
        axes.legend(frameon=False, fontsize=7, loc="best")
        return True

    return draw


def _walk(axes: Axes, walk: Sequence[tuple[float, float, float]], i: int, metric: str) -> None:
    style: Any = {"color": colour(i), "lw": 1.3 if i == 0 else 0.8, "ms": 2.6, "marker": "o"}
    inner = [(x, y) for alpha, x, y in walk if alpha <= 1]
    beyond = [(x, y) for alpha, x, y in walk if alpha >= 1]
    if not inner:
        return
    axes.plot(*zip(*inner, strict=True), label=metric if NAME.fullmatch(metric) else f"metric {i + 1}", **style)
    if len(beyond) > 1:
        axes.plot(*zip(*beyond, strict=True), ls=(0, (2.5, 2)), **style)
    for alpha, x, y in walk:
        if alpha == 1:
            axes.plot(x, y, "o", mfc=PAGE, mec=colour(i), ms=6, zorder=4)
        if alpha == 0:
            axes.plot(x, y, "+", color=INK, ms=8, mew=1.3, zorder=5)


def _residual(axes: Axes, record: RunRecord, metric: str) -> None:
    """The residual at equal retention with its interval and the band of the curve; the retain-only model."""
    floor = _mean(record.path.retain_only.get(metric)) if record.path is not None else None
    if floor is not None:
        axes.axhline(floor, color=MUTED, lw=0.9, ls=(0, (1, 2)), zorder=1)
        axes.annotate("retain-only", (1.0, floor), (0, 3), textcoords="offset points", color=MUTED, ha="right")
    if (found := record.residual.get(metric)) is None:
        return
    band = [(p.retention, p.value.low, p.value.high) for p in found.curve]
    known = [(x, low, high) for x, low, high in band if low is not None and high is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        axes.fill_between(xs, lows, highs, color=colour(0), alpha=0.14, lw=0)
    axes.axvline(found.retention, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    value = found.value
    if value.value is not None:
        if value.low is not None and value.high is not None:
            axes.plot([found.retention] * 2, [value.low, value.high], color=INK, lw=1.2, zorder=4)
        axes.plot(found.retention, value.value, "o", color=INK, ms=4.5, zorder=5)
    top = (found.retention, 1.0)
    at: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "center", "color": MUTED}
    axes.annotate(f"{100 * found.retention:.4g} %", top, (0, 2), va="bottom", annotation_clip=False, **at)


def _mean(sums: ClusterSums | None) -> float | None:
    if sums is None or not sums.total or not sum(sums.count[0]):
        return None
    found = sum(sums.total[0]) / sum(sums.count[0])
    return found if math.isfinite(found) else None


def depth(record: RunRecord) -> Draw:
    """x = layer; y = 1 - the share that it lacks, see `erased_share`, of the means over documents."""

    def draw(axes: Axes) -> bool:
        base = record.depth.get("retain_only", [])
        held = [layer for layer, drop in enumerate(base) if drop > THRESHOLD]
        if not held:
            return False
        for i, model in enumerate(m for m in ("unlearned", "controlled") if len(record.depth.get(m, [])) == len(base)):
            shares = [1 - erased_share([record.depth[model][layer]], [base[layer]]) for layer in held]
            axes.plot([1 + layer for layer in held], shares, "o-", ms=4, color=colour(i), label=COLUMNS[model])
        if not axes.lines:
            return False
        axes.set_ylim(-0.03, 1.03)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("layer")
        axes.set_ylabel("recoverable share")
        axes.legend(frameon=False, fontsize=7, loc="best")
        return True

    return draw


def documents(record: RunRecord, observations: Observations) -> Draw:
    """x = documents of the forget set, sorted; y = the primary metric of each, a line for each model."""

    def draw(axes: Axes) -> bool:
        metric = next((m for m in record.headline.forget if _values(observations, "unlearned", m)), None)
        if metric is None:
            return False
        for i, model in enumerate(name for name in COLUMNS if _values(observations, name, metric)):
            found = sorted(_values(observations, model, metric), reverse=True)
            share = [100 * (k + 0.5) / len(found) for k in range(len(found))]
            axes.step(share, found, where="mid", color=colour(i), lw=1.4, label=COLUMNS[model])
        axes.set_xlim(-2, 104)
        axes.set_xlabel("documents of the forget set, % of all, most remembered first")
        axes.set_ylabel(metric if NAME.fullmatch(metric) else "primary metric")
        axes.legend(frameon=False, fontsize=7, loc="best")
        return True

    return draw


def _values(observations: Observations, model: str, metric: str) -> list[float]:
    """The metric of every document of the forget set that has one; [] where it cannot be computed."""
    found = observations.get(model, {}).get("forget", [])
    try:
        return [value for value in values([metric], found)[metric] if math.isfinite(value)] if found else []
    except KeyError:
        return []
