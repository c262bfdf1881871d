"""The commands that read records: no model, no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from unlearn_metrics.cli.console import as_json, emit, err, note, out, show, status, tell, wrote
from unlearn_metrics.cli.options import one_of
from unlearn_metrics.errors import InputError
from unlearn_metrics.wording import counted

app = typer.Typer()
SHOWN = 10  # differences listed


def _folder(run: Path) -> Path:
    """The folder of a run, of which its record.json will do as well."""
    from unlearn_metrics.records.folder import RECORD

    return run.parent if run.name == RECORD else run


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
    from unlearn_metrics.records import folder, store
    from unlearn_metrics.records import rescore as job

    if out_folder is not None:
        folder.check_out(out_folder, overwrite=None)
    run = _folder(run)
    stored = store.load_record(run)
    record = job.rescore(run, [name.strip() for name in metrics.split(",") if name.strip()])
    show(record, verbose or bool(metrics))
    compared, differing, deviation = job.changed(stored, record)
    for where in differing[:SHOWN]:
        err.print(Text(f"differs: {where}"), soft_wrap=True)
    if len(differing) > SHOWN:
        err.print(f"and {len(differing) - SHOWN} more")
    if differing:
        err.print(
            Text(f"{len(differing)} of {compared} stored scores are not what the documents give", style="bold red")
        )
    elif job.of_means(stored):
        out.print(f"nothing is computed again: the log had no documents, only the {compared} values")
    else:
        tell(f"all {compared} stored scores are what the documents give (largest deviation: {deviation:.1g})")
    if stored.verdict != record.verdict:
        err.print(Text(f"note: the stored verdict is not what the scores say today: {stored.verdict}"), soft_wrap=True)
    if unknown := store.unknown_metrics(stored):
        err.print(Text(f"not computed again, since these metrics are unknown: {', '.join(unknown)}"), soft_wrap=True)
    emit({"compared": compared, "differing": differing, "largest deviation": deviation, "record": as_json(record)})
    if out_folder is not None:
        store.save(out_folder, record, store.load_documents(run))
        wrote(out_folder)
    if differing:
        sys.exit(1)


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics compare runs/ga-26 runs/ga-52\n\n"
    "unlearn-metrics compare runs/* --metrics extraction_strength --json"
)
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B...", help="Runs; the first is the baseline.")],
    model: Annotated[
        str | None,
        one_of(
            "--model",
            *("original", "unlearned", "controlled", "retain_only"),
            help="Which of their models. Default: controlled if all have it, else unlearned.",
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Metrics, separated by commas; all = all there are. Default: those of the table.")
    ] = "",
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Every two runs, not only with the first.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where signatures differ in what matters.")] = False,
    seed: Annotated[int, typer.Option(help="Of resampling and sign flips.", min=0)] = 0,
) -> None:
    """Compare runs on the documents that they share: paired differences, intervals, tests, and a summary.

    Under control, residuals at equal retention come first. The procedure is printed; see docs/compare.md.
    """
    from unlearn_metrics.reports import compare as job

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    result = job.compare([*map(_folder, folders)], model, names, all_pairs, anyway, seed)
    emit(asdict(result))
    for table in result.tables():
        out.print(table)
    for run, paired in result.paired.items():
        pairs = ", ".join(f"{n} on {split}" for split, n in paired.items())
        tell(f"{run}: documents paired: {pairs}; model: {result.model}")
    for line in dict.fromkeys(result.signatures.values()):
        out.print(Text(line, style="dim"), soft_wrap=True)
    for said in result.notes:
        tell(f"note: {said}")
    for line in result.sentences:
        tell(line, "bold")


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics publish runs/ga-52 --model-card README.md\n\n"
    "unlearn-metrics publish runs/ga-52 --model-card README.md --push me/ga-52"
)
def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    model_card: Annotated[
        Path, typer.Option("--model-card", help="README.md of the unlearned model; edited in place.")
    ],
    push: Annotated[
        str | None,
        typer.Option(help="Then upload it as the README.md of this model on the hub.", metavar="REPO_ID"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All scores, not the headline's six alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and write nothing.")] = False,
) -> None:
    """Write a run's results into a Hugging Face model card: metadata that the hub reads, the verdict, and a table.

    Nothing else in the card changes; a later run on the same benchmark replaces what an earlier one wrote.
    --push needs your own login (hf auth login).
    """
    from unlearn_metrics.records.store import load_record
    from unlearn_metrics.reports import publish as job

    if dry_run and push is not None:
        raise InputError("--dry-run writes nothing, so there is nothing to --push")
    record = load_record(run)
    if dry_run:
        difference = job.change(record, model_card, everything).diff()
        out.print(
            Text(difference or f"nothing to change in {model_card}"), soft_wrap=True, end="" if difference else "\n"
        )
        emit({"card": str(model_card), "changed": False, "pushed": None, "difference": difference})
        return
    changed = job.publish(record, model_card, everything)
    note(f"{'wrote' if changed else 'nothing to change in'} {model_card}")
    pushed = None if push is None else job.push(model_card, push)
    if pushed is not None:
        tell(pushed)
    emit({"card": str(model_card), "changed": changed, "pushed": pushed})


@app.command()
def schema() -> None:
    """Print the JSON Schema of record.json."""
    from unlearn_metrics.record import record_schema

    print(json.dumps(record_schema(), indent=2))


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics leaderboard runs/ --out site\n\n"
    "unlearn-metrics leaderboard runs/ga-52 submitted/npo/record.json --out site --strict\n\n"
    "unlearn-metrics leaderboard runs/ --out site --seeds '(.*)-seed[0-9]+'\n\n"
    "unlearn-metrics leaderboard runs/ --out site --title 'Our methods' --order tofu_forget05,muse_news"
)
def leaderboard(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Runs, record.json files, or folders that hold runs at any depth."),
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for leaderboard.json, .csv, .md, .tex and index.html.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, and write nothing, if a record cannot be used.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Rows whose whole name matches are training seeds of one method, which its first group names: adds "
            "a table of methods.",
        ),
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="Only these benchmarks, separated by commas.", metavar="NAME,...")
    ] = "",
    order: Annotated[
        str,
        typer.Option(
            help="Benchmarks whose tables come first, in this order. Default: the tables with most ranked rows.",
            metavar="NAME,...",
        ),
    ] = "",
    title: Annotated[str | None, typer.Option(help="The page's title.", metavar="TEXT")] = None,
    intro: Annotated[str | None, typer.Option(help="A sentence of yours under the answer.", metavar="TEXT")] = None,
) -> None:
    """Rank runs by the residual at equal retention; one table for what may be compared.

    Prints the ranking and writes a page. A malformed record is named on stderr and left out. Method, date, link,
    submitter and "checked by" come from leaderboard.yaml beside the runs, if there is one.
    """
    from unlearn_metrics.reports.leaderboard import files, printed, reading, rows, words

    with status() as say:
        pattern = None if seeds is None else rows.seed_pattern(seeds)
        files.check_out(out_folder)
        say(f"reading records in {', '.join(map(str, records))}")
        found, bad = reading.read(records)
        for line in bad:
            err.print(Text(words.shown(f"left out: {line}")), soft_wrap=True)
        if strict and bad:
            raise InputError(f"{counted(len(bad), 'record')} cannot be used; without --strict what cannot is left out")
        if not found:
            raise InputError("there is no record to make a leaderboard of")
        found = reading.chosen(found, *(split(names) for names in (benchmark, order)))
        groups = rows.groups(found, pattern, split(order))
        given = {key: text for key, text in (("title", title), ("intro", intro)) if text is not None}
        files.write(out_folder, groups, say, words.Head(**given))
    for part in printed.ranking(groups):
        out.print(part, soft_wrap=isinstance(part, Text) and not out.is_terminal)
    kept = sum(len(group.rows) for group in groups)
    tables = f"{counted(kept, 'row')} in {counted(len(groups), 'table')}"
    ranked = sum(group.ranked for group in groups)
    older = f"; {counted(len(found) - kept, 'older record')} of the same runs left out" if len(found) > kept else ""
    out.print(Text(f"{tables}, {ranked} ranked{older}: {out_folder / 'index.html'}"), soft_wrap=True)
    emit(lambda: json.loads((out_folder / "leaderboard.json").read_text(encoding="utf-8")))
