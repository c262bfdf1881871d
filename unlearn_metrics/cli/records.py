"""The commands that read records: no model, no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from unlearn_metrics.cli.console import err, out, wide

app = typer.Typer()


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics rescore runs/ga-52\n\n"
    "unlearn-metrics rescore runs/ga-52 --metrics min_k,loss --out runs/ga-52-again"
)
def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    metrics: Annotated[
        str, typer.Option(help="Further metrics, separated by commas; all = all that the documents allow.")
    ] = "",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Write a run with the new scores here.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All metrics.")] = False,
) -> None:
    """Compute every score again from a run's stored token scores and texts, without a model, and compare.

    Exit code 1 if a stored score is not what its documents give.
    """
    from unlearn_metrics import folder, report, runs

    if out_folder is not None:
        folder.check_out(out_folder, overwrite=False)
    stored = runs.load_record(run)
    record = runs.rescore(run, [name.strip() for name in metrics.split(",") if name.strip()])
    console = wide()
    console.print(report.table(record, verbose or bool(metrics)))
    compared, differing = runs.changed(stored, record)
    for where in differing:
        err.print(Text(f"differs: {where}"))
    if differing:
        err.print(
            Text(f"{len(differing)} of {compared} stored scores are not what the documents give", style="bold red")
        )
    else:
        out.print(f"all {compared} stored scores are what the documents give, bit for bit")
    if out_folder is not None:
        runs.save(out_folder, record, runs.load_documents(run))
        err.print(f"wrote {out_folder}")
    if differing:
        sys.exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of record.json."""
    from unlearn_metrics.runs import record_schema

    print(json.dumps(record_schema(), indent=2))
