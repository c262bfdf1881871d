"""The command `attack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearn_metrics.attacks import ON_WEIGHTS, known
from unlearn_metrics.cli import options as of
from unlearn_metrics.cli.console import as_json, emit, hush, out, show, status, wrote
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import early
from unlearn_metrics.settings import chosen

if TYPE_CHECKING:
    from unlearn_metrics.settings import OwnData

app = typer.Typer()
MOVED = "Where this checkpoint of the run lies now, if not where the record says."


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics attack runs/ga-52 --attacks int4,prefix,fewshot_3 --data tofu/\n\n"
    "unlearn-metrics attack runs/ga-52 --attacks relearn=ga-52-relearned,relearn_retain=retain95-relearned --data tofu/"
    "\n\nunlearn-metrics attack nf4 --model ga-52 --out ga-52-nf4",
    no_args_is_help=True,
)
def attack(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|NAME", help=f"A run to add attacks to; or, with --model, one of {', '.join(ON_WEIGHTS)}."
        ),
    ],
    attacks: of.Attacks = "",
    data: of.Data = None,
    forget: of.Forget = None,
    retain: of.Retain = None,
    holdout: of.Holdout = None,
    fields: of.Fields = None,
    prefix: of.Prefix = 0.5,
    original: Annotated[
        str | None, typer.Option(help=f"{MOVED} With --model: what that is an adapter of.", metavar="CHECKPOINT")
    ] = None,
    unlearned: Annotated[str | None, typer.Option(help=MOVED, metavar="CHECKPOINT")] = None,
    retain_model: Annotated[str | None, typer.Option(help=MOVED, metavar="CHECKPOINT")] = None,
    device: of.Device = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint whose weights are attacked: a folder, or a hub id or ID@REVISION.")
    ] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder to write that checkpoint to.")] = None,
) -> None:
    """Attack the models of a run and score what comes back; or write a checkpoint as an attack leaves its weights."""
    if (model is None) == (not attacks) or (model is None) != (out_folder is None):
        raise InputError("attack takes a run with --attacks, or the name of an attack with --model and --out")
    if model is not None and out_folder is not None:
        early.check(original, model, None, None, chosen({}))
        known(what, on=("weights",))
        hush()
        from unlearn_metrics.jobs import whole

        with status() as say:
            whole.attack(what, model, original, out_folder, say)
        out.print(f"{what}: wrote {out_folder}")
        emit({"attack": what, "out": str(out_folder)})
        return
    from unlearn_metrics.benchmarks.data import OWN, to_score
    from unlearn_metrics.records import store
    from unlearn_metrics.records.folder import RECORD

    settings = chosen({"attacks": of.listed(attacks), "retain_model": retain_model}, of.option)
    run = Path(what).parent if Path(what).name == RECORD else Path(what)
    source: Path | OwnData | None = data
    if store.load_record(run).benchmark == OWN:
        files = {"forget": forget, "retain": retain, "holdout": holdout}
        source = to_score(None, data, files, fields, prefix, of.option)[1]
    early.check(original, unlearned, None, source, settings)
    places = {"original": original, "unlearned": unlearned, "retain_only": retain_model}
    hush()
    from unlearn_metrics.jobs import whole

    with status(run) as say:
        record, _ = whole.attack_run(run, settings.attacks, source, places, device, say)
    show(record, everything=True)
    emit(as_json(record))
    wrote(run)
