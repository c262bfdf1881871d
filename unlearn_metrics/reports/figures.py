"""A trajectory as a picture: the forget set's metric against retention, checkpoint by checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_metrics.record import RunRecord
from unlearn_metrics.records.folder import CURVE, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def put(out: Path, record: RunRecord) -> None:
    """Write the picture of a run of the control `select` beside its record; of another there is none."""
    if (picture := svg(record)) is not None:
        write(out / CURVE, lambda file: file.write(picture))


def svg(record: RunRecord) -> bytes | None:
    """x = retention on the calibration split, y = the same metric on forget; the checkpoint chosen is filled.

    None unless the control is `select`, calibrated on what the forget set has too.
    """
    control = record.control
    points = sorted((p.alpha, p.retention, p.forget) for p in control.trace if p.forget is not None)
    names = control.parameters.get("checkpoints", "").split(",")
    if len(names) != len(points):
        return None
    from unlearn_metrics.reports import drawing  # matplotlib takes a while to import

    def draw(axes: Axes) -> bool:
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], "-", color=drawing.MUTED, lw=1)
        labels: dict[tuple[float, float], list[str]] = {}
        for name, (alpha, x, y) in zip(names, points, strict=True):
            filling = drawing.colour(0) if alpha == control.alpha else drawing.PAGE
            axes.plot(x, y, "o", mfc=filling, mec=drawing.colour(0), ms=7)
            labels.setdefault((round(x, 2), round(y, 2)), []).append(name.removeprefix("checkpoint-"))
        for i, (spot, same) in enumerate(labels.items()):  # one for what lies on one spot; up, down, up
            up = (0, -14 if i % 2 else 7)
            axes.annotate(", ".join(same), spot, up, textcoords="offset points", ha="center")
        axes.margins(0.12)
        if control.target is not None:
            axes.axvline(control.target, color=drawing.MUTED, lw=0.9, ls="--")
            axes.set_title(f"target {control.target:.3f}", fontsize=8, loc="right")
        axes.set_xlabel(f"{control.metric} on the calibration split")
        axes.set_ylabel(f"{control.metric} on the forget set")
        return True

    return drawing.saved(draw, "svg")
