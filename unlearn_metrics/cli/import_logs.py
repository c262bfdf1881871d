"""The commands that import logs of other evaluators: no model, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearn_metrics.cli.console import as_json, emit, show, tell, wrote
from unlearn_metrics.wording import counted

if TYPE_CHECKING:
    from unlearn_metrics.record import RunRecord

app = typer.Typer(help="Turn logs of another evaluator into runs.", no_args_is_help=True)
Log = Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER")]
File = Annotated[Path, typer.Argument(metavar="FILE")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER")]
RetainLog = Annotated[
    Path | None, typer.Option(help="The log of the retain-only model, for forget quality and privleak.", metavar="PATH")
]
OriginalLog = Annotated[
    Path | None, typer.Option(help="The log of the model before unlearning, to stand beside.", metavar="PATH")
]
Name = Annotated[str | None, typer.Option(help="What tables call the checkpoint. Default: what tells its log apart.")]
Benchmark = Annotated[
    str | None, typer.Option(help="For example tofu_forget10. Default: what the log says of its tasks or questions.")
]
Corpus = Annotated[
    str | None, typer.Option(help="muse_news or muse_books. Default: by the authors' names, where the logs have them.")
]
OutFolder = Annotated[
    Path, typer.Option("--out", help="Folder to write the run to; of several checkpoints, a run in it for each.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the runs that --out already holds.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All metrics.")]


@app.command(
    epilog="[bold]Example[/]: unlearn-metrics import tofu eval_log_aggregated.json --retain-log "
    "retain90/eval_log_aggregated.json --benchmark tofu_forget10 --out runs/ga-52"
)
def tofu(
    log: Log,
    out_folder: OutFolder,
    retain_log: RetainLog = None,
    original_log: OriginalLog = None,
    name: Name = None,
    benchmark: Benchmark = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import eval_log_aggregated.json of the TOFU authors' code, or all such files below a folder."""
    _import("tofu", log, out_folder, overwrite, verbose, retain_log, name, benchmark, original_log)


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics import open-unlearning saves/unlearn/npo/evals/TOFU_EVAL.json "
    "--retain-log saves/eval/retain90/TOFU_EVAL.json --out runs/npo\n\n"
    "unlearn-metrics import open-unlearning MUSE_EVAL.json --benchmark muse_news --out runs/npo-news"
)
def open_unlearning(
    log: Log,
    out_folder: OutFolder,
    retain_log: RetainLog = None,
    original_log: OriginalLog = None,
    name: Name = None,
    benchmark: Benchmark = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import TOFU_EVAL.json or MUSE_EVAL.json of OpenUnlearning, or all such files below a folder."""
    _import("open-unlearning", log, out_folder, overwrite, verbose, retain_log, name, benchmark, original_log)


@app.command(
    epilog="[bold]Example[/]: unlearn-metrics import lm-eval out/npo --original-log out/full --retain-log out/retain90 "
    "--out runs/npo"
)
def lm_eval(
    folder: Folder,
    out_folder: OutFolder,
    retain_log: RetainLog = None,
    original_log: OriginalLog = None,
    name: Name = None,
    benchmark: Benchmark = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import what lm_eval --log_samples --output_path wrote, of any backend: a run for each model in the folder."""
    _import("lm-eval", folder, out_folder, overwrite, verbose, retain_log, name, benchmark, original_log)


@app.command(epilog="[bold]Example[/]: unlearn-metrics import muse muse_bench --out runs/muse")
def muse(
    folder: Folder,
    out_folder: OutFolder,
    benchmark: Corpus = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Import the folders knowmem, verbmem and privleak of the MUSE authors' code: a run for each model.

    Their target is the original model, their retrain the retain-only model of every run.
    """
    _import("muse", folder, out_folder, overwrite, verbose, benchmark=benchmark)


@app.command(epilog="[bold]Example[/]: unlearn-metrics import uds method_results.json --out runs/uds")
def uds(log: File, out_folder: OutFolder, overwrite: Overwrite = False, verbose: Verbose = False) -> None:
    """Import method_results.json of UDS: a run for each checkpoint, of means alone."""
    _import("uds", log, out_folder, overwrite, verbose)


def _import(
    kind: str,
    log: Path,
    out_folder: Path,
    overwrite: bool,
    verbose: bool,
    retain_log: Path | None = None,
    name: str | None = None,
    benchmark: str | None = None,
    original_log: Path | None = None,
) -> None:
    from unlearn_metrics.imports import runs
    from unlearn_metrics.records import folder, store

    if kind in ("tofu", "open-unlearning", "lm-eval") and not log.is_dir():
        folder.check_out(out_folder, overwrite)
    found = runs.import_logs(kind, log, retain_log, name, benchmark, original_log)
    places = runs.folders(out_folder, [record.name for record, _ in found])
    for place in places:
        folder.check_out(place, overwrite)
    for (record, observations), place in zip(found, places, strict=True):
        store.save(place, record, observations, overwrite)
    if len(found) == 1:
        _show(found[0][0], verbose)
        emit(as_json(found[0][0]))
        wrote(out_folder)
        return
    for record, _ in found:
        tell(f"{record.name}: {record.verdict}")
    for note in dict.fromkeys(n for record, _ in found if record.imported for n in record.imported.notes):
        tell(f"note: {note}")
    emit([as_json(record) for record, _ in found])
    wrote(f"{counted(len(found), 'run')} to {out_folder}")


def _show(record: RunRecord, verbose: bool) -> None:
    from unlearn_metrics.reports import table

    show(record, verbose)
    for line in table.undefined(record):
        tell(line)
    tell(record.verdict, "bold")
    assert record.imported is not None
    if record.imported.as_logged:
        tell(f"as logged, not computed again: {', '.join(record.imported.as_logged)}")
    for note in record.imported.notes:
        tell(f"note: {note}")
