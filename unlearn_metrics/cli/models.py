"""The commands that run models: score, control, tasks, demo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from unlearn_metrics.benchmarks.data import to_score
from unlearn_metrics.cli import options as of
from unlearn_metrics.cli.console import as_json, emit, explain, hush, out, status, tell, wrote
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.jobs import early
from unlearn_metrics.records.folder import check_out
from unlearn_metrics.settings import Settings, chosen
from unlearn_metrics.wording import counted

if TYPE_CHECKING:  # torch and lm-eval take seconds to import: only the commands that need them do
    from unlearn_metrics.record import RunRecord
    from unlearn_metrics.settings import OwnData

app = typer.Typer()


@app.command(
    epilog="[bold]Example[/]: unlearn-metrics score --original orig --unlearned ga-52 --benchmark tofu_forget05 "
    "--data tofu/ --retain-model retain95 --out runs/ga-52\n\n"
    "unlearn-metrics score --original orig --unlearned ga-78 --benchmark tofu_forget05 --data tofu/ "
    "--reference-record runs/ga-52 --out runs/ga-78\n\n"
    "unlearn-metrics score --original orig --unlearned ga-52 --forget mine.jsonl --retain other.jsonl "
    "--out runs/mine\n\n"
    "unlearn-metrics score --original orig --unlearned ga-52 --benchmark tofu_forget05 --utility-tasks mmlu "
    "--utility-limit 20 --retention-metric mmlu.acc --keep 0.98 --out runs/ga-52"
)
def score(
    original: of.Original,
    out_folder: of.Out,
    unlearned: of.Unlearned = None,
    benchmark: of.Benchmark = None,
    data: of.Data = None,
    forget: of.Forget = None,
    retain: of.Retain = None,
    holdout: of.Holdout = None,
    fields: of.Fields = None,
    prefix: of.Prefix = 0.5,
    keep: of.Keep = None,
    retention_metric: of.RetentionMetric = None,
    alpha: of.Alpha = None,
    control: of.ControlName = "mix",
    layers: of.Layers = None,
    trajectory: of.Trajectory = None,
    retain_model: of.RetainModel = None,
    reference_record: of.ReferenceRecord = None,
    reference_from: of.ReferenceFrom = "retain_only",
    utility_tasks: of.UtilityTasks = "",
    include_path: of.IncludePath = None,
    utility_limit: of.UtilityLimit = None,
    attacks: of.Attacks = "",
    gibberish: of.Gibberish = False,
    gibberish_model: of.GibberishModel = None,
    gradnorm: of.GradNorm = False,
    depth: of.Depth = False,
    entity_spans: of.EntitySpans = None,
    name: of.Name = None,
    limit: of.Limit = None,
    sample: of.Sample = None,
    device: of.Device = None,
    dtype: of.Precision = None,
    apply_chat_template: of.Chat = False,
    model_args: of.ModelArgs = "",
    batch_size: of.Batch = 1,
    overwrite: of.Overwrite = False,
    dry_run: of.DryRun = False,
    verbose: of.Verbose = False,
) -> None:
    """Control an unlearned checkpoint, score it beside the original, and write a run (record.json + Parquet)."""
    given = locals()  # parameters are called as the settings are
    names = {name: given[name] for name in Settings.__dataclass_fields__ if name in given}
    names |= {
        "utility_tasks": of.listed(utility_tasks),
        "attacks": of.listed(attacks),
        "gibberish_model": gibberish_model or (of.GIBBERISH if gibberish else None),
    }
    settings = chosen(names, of.option)
    check_out(out_folder, overwrite)
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    benchmark, source = to_score(benchmark, data, files, fields, prefix, of.option)
    early.check(original, unlearned, benchmark, source, settings)
    if dry_run:
        hush()
        from unlearn_metrics.jobs import whole

        with status() as say:
            found = whole.dry_run(original, unlearned, benchmark, source, settings, say)
        _ahead(found)
        emit(found)
        return
    record = _score(original, unlearned, benchmark, source, settings, out_folder, overwrite)
    explain(record, verbose)
    emit(as_json(record))
    wrote(out_folder)


@app.command(
    epilog="[bold]Examples[/]: unlearn-metrics control mix --original orig --unlearned ga-52 --alpha 0.3 "
    "--out mixed\n\n"
    "unlearn-metrics control trim --original orig --unlearned ga-52 --keep 0.95 --benchmark tofu_forget05 "
    "--data tofu/ --out trimmed\n\n"
    "unlearn-metrics control layers --layers 0-3 --original orig --unlearned ga-52 --alpha 1 --out lower\n\n"
    "unlearn-metrics control mix --original orig --unlearned ga-52 --retention-metric mmlu.acc --utility-tasks mmlu "
    "--utility-limit 20 --out mixed",
    no_args_is_help=True,
)
def control(
    method: Annotated[str, typer.Argument(metavar="NAME", help=" | ".join(CONTROLS) + ": see docs/control.md.")],
    original: of.Original,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the checkpoint to.")],
    unlearned: of.Unlearned = None,
    alpha: of.Alpha = None,
    keep: of.Keep = None,
    layers: of.Layers = None,
    trajectory: of.Trajectory = None,
    retention_metric: of.RetentionMetric = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmark whose retain split calibrates.")] = None,
    data: of.Data = None,
    retain: of.Retain = None,
    fields: of.Fields = None,
    prefix: of.Prefix = 0.5,
    utility_tasks: of.UtilityTasks = "",
    include_path: of.IncludePath = None,
    utility_limit: of.UtilityLimit = None,
    limit: of.Limit = None,
    sample: of.Sample = None,
    device: of.Device = None,
    dtype: of.Precision = None,
    apply_chat_template: of.Chat = False,
    model_args: of.ModelArgs = "",
    batch_size: of.Batch = 1,
    out_dtype: Annotated[
        str | None,
        of.one_of("--out-dtype", *of.DTYPES, help="Store the tensors so. Default: as the unlearned checkpoint does."),
    ] = None,
) -> None:
    """Control an unlearned checkpoint: write one that keeps its usefulness, for transformers and lm-eval to load."""
    given = locals()
    names = {name: given[name] for name in Settings.__dataclass_fields__ if name in given}
    settings = chosen(names | {"control": method, "utility_tasks": of.listed(utility_tasks)}, of.option)
    source: Path | OwnData | None = None
    if alpha is None and (benchmark is not None or retain is not None):
        benchmark, source = to_score(benchmark, data, {"retain": retain}, fields, prefix, of.option)
    early.check(original, unlearned, benchmark, source, settings)
    hush()
    from unlearn_metrics.jobs import whole

    with status() as say:
        found = whole.control(original, unlearned, benchmark, source, settings, out_folder, out_dtype, say)
    tell(f"alpha {found.alpha:g}: wrote {out_folder}")
    emit(asdict(found) | {"out": str(out_folder)})


@app.command()
def tasks(
    path: Annotated[bool, typer.Option("--path", help="Print only the folder, for lm_eval --include_path.")] = False,
) -> None:
    """List the benchmarks and lm-eval tasks, or print the folder they are in."""
    from unlearn_metrics import tasks_path

    if path:
        out.print(Text(str(tasks_path())), soft_wrap=True)
        emit(str(tasks_path()))
        return
    hush()
    from unlearn_metrics.benchmarks import suites

    found = suites.benchmarks()
    for benchmark, members in found.items():
        out.print(Text.assemble((benchmark, "bold"), f"  (lm-eval group {benchmark}_suite): {', '.join(members)}"))
    emit(found)


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="[bold]Example[/]: unlearn-metrics lm-eval run --model hf --model_args pretrained=ckpt "
    "--tasks tofu_forget05",
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with our tasks, metrics and models there without --include_path."""
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    from unlearn_metrics.benchmarks import suites
    from unlearn_metrics.jobs import controlled_lm  # noqa: F401  registers the model unlearn-mix

    lm_eval.tasks.TaskManager = suites.OurTaskManager  # its commands look the class up there
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()


