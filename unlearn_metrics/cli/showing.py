"""The command that shows one run: no model, no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from unlearn_metrics.cli.console import as_json, emit, explain, out, tell, wrote

if TYPE_CHECKING:
    from unlearn_metrics.reports.showing.examples import Example

app = typer.Typer()
LONGEST = 300  # characters of a text on a terminal


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics show runs/ga-52\n\n"
    "unlearn-metrics show runs/ga-52 --examples 3 --split retain --metric rouge\n\n"
    "unlearn-metrics show runs/ga-52 --html report.html --figures figures/ --latex table.tex"
)
def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    examples: Annotated[
        int, typer.Option(help="So many of the worst documents, and of the best. 0: none.", min=0, max=1000)
    ] = 2,
    split: Annotated[str, typer.Option(help="The split that examples are from.")] = "forget",
    metric: Annotated[
        str | None, typer.Option(help="The metric that says which are worst. Default: the benchmark's primary one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report: one HTML file that needs no network.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write the plots into this folder, each as SVG, PDF and PNG.")
    ] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the tables in LaTeX.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All metrics, and the work done.")] = False,
) -> None:
    """Show a run again: its table and verdict, and what each model said, the worst and the best documents first.

    Worst on the forget set is what is remembered most, by the model under control, if there is one.
    """
    from unlearn_metrics.records import store
    from unlearn_metrics.records.folder import RECORD
    from unlearn_metrics.reports.showing import examples as chosen

    folder = run.parent if run.name == RECORD else run
    record, observations = store.load_record(folder), store.load_documents(folder)
    by: str = ""
    found: list[Example] = []
    if examples:
        try:
            by, found = chosen.examples(record, observations, split, examples, metric)
        except chosen.NoTexts as error:
            tell(f"no examples: {error}", "dim")
    explain(record, verbose)
    for example in found:
        _side_by_side(example, by)
    emit({"record": as_json(record), "metric": by, "examples": [asdict(example) for example in found]})
    if html is not None:
        from unlearn_metrics.reports.showing import page

        page.save(html, page.as_html(record, observations, by, found))
        wrote(html)
    if figures is not None:
        from unlearn_metrics.reports.showing import plots

        for path in plots.save(figures, record, observations):
            wrote(path)
    if latex is not None:
        from unlearn_metrics.reports.showing import page, paper

        page.save(latex, paper.as_latex(record), paper.START)
        wrote(latex)


def _side_by_side(example: Example, metric: str) -> None:
    """A document: what was asked, the reference, and below them what each model said, with its value."""
    from unlearn_metrics.reports.table import COLUMNS, number

    out.print()
    out.print(Text.assemble((example.place, "bold"), f" of {example.split} by {metric}, document {example.id}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(overflow="fold")
    for what, text in (("question", example.question), ("reference", example.reference)):
        if text.strip():
            grid.add_row(what, "", Text(_short(text)))
    for model, label in COLUMNS.items():
        if model in example.scored:
            value = example.scored[model]
            said = Text(_short(example.said[model]) or "(nothing)") if model in example.said else Text("—", "dim")
            grid.add_row(label, "—" if value is None else number(value), said)
    out.print(grid)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
