"""The commands that import logs of other evaluators: no model, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearn_metrics.cli.console import err, show, tell

app = typer.Typer(help="Turn the log of another evaluator into a run.", no_args_is_help=True)
Log = Annotated[Path, typer.Argument(metavar="FILE")]
RetainLog = Annotated[
    Path | None, typer.Option(help="The log of the retain-only model, for forget quality and privleak.", metavar="FILE")
]
Name = Annotated[str | None, typer.Option(help="What tables call the checkpoint. Default: from the file's name.")]
Benchmark = Annotated[
    str | None, typer.Option(help="For example tofu_forget10. Default: by the number of forget questions.")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write the run to.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out already holds.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All metrics.")]


@app.command(
    epilog="[bold]Example[/]: unlearn-metrics import tofu eval_log_aggregated.json --retain-log "
    "retain90/eval_log_aggregated.json --benchmark tofu_forget10 --out runs/ga-52"
)
def tofu(
    log: Log,
    out_folder: OutFolder,
    retain_log: RetainLog = None,
    name: Name = None,
    benchmark: Benchmark = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import eval_log_aggregated.json of the TOFU authors' code."""
    _import("tofu", log, retain_log, name, benchmark, out_folder, overwrite, verbose)


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics import open-unlearning saves/unlearn/npo/evals/TOFU_EVAL.json "
    "--retain-log saves/eval/retain90/TOFU_EVAL.json --out runs/npo\n\n"
    "unlearn-metrics import open-unlearning MUSE_EVAL.json --benchmark muse_news --out runs/npo-news"
)
def open_unlearning(
    log: Log,
    out_folder: OutFolder,
    retain_log: RetainLog = None,
    name: Name = None,
    benchmark: Benchmark = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import TOFU_EVAL.json or MUSE_EVAL.json of OpenUnlearning."""
    _import("open-unlearning", log, retain_log, name, benchmark, out_folder, overwrite, verbose)


def _import(
    kind: str,
    log: Path,
    retain_log: Path | None,
    name: str | None,
    benchmark: str | None,
    out_folder: Path,
    overwrite: bool,
    verbose: bool,
) -> None:
    from unlearn_metrics.records import folder, imports, store
    from unlearn_metrics.reports import table

    folder.check_out(out_folder, overwrite)
    record, observations = imports.import_log(kind, log, retain_log, name, benchmark)
    store.save(out_folder, record, observations, overwrite)
    show(record, verbose)
    for line in table.undefined(record):
        tell(line)
    tell(record.verdict, "bold")
    assert record.imported is not None
    if record.imported.as_logged:
        tell(f"as logged, not computed again: {', '.join(record.imported.as_logged)}")
    for note in record.imported.notes:
        tell(f"note: {note}")
    err.print(f"wrote {out_folder}")
