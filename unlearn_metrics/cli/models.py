"""The commands that run models: score, control, tasks, demo."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from unlearn_metrics.cli.console import err, hush, out, show, status, tell
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.settings import Settings, chosen

if TYPE_CHECKING:  # torch and lm-eval take seconds to import: only the commands that need them do
    from unlearn_metrics.record import RunRecord
    from unlearn_metrics.settings import OwnData

app = typer.Typer()


class StoredDType(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ReferenceModel(StrEnum):
    retain_only = "retain_only"
    unlearned = "unlearned"
    original = "original"


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Original = Annotated[str, typer.Option(help="Checkpoint before unlearning: a folder, or a hub id or ID@REVISION.")]
Unlearned = Annotated[
    str | None,
    typer.Option(help="Checkpoint after unlearning, or a LoRA adapter: a folder, or a hub id or ID@REVISION."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with the benchmark's JSON-lines files, named as on the hub. Default: the hub."),
]
Benchmark = Annotated[str | None, typer.Option(help="For example tofu_forget05; see `unlearn-metrics tasks`.")]
Forget = Annotated[
    Path | None,
    typer.Option(help="Your own forget data instead of a benchmark: JSON lines, Parquet, CSV or a datasets folder."),
]
Retain = Annotated[Path | None, typer.Option(help="Your own retain data, in the same form.")]
Holdout = Annotated[Path | None, typer.Option(help="Your own data that no model has seen, for membership attacks.")]
Fields = Annotated[
    str | None,
    typer.Option(
        help="Columns of your data: question=q,answer=a or text=body. Default: those names.",
        metavar="NAME=COLUMN,...",
    ),
]
Prefix = Annotated[
    float,
    typer.Option(help="Plain text is split after this share of its words, or after this many if 1 or more.", min=0),
]
RetainModel = Annotated[
    str | None,
    typer.Option(help="Checkpoint that never saw the forget set: the reference of forget quality and privacy."),
]
ReferenceRecord = Annotated[
    Path | None, typer.Option(help="An earlier run that scored the reference, instead of --retain-model.")
]
ReferenceFrom = Annotated[
    ReferenceModel, typer.Option(help="Which model of that run is the reference.", show_default=True)
]
UtilityTasks = Annotated[
    str, typer.Option(help="Any lm-eval tasks or groups beside the benchmark: general ability.", metavar="TASK,...")
]
IncludePath = Annotated[Path | None, typer.Option(help="Folder with task YAML of your own, for --utility-tasks.")]
UtilityLimit = Annotated[int | None, typer.Option(help="Only the first N documents of each of these tasks.", min=1)]
Keep = Annotated[
    float | None,
    typer.Option(
        help="Calibrate: the largest alpha that keeps this share of the original's retention (default: 0.95)."
    ),
]
RetentionMetric = Annotated[
    str | None,
    typer.Option(
        help="Metric that --keep keeps: of the retain split, or TASK.METRIC of one of --utility-tasks "
        "(default: extraction_strength). Metrics of generations (rouge, ...) are slower.",
        metavar="METRIC",
    ),
]
Alpha = Annotated[
    float | None, typer.Option(help="Mix at this alpha instead of calibrating: 0 = original, 1 = unlearned.")
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Control layers: mix only these layers (0-3, or 0,2,5-7) or the tensors that a regular expression finds.",
        metavar="NUMBERS|REGEX",
    ),
]
Trajectory = Annotated[
    Path | None,
    typer.Option(help="Control select: folder of checkpoint-1, checkpoint-2, ...; --unlearned is the last by default."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N documents of each split.", min=1)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")]
Precision = Annotated[
    DType | None, typer.Option(help="Default: float32 on a CPU, else auto: the checkpoint's own, if the device has it.")
]
Chat = Annotated[bool, typer.Option("--apply-chat-template", help="Prompt through the tokenizer's chat template.")]
ModelArgs = Annotated[
    str,
    typer.Option(
        help="How the model is loaded, as lm-eval spells it: parallelize=True, attn_implementation=sdpa, "
        "max_length=4096, trust_remote_code=True (then code of the checkpoint's author runs), ...",
        metavar="KEY=VALUE,...",
    ),
]
Batch = Annotated[
    int, typer.Option(help="Rows in a batch at most; the default 1 is lm-eval's word for as many as fit.", min=1)
]
GIBBERISH = "madhurjindal/autonlp-Gibberish-Detector-492513457"
Gibberish = Annotated[
    bool, typer.Option("--gibberish", help=f"Let a text classifier read the generations: {GIBBERISH}, from the hub.")
]
GibberishModel = Annotated[
    str | None,
    typer.Option(
        help="Or this one: a folder, or a hub id or ID@REVISION, with a label 'clean'.", metavar="ID_OR_FOLDER"
    ),
]
GradNorm = Annotated[
    bool,
    typer.Option("--gradnorm", help="The membership attack by gradient norm too: a backward pass for each document."),
]
Depth = Annotated[
    bool,
    typer.Option(
        "--depth",
        help="How deep the forgetting reaches: each layer is patched into the original. Needs --retain-model, and "
        "for each layer and model a pass over the forget set.",
    ),
]
EntitySpans = Annotated[
    Path | None,
    typer.Option(help="Of --depth: a JSON list of {question, entity}; there the entity alone is read.", metavar="FILE"),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All metrics, and the work done.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out already holds.")]


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
    original: Original,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the run to.")],
    unlearned: Unlearned = None,
    benchmark: Benchmark = None,
    data: Data = None,
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    fields: Fields = None,
    prefix: Prefix = 0.5,
    keep: Keep = None,
    retention_metric: RetentionMetric = None,
    alpha: Alpha = None,
    control: Annotated[
        str,
        typer.Option(
            help=f"How the model is controlled: {' | '.join(CONTROLS)} (docs/control.md); none: only as published.",
            metavar="NAME",
            show_default=True,
        ),
    ] = "mix",
    layers: Layers = None,
    trajectory: Trajectory = None,
    retain_model: RetainModel = None,
    reference_record: ReferenceRecord = None,
    reference_from: ReferenceFrom = ReferenceModel.retain_only,
    utility_tasks: UtilityTasks = "",
    include_path: IncludePath = None,
    utility_limit: UtilityLimit = None,
    gibberish: Gibberish = False,
    gibberish_model: GibberishModel = None,
    gradnorm: GradNorm = False,
    depth: Depth = False,
    entity_spans: EntitySpans = None,
    name: Annotated[
        str | None, typer.Option(help="What tables call the unlearned checkpoint. Default: as given.", metavar="TEXT")
    ] = None,
    limit: Limit = None,
    device: Device = None,
    dtype: Precision = None,
    apply_chat_template: Chat = False,
    model_args: ModelArgs = "",
    batch_size: Batch = 1,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Control an unlearned checkpoint, score it beside the original, and write a run (record.json + Parquet)."""
    given = locals()  # parameters are called as the settings are
    names = {name: given[name] for name in Settings.__dataclass_fields__ if name in given}
    names |= {
        "utility_tasks": _names(utility_tasks),
        "gibberish_model": gibberish_model or (GIBBERISH if gibberish else None),
    }
    settings = _settings(**names)
    from unlearn_metrics.benchmarks.data import to_score
    from unlearn_metrics.records.folder import check_out

    check_out(out_folder, overwrite)
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    benchmark, source = to_score(benchmark, data, files, fields, prefix, _option)
    record = _score(original, unlearned, benchmark, source, settings, out_folder, overwrite)
    explain(record, verbose)
    err.print(f"wrote {out_folder}")


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
    original: Original,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the checkpoint to.")],
    unlearned: Unlearned = None,
    alpha: Alpha = None,
    keep: Keep = None,
    layers: Layers = None,
    trajectory: Trajectory = None,
    retention_metric: RetentionMetric = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmark whose retain split calibrates.")] = None,
    data: Data = None,
    retain: Retain = None,
    fields: Fields = None,
    prefix: Prefix = 0.5,
    utility_tasks: UtilityTasks = "",
    include_path: IncludePath = None,
    utility_limit: UtilityLimit = None,
    limit: Limit = None,
    device: Device = None,
    dtype: Precision = None,
    apply_chat_template: Chat = False,
    model_args: ModelArgs = "",
    batch_size: Batch = 1,
    out_dtype: Annotated[
        StoredDType | None, typer.Option(help="Store the tensors so. Default: as the unlearned checkpoint does.")
    ] = None,
) -> None:
    """Control an unlearned checkpoint: write one that keeps its usefulness, for transformers and lm-eval to load."""
    given = locals()
    names = {name: given[name] for name in Settings.__dataclass_fields__ if name in given}
    settings = _settings(**names | {"control": method, "utility_tasks": _names(utility_tasks)})
    from unlearn_metrics.benchmarks.data import to_score
    from unlearn_metrics.jobs import whole

    source: Path | OwnData | None = None
    if alpha is None and (benchmark is not None or retain is not None):
        benchmark, source = to_score(benchmark, data, {"retain": retain}, fields, prefix, _option)
    stored = None if out_dtype is None else out_dtype.value
    with status() as say:
        found = whole.control(original, unlearned, benchmark, source, settings, out_folder, stored, say)
    out.print(f"alpha {found.alpha:g}: wrote {out_folder}")


