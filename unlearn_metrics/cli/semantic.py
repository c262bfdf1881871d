"""The command that lets models read the generations of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearn_metrics.cli.console import as_json, emit, hush, show, status, tell, wrote

app = typer.Typer()


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics semantic runs/npo --cosine MINILM --entailment NLI --out runs/read\n\n"
    "unlearn-metrics semantic runs/npo --judge local-chat-completions --judge-args "
    "base_url=http://localhost:8000/v1/chat/completions,model=NAME --out runs/judged"
)
def semantic(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the run with its new scores to.")],
    cosine: Annotated[
        str | None, typer.Option(help="An encoder of sentences, folder or hub id.", metavar="MODEL")
    ] = None,
    entailment: Annotated[
        str | None, typer.Option(help="A classifier with a label 'entailment', folder or hub id.", metavar="MODEL")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A kind of lm-eval's models: hf, local-chat-completions, ...", metavar="KIND")
    ] = None,
    judge_args: Annotated[str, typer.Option(help="Its arguments, KEY=VALUE,... as lm-eval spells them.")] = "",
    device: Annotated[str, typer.Option(help="For example cuda.")] = "cpu",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All metrics.")] = False,
) -> None:
    """Let models read a run's generations beside the reference answers: cosine, entailment, judge.

    The run may be one that `score` wrote, or an imported one. The signature names the models.
    """
    hush()
    from unlearn_metrics.jobs import semantic as job
    from unlearn_metrics.records import folder, store

    folder.check_out(out_folder, overwrite=None)
    with status() as say:
        record, observations = job.read(run, job.Readers(cosine, entailment, judge, judge_args, device), say)
    store.save(out_folder, record, observations)
    show(record, verbose)
    if unparsed := record.settings.get("judge_unparsed"):
        tell(f"judge: {unparsed} replies were neither yes nor no, and are unscored")
    if (yes := record.settings.get("judge_yes_to_references")) is not None:
        no = record.settings.get("judge_no_to_others")
        other = "" if no is None else f", and no to {no:.0%} of other documents' references"
        tell(f"judge: it says yes to {yes:.0%} of the references themselves{other}")
    emit(as_json(record))
    wrote(out_folder)
