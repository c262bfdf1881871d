"""The command that samples a checkpoint's answers to what it should have forgotten."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unlearn_metrics.cli.console import emit, hush, out, status, tell, wrote
from unlearn_metrics.wording import counted

app = typer.Typer()


@app.command(
    epilog="[bold]Example[/]: unlearn-metrics sample UNLEARNED --benchmark tofu_forget05 --data TOFU --limit 40 "
    "--samples 100 --out leaks.json"
)
def sample(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id.")],
    benchmark: Annotated[str, typer.Option(help="Whose forget set is asked.")],
    out_file: Annotated[Path, typer.Option("--out", help="JSON file for the samples and what follows from them.")],
    data: Annotated[Path | None, typer.Option(help="Local folder of the benchmark's data.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Of each document.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.01, max=10)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 1.0,
    recall: Annotated[float, typer.Option(min=0.01, max=1, help="ROUGE-L recall from which a sample leaks.")] = 1.0,
    entailment: Annotated[
        str | None, typer.Option(help="A classifier with a label 'entailment' says what leaks.", metavar="MODEL")
    ] = None,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="How often a bound may lie below the truth.")] = 0.05,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many documents.")] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="For example cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Sample answers to the forget set: Leak@k without bias, and bounds on what so many samples can miss."""
    hush()
    from unlearn_metrics.errors import InputError
    from unlearn_metrics.jobs import sampling
    from unlearn_metrics.records.folder import check_folder, prepared
    from unlearn_metrics.reports.table import cell

    if out_file.exists():
        raise InputError(f"{out_file} exists; choose another --out")
    check_folder(out_file.parent, {})
    out_file.parent.mkdir(parents=True, exist_ok=True)
    how = sampling.Sampling(
        *(samples, temperature, top_p, recall, entailment, alpha, limit, apply_chat_template, dtype, device, seed)
    )
    with status() as say:
        leaks = sampling.run(checkpoint, benchmark, data, how, say)
    found = {"checkpoint": checkpoint, "benchmark": benchmark} | asdict(leaks)
    text = json.dumps(found, indent=1, allow_nan=False).encode()
    with prepared(out_file, lambda file: file.write(text)):
        pass
    asked = counted(len(leaks.documents), "document")
    table = Table(title=f"{benchmark}: {counted(samples, 'sample')} of {asked}, a leak is {leaks.judge}")
    table.add_column("of the forget set")
    table.add_column("mean over documents", justify="right")
    for k, score in leaks.leak_at.items():
        table.add_row(f"leak_at_{k}", cell(score))
    for name, score in leaks.bounds.items():
        table.add_row(f"{name}, {1 - alpha:.0%} for each document", cell(score))
    out.print(table)
    tell("Means over documents of one-sided bounds; each holds for its own document.")
    emit(found)
    wrote(out_file)
