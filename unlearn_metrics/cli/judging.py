"""The commands that judge metrics by records: no model, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearn_metrics.cli.console import emit, out, tell, wrote

if TYPE_CHECKING:
    from unlearn_metrics.reports.meta.judged import MetaEvaluation
    from unlearn_metrics.reports.meta.lasting import RobustnessReport

app = typer.Typer()


@app.command(
    epilog="[bold]A plan[/]; the first two are needed:\n\n"
    "knows: runs/knows-*\n\n"
    "does_not_know: runs/without-*\n\n"
    "unlearned: {ga-52: {before: runs/ga-52, relearn: runs/ga-52-relearned, nf4: runs/ga-52-nf4}}\n\n"
    "retain_only: {before: runs/retain, relearn: runs/retain-relearned}\n\n"
    "[bold]Examples[/]: unlearn-metrics meta plan.yaml\n\n"
    "unlearn-metrics meta pool/ --metrics extraction_strength,probability --out judged"
)
def meta(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN_OR_RECORDS", help="YAML, or a folder of folders named as a plan's keys.")
    ],
    metrics: Annotated[
        str, typer.Option(help="Only these metrics, separated by commas. Default: all that say what a model knows.")
    ] = "",
    against: Annotated[
        str | None, typer.Option(help="The metric that others are compared with. Default: the primary one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of resampling.", min=0)] = 0,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for meta.json, .csv and .svg.")] = None,
) -> None:
    """Judge metrics by models of which it is known whether they know: do they tell, and does it last under attack?

    Every interval is over models. See docs/meta.md.
    """
    from unlearn_metrics.reports.meta import judged, pictures

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    found = judged.evaluate(plan, names, against, seed)
    if out_folder is not None:
        pictures.write(out_folder, "meta", found.to_json(), found.to_pandas(), pictures.faithfulness(found))
        wrote(out_folder)
    _show(found)


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics robustness runs/ga-* --out lasting\n\n"
    "unlearn-metrics robustness plan.yaml --metrics extraction_strength,probability\n\n"
    "[bold]A plan[/], where others attacked the models:\n\n"
    "unlearned: {ga-52: {before: runs/ga-52, relearn: runs/ga-52-relearned, nf4: runs/ga-52-nf4}}"
)
def robustness(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Runs with attacks, or folders that hold such; or one plan of `meta`."),
    ],
    metrics: Annotated[
        str, typer.Option(help="Only these metrics, separated by commas. Default: all that say what a model knows.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of resampling.", min=0)] = 0,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for robustness.json, .csv and .svg.")] = None,
) -> None:
    """Does a metric say the same of models after an attack? Pearson's and Kendall's correlation over the models."""
    from unlearn_metrics.reports.meta import lasting, pictures

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    found = lasting.evaluate(lasting.plan_of(runs), names, seed)
    if out_folder is not None:
        draw = pictures.correlations(found)
        pictures.write(out_folder, "robustness", found.to_json(), found.to_pandas(), draw)
        wrote(out_folder)
    _show(found)


def _show(found: MetaEvaluation | RobustnessReport) -> None:
    """As JSON, or as tables and notes."""
    emit(json.loads(found.to_json()))
    for table in found.tables():
        out.print(table)
    for note in found.notes():
        tell(note)