@app.command(epilog="[bold]Example[/]: unlearn-metrics demo")
def demo(
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Keep the run of the excessively unlearned model here.")
    ] = None,
    overwrite: of.Overwrite = False,
    verbose: of.Verbose = False,
) -> None:
    """Run the main job, offline, on a small embedded benchmark and its checkpoints: why scores as published mislead."""
    from unlearn_metrics.records.verdict import moral

    if out_folder is not None:
        check_out(out_folder, overwrite)
    here = Path(__file__).parent.parent / "demo"
    records = {}
    for name in ("excessive", "moderate"):
        out.print(f"\nunlearned checkpoint: {name}", style="bold")
        record = records[name] = _score(
            str(here / "checkpoints" / "original"),
            str(here / "checkpoints" / name),
            "demo",
            here / "data",
            chosen({"device": "cpu"}),
            out_folder if name == "excessive" else None,
            overwrite,
        )
        explain(record, verbose)
    out.print()
    tell(moral(records), "bold")
    emit({name: as_json(record) for name, record in records.items()})


def _ahead(found: Mapping[str, Any]) -> None:
    """What a run will do."""
    from unlearn_metrics.jobs.ahead import spoken

    for split, of_split in found["splits"].items():
        said = ", ".join(counted(count, what.removesuffix("s")) for what, count in of_split.items())
        tell(f"{split}: {said}")
    if found["tasks"]:
        tell(f"lm-eval's tasks beside: {', '.join(found['tasks'])}")
    whole, mixes = found["evaluations"]["whole"], found["evaluations"]["mix"]
    calibrated = f", and about {mixes} of mixes, on what calibrates alone" if mixes else ""
    tell(f"{counted(whole, 'evaluation')} of all this{calibrated}, on {found['device']} in {found['dtype']}")
    if found["seconds"] is None:
        tell("time: unknown with lm-eval's tasks beside, which are not measured beforehand")
    else:
        beside = f"; {found['beside']} on top" if found["beside"] else ""
        tell(f"time: about {spoken(found['seconds'])} by a few documents on this machine, as busy as it is now{beside}")


def _score(
    original: str,
    unlearned: str | None,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    out_folder: Path | None,
    overwrite: bool,
) -> RunRecord:
    hush()
    from unlearn_metrics.jobs import whole

    with status(out_folder) as say:
        return whole.score(original, unlearned, benchmark, data, settings, out_folder, overwrite, say)[0]
