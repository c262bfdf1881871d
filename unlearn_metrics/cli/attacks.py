"""The command `attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearn_metrics.attacks import ON_WEIGHTS
from unlearn_metrics.cli.console import emit, hush, out, status

app = typer.Typer()


@app.command(epilog="[bold]Example[/]: unlearn-metrics attack nf4 --model ga-52 --out ga-52-nf4", no_args_is_help=True)
def attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help=" | ".join(ON_WEIGHTS) + ": see docs/attacks.md.")],
    model: Annotated[str, typer.Option(help="Checkpoint to attack: a folder, or a hub id or ID@REVISION.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the checkpoint to.")],
    original: Annotated[str | None, typer.Option(help="The model that it is an adapter of.")] = None,
) -> None:
    """Write a checkpoint as an attack on weights leaves it, for transformers and lm-eval to load."""
    hush()
    from unlearn_metrics.jobs import whole

    with status() as say:
        whole.attack(name, model, original, out_folder, say)
    out.print(f"{name}: wrote {out_folder}")
    emit({"attack": name, "out": str(out_folder)})
