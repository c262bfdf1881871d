"""The table of one run in LaTeX, for a paper."""

from __future__ import annotations

from unlearn_metrics.record import RunRecord
from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard.papers import tex

START = "% needs \\usepackage{booktabs}\n"


def as_latex(record: RunRecord) -> str:
    """A tabular of every headline metric and composite for each model, and one of the residuals; needs booktabs."""
    models = [model for model in table.COLUMNS if model in record.scores]
    rows = [["metric", "on", *(table.COLUMNS[model] for model in models)]]
    for _, split, metric in table.rows(table.measured(record.scores)):
        cells = [table.cell(record.scores[model].get(split, {}).get(metric)) for model in models]
        rows.append([metric, split, *cells])
    rows += [[name, "", *map(table.cell, found)] for name, found in table.composites(record)]
    parts = [_tabular(rows, "ll" + "r" * len(models))]
    if record.residual:
        retention = next(iter(record.residual.values())).retention
        heads = ["residual on the forget set", *(head.format(retention) for head in table.RESIDUAL)]
        parts.append(_tabular([heads, *table.residual_rows(record)], "l" + "r" * len(table.RESIDUAL)))
    signature = f"% {' '.join(record.signature.split())}"
    return START + signature + "\n" + "\n\n".join(parts) + "\n"


def _tabular(rows: list[list[str]], columns: str) -> str:
    head, *body = [" & ".join(map(tex, row)) + r" \\" for row in rows]
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)
