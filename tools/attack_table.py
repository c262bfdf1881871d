"""What attacks give, as tables for docs/: python -m tools.attack_table RUN ..."""

from __future__ import annotations

import html
import sys
from pathlib import Path

from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.reports import attacked, table
from unlearn_metrics.scores.recovery import ATTACKED, SPLIT


def page(record: RunRecord) -> str:
    """The models as they are and under every attack, and the report card."""
    _, each = attacked.tables(record, everything=True)
    metric = record.headline.forget[0]

    def plain(model: str) -> str:
        return table.cell(record.scores[model][SPLIT].get(metric)) if model in record.scores else "—"

    known = [model for model in ATTACKED if model in record.attacks.recovery] if record.attacks is not None else []
    rows = [[*each.heads], ["none", *(cell for model in known for cell in (plain(model), "")), plain("retain_only")]]
    rows += [[f"`{name}`", *cells] for (name, *cells), _ in each.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(each.heads) - 1))
    return html.unescape("\n".join([*lines, *attacked.markdown(record)])) + "\n"  # of runs of our own


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for run in map(Path, sys.argv[1:]):
        record = store.load_record(run)
        sys.stdout.write(f"\n**{record.name}**\n\n{page(record)}")
