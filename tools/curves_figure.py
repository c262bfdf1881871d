"""The README's picture: residual extraction strength against retention, a curve with its band for each run.

python -m tools.curves_figure docs/curves.svg "step 26=RUN" "step 39=RUN" ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes

from unlearn_metrics.record import RunRecord
from unlearn_metrics.records.store import load_record
from unlearn_metrics.reports import drawing

METRIC = "extraction_strength"


def draw(axes: Axes, records: dict[str, RunRecord]) -> bool:
    for i, (name, record) in enumerate(records.items()):
        residual, colour = record.residual[METRIC], drawing.colour(i)
        known = [p for p in residual.curve if None not in (p.value.value, p.value.low, p.value.high)]
        at = [p.retention for p in known]
        axes.fill_between(
            at, [p.value.low for p in known], [p.value.high for p in known], color=colour, alpha=0.12, lw=0
        )
        beyond = (residual.alpha or 0) > 1
        label = name + (" (extrapolated)" if beyond else "")
        axes.plot(at, [p.value.value for p in known], "--" if beyond else "-", color=colour, lw=1.6, label=label)
    axes.axvline(0.95, ymin=0.2, color=drawing.MUTED, lw=0.9, ls=(0, (4, 3)))
    axes.set_xlabel("retention, as a share of the original's")
    axes.set_ylabel("residual extraction strength")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="lower right", ncols=2)
    return bool(records)


def main(out: str, *runs: str) -> None:
    named = (run.split("=", 1) for run in runs)
    records = {name: load_record(Path(run)) for name, run in named}
    drawn = drawing.saved(lambda axes: draw(axes, records), "svg")
    if drawn is not None:
        Path(out).write_bytes(drawn)


if __name__ == "__main__":
    main(*sys.argv[1:])
