"""A trajectory as a picture: what is left of the forget set against retention, checkpoint by checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from unlearn_metrics.folder import write
from unlearn_metrics.types import RunRecord

FILE = "trajectory.svg"


def put(folder: Path, record: RunRecord) -> None:
    """Write the picture beside a record of the control `select`; beside any other there is none."""
    if any(point.forget is not None for point in record.control.trace):
        write(folder / FILE, lambda file: file.write(svg(record)))
    else:
        (folder / FILE).unlink(missing_ok=True)


def svg(record: RunRecord) -> bytes:
    """x = retention on the calibrating half, y = the same metric on forget; the checkpoint chosen is filled."""
    control = record.control
    points = sorted((p.alpha, p.retention, p.forget) for p in control.trace if p.forget is not None)
    names = control.parameters["checkpoints"].split(",")
    canvas = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unlearn-metrics", "text.parse_math": False}):
        figure = Figure((5.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], "-", color="#888888", lw=1)
        for name, (alpha, x, y) in zip(names, points, strict=True):
            axes.plot(x, y, "o", mfc="#1f5fbf" if alpha == control.alpha else "white", mec="#1f5fbf", ms=7)
            axes.annotate(name.removeprefix("checkpoint-"), (x, y), (6, 5), textcoords="offset points", fontsize=8)
        if control.target is not None:
            axes.axvline(control.target, color="#888888", lw=0.9, ls="--")
            axes.set_title(f"target {control.target:.3f}", fontsize=8, loc="right")
        axes.set_xlabel(f"{control.metric} on retain, calibrating half")
        axes.set_ylabel(f"{control.metric} on forget")
        figure.savefig(canvas, format="svg", metadata={"Date": None})
    return canvas.getvalue()
