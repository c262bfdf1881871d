"""Options of the commands that run models, by the panel of the help in which they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unlearn_metrics.benchmarks.data import names
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.errors import InputError, did_you_mean

WHAT, CONTROL, REFERENCE, RUN = "What", "Control", "Reference", "Run"


def one_of(option: str, *names: str, **more: Any) -> Any:
    """An option that takes one of some names; an unknown one is answered with those near it."""

    def known(given: str | None) -> str | None:
        name = given and given.replace("-", "_")
        if name is None or name in names:
            return name
        raise InputError(f"{option}: there is no '{given}'; {did_you_mean(given or '', names)}")

    return typer.Option(metavar="|".join(names), callback=known, autocompletion=lambda: [*names], **more)


DTYPES = ("float32", "bfloat16", "float16")

Original = Annotated[
    str, typer.Option(help="Checkpoint before unlearning: a folder, or a hub id or ID@REVISION.", rich_help_panel=WHAT)
]
Unlearned = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint after unlearning, or a LoRA adapter: a folder, or a hub id or ID@REVISION.",
        rich_help_panel=WHAT,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the benchmark's JSON-lines files, named as on the hub. Default: the hub.",
        rich_help_panel=WHAT,
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        help="For example tofu_forget05; see `unlearn-metrics tasks`.", rich_help_panel=WHAT, autocompletion=names
    ),
]
Forget = Annotated[
    Path | None,
    typer.Option(
        help="Your own forget data instead of a benchmark: JSON lines, Parquet, CSV or a datasets folder.",
        rich_help_panel=WHAT,
    ),
]
Retain = Annotated[Path | None, typer.Option(help="Your own retain data, in the same form.", rich_help_panel=WHAT)]
Holdout = Annotated[
    Path | None,
    typer.Option(help="Your own data that no model has seen, for membership attacks.", rich_help_panel=WHAT),
]
Fields = Annotated[
    str | None,
    typer.Option(
        help="Columns of your data: question=q,answer=a or text=body. Default: those names.",
        metavar="NAME=COLUMN,...",
        rich_help_panel=WHAT,
    ),
]
Prefix = Annotated[
    float,
    typer.Option(
        help="Plain text is split after this share of its words, or after this many if 1 or more.",
        min=0,
        rich_help_panel=WHAT,
    ),
]
RetainModel = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint that never saw the forget set: the reference of forget quality and privacy.",
        rich_help_panel=REFERENCE,
    ),
]
ReferenceRecord = Annotated[
    Path | None,
    typer.Option(
        help="An earlier run that scored the reference, instead of --retain-model.", rich_help_panel=REFERENCE
    ),
]
ReferenceFrom = Annotated[
    str,
    one_of(
        "--reference-from",
        *("retain_only", "unlearned", "original"),
        help="Which model of that run is the reference.",
        rich_help_panel=REFERENCE,
    ),
]
UtilityTasks = Annotated[
    str,
    typer.Option(
        help="Any lm-eval tasks or groups beside the benchmark: general ability.",
        metavar="TASK,...",
        rich_help_panel=WHAT,
    ),
]
IncludePath = Annotated[
    Path | None, typer.Option(help="Folder with task YAML of your own, for --utility-tasks.", rich_help_panel=WHAT)
]
UtilityLimit = Annotated[
    int | None, typer.Option(help="Only the first N documents of each of these tasks.", min=1, rich_help_panel=WHAT)
]
Attacks = Annotated[
    str,
    typer.Option(
        help="Attack the models, and score the forget set under each: names (docs/attacks.md), all, "
        "relearn=CHECKPOINT, relearn_retain=CHECKPOINT.",
        metavar="NAME,...",
        rich_help_panel=RUN,
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(
        help="Calibrate: the largest alpha that keeps this share of the original's retention (default: 0.95).",
        rich_help_panel=CONTROL,
    ),
]
RetentionMetric = Annotated[
    str | None,
    typer.Option(
        help="Metric that --keep keeps: of the retain split, or TASK.METRIC of one of --utility-tasks "
        "(default: extraction_strength). Metrics of generations (rouge, ...) are slower.",
        metavar="METRIC",
        rich_help_panel=CONTROL,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Mix at this alpha instead of calibrating: 0 = original, 1 = unlearned.", rich_help_panel=CONTROL
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Control layers: mix only these layers (0-3, or 0,2,5-7) or the tensors that a regular expression finds.",
        metavar="NUMBERS|REGEX",
        rich_help_panel=CONTROL,
    ),
]
Trajectory = Annotated[
    Path | None,
    typer.Option(
        help="Control select: folder of checkpoint-1, checkpoint-2, ...; --unlearned is the last by default.",
        rich_help_panel=CONTROL,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Only the first N documents of each split, for a trial: five clusters are needed for intervals.",
        min=1,
        rich_help_panel=WHAT,
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(
        help="Only N documents of each split, drawn with a fixed seed: of more clusters than the first N.",
        min=1,
        rich_help_panel=WHAT,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.", rich_help_panel=RUN)
]
Precision = Annotated[
    str | None,
    one_of(
        "--dtype",
        *("auto", *DTYPES),
        help="Default: float32 on a CPU, else auto: the checkpoint's own, if the device has it.",
        rich_help_panel=RUN,
    ),
]
Chat = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Prompt through the tokenizer's chat template.", rich_help_panel=RUN),
]
ModelArgs = Annotated[
    str,
    typer.Option(
        help="How the model is loaded, as lm-eval spells it: parallelize=True, attn_implementation=sdpa, "
        "max_length=4096, trust_remote_code=True (then code of the checkpoint's author runs), ...",
        metavar="KEY=VALUE,...",
        rich_help_panel=RUN,
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        help="Rows in a batch at most; the default 1 is lm-eval's word for as many as fit.", min=1, rich_help_panel=RUN
    ),
]
GIBBERISH = "madhurjindal/autonlp-Gibberish-Detector-492513457"
Gibberish = Annotated[
    bool,
    typer.Option(
        "--gibberish",
        help=f"Let a text classifier read the generations: {GIBBERISH}, from the hub.",
        rich_help_panel=WHAT,
    ),
]
GibberishModel = Annotated[
    str | None,
    typer.Option(
        help="Or this one: a folder, or a hub id or ID@REVISION, with a label 'clean'.",
        metavar="ID_OR_FOLDER",
        rich_help_panel=WHAT,
    ),
]
GradNorm = Annotated[
    bool,
    typer.Option(
        "--gradnorm",
        help="The membership attack by gradient norm too: a backward pass for each document.",
        rich_help_panel=WHAT,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All metrics, and the work done.", rich_help_panel=RUN)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run that --out already holds.", rich_help_panel=RUN)
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write the run to.", rich_help_panel=WHAT)]
ControlName = Annotated[
    str,
    typer.Option(
        help=f"How the model is controlled: {' | '.join(CONTROLS)} (docs/control.md); none: only as published.",
        metavar="NAME",
        rich_help_panel=CONTROL,
        autocompletion=lambda: [*CONTROLS, "none"],
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What tables call the unlearned checkpoint. Default: as given.", metavar="TEXT", rich_help_panel=RUN
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, and say what will run and about how long: measured by a few documents on this machine.",
        rich_help_panel=RUN,
    ),
]
Depth = Annotated[
    bool,
    typer.Option(
        "--depth",
        help="How deep the forgetting reaches: each layer is patched into the original. Needs --retain-model, and "
        "for each layer and model a pass over the forget set.",
        rich_help_panel=WHAT,
    ),
]
EntitySpans = Annotated[
    Path | None,
    typer.Option(
        help="Of --depth: a JSON list of {question, entity}; there the entity alone is read.",
        metavar="FILE",
        rich_help_panel=WHAT,
    ),
]


def option(setting: str) -> str:
    """A setting as it is written on the command line."""
    return "--" + setting.replace("_", "-")


def listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())