@app.command()
def tasks(
    path: Annotated[bool, typer.Option("--path", help="Print only the folder, for lm_eval --include_path.")] = False,
) -> None:
    """List the benchmarks and lm-eval tasks, or print the folder they are in."""
    from unlearn_metrics import tasks_path

    if path:
        print(tasks_path())
        return
    hush()
    from unlearn_metrics.benchmarks import suites

    for benchmark, members in suites.benchmarks().items():
        out.print(Text.assemble((benchmark, "bold"), f"  (lm-eval group {benchmark}_suite): {', '.join(members)}"))


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
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Run the main job, offline, on a small embedded benchmark and its checkpoints: why scores as published mislead."""
    from unlearn_metrics.records.folder import check_out
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
            _settings(device="cpu"),
            out_folder if name == "excessive" else None,
            overwrite,
        )
        explain(record, verbose)
    out.print()
    tell(moral(records), "bold")


def _option(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _settings(**given: Any) -> Settings:
    settings = chosen(given, _option)
    hush()
    return settings


def _score(
    original: str,
    unlearned: str | None,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    out_folder: Path | None,
    overwrite: bool,
) -> RunRecord:
    from unlearn_metrics.jobs import whole

    with status(out_folder) as say:
        return whole.score(original, unlearned, benchmark, data, settings, out_folder, overwrite, say)[0]


def explain(record: RunRecord, verbose: bool) -> None:
    from unlearn_metrics.records.verdict import describe
    from unlearn_metrics.reports import table
    from unlearn_metrics.reports.leaderboard.columns import degenerate

    show(record, verbose)
    for line in table.undefined(record):
        tell(f"unknown: {line}", "dim")
    tell(describe(record.control))
    for line in table.residual_reading(record):
        tell(line, "dim")
    tell(record.verdict, "bold")
    if (seen := degenerate(record)) is not None:
        tell(f"degenerate answers to the forget set: {seen}", "bold red")
    if verbose:
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in record.work.items())
        tell(f"work: {counts}; {record.wall_seconds:.1f} s")
