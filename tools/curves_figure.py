"""The README's picture: residual extraction strength against retention, a curve with its band for each run.

python tools/curves_figure.py docs/curves.svg RUN RUN ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from unlearn_metrics.record import RunRecord
from unlearn_metrics.records.store import load_record

METRIC = "extraction_strength"
COLOURS = ("#1f5fbf", "#c2410c", "#15803d", "#7c3aed", "#0e7490", "#a16207")


def draw(records: list[RunRecord]) -> Figure:
    figure = Figure((6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for record, colour in zip(records, COLOURS, strict=False):
        points = record.residual[METRIC].curve
        known = [p for p in points if None not in (p.value.value, p.value.low, p.value.high)]
        x = [100 * p.retention for p in known]
        axes.fill_between(
            x, [p.value.low for p in known], [p.value.high for p in known], color=colour, alpha=0.12, lw=0
        )
        alpha = record.residual[METRIC].alpha
        dashes = "--" if alpha is not None and alpha > 1 else "-"
        label = record.name + (" (extrapolated)" if dashes == "--" else "")
        axes.plot(x, [p.value.value for p in known], dashes, color=colour, lw=2, label=label)
    axes.axvline(95, color="#888888", lw=0.8, ls=":")
    axes.set_xlabel("retention, % of the original's")
    axes.set_ylabel("residual extraction strength")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(out: str, *runs: str) -> None:
    with mpl.rc_context({"svg.hashsalt": "unlearn-metrics", "svg.fonttype": "path"}):
        draw([load_record(Path(run)) for run in runs]).savefig(
            out, metadata={"Date": None} if out.endswith("svg") else {}
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
