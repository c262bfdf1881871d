"""What the user chose for a run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, TypeAdapter, ValidationError

from unlearn_metrics.attacks import ATTACKS
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.errors import InputError, did_you_mean


def _known(control: str) -> str:
    if control != "none" and control not in CONTROLS:
        raise ValueError(f"there is no control '{control}'; {did_you_mean(control, (*CONTROLS, 'none'))}")
    return control


# lm-eval's arguments of its `hf` model, but for those that name the model or its precision
MODEL_ARGS = (
    *("parallelize", "device_map", "max_memory_per_gpu", "max_cpu_memory", "attn_implementation"),
    *("trust_remote_code", "max_length", "add_bos_token"),
)


def _loadable(model_args: str) -> str:
    for part in filter(None, model_args.split(",")):
        key, given, _ = part.partition("=")
        if key not in MODEL_ARGS:
            raise ValueError(f"there is no '{key}' to set; {did_you_mean(key, MODEL_ARGS)}")
        if not given:
            raise ValueError(f"'{key}' has no value; it is written {key}=VALUE")
    return model_args


RELEARN = ("relearn", "relearn_retain")


def _attackable(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        kind, found, place = name.partition("=")
        if kind in RELEARN or found:
            if kind not in RELEARN:
                raise ValueError(f"only {' and '.join(RELEARN)} take a checkpoint, {name} does not")
            if not place:
                raise ValueError(f"'{kind}' has no checkpoint; it is written {kind}=CHECKPOINT")
        elif name != "all" and name not in ATTACKS:
            raise ValueError(f"unknown attack '{name}'; {did_you_mean(name, (*ATTACKS, *RELEARN, 'all'))}")
    kinds = [name.partition("=")[0] for name in names]
    if "relearn_retain" in kinds and "relearn" not in kinds:
        raise ValueError("'relearn_retain' goes with 'relearn'")
    return names


DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Model: TypeAlias = Literal["retain_only", "unlearned", "original"]
Count: TypeAlias = Annotated[int, Ge(1), Le(10**9)]


@dataclass(frozen=True)
class Settings:
    """What the user chose. Exactly one of keep and alpha is set; control "none", or neither of them: no control.

    The types hold the ranges; who reads settings from a user validates by them: `chosen`, or a sweep's plan.

    control: a name in control.CONTROLS. layers: of the control `layers`, the tensors that it mixes.
    trajectory: of `select`, the folder of checkpoints; the unlearned model is one of them, the last that is looked at.
    retention_metric: what calibration keeps: a metric of the retain split, or TASK.METRIC of one of utility_tasks.
    retain_model: the checkpoint that never saw the forget set; or reference_record, an earlier run whose model
    reference_from stands for it. utility_tasks: lm-eval tasks beside the benchmark, from include_path too.
    attacks: names in attacks.ATTACKS, "all" of them, and relearn=CHECKPOINT and relearn_retain=CHECKPOINT.
    gibberish_model: a text classifier for the generations. gradnorm: the attack that needs a backward pass, too.
    limit: only the first documents of each split; sample: so many of each split, drawn with a fixed seed.
    depth: what the layers of the models lack, by patching them into the original; of the entities that entity_spans
    names instead of whole answers.
    model_args: how the model is loaded, as lm-eval spells it: KEY=VALUE,... of MODEL_ARGS.
    """

    keep: Annotated[float, Gt(0), Le(1)] | None = 0.95
    retention_metric: str = "extraction_strength"
    alpha: Annotated[float, Ge(0), Le(1)] | None = None
    control: Annotated[str, AfterValidator(_known)] = "mix"
    layers: str | None = None
    trajectory: Path | None = None
    limit: Count | None = None
    sample: Count | None = None
    device: str | None = None
    dtype: DType | None = None
    name: str | None = None
    retain_model: str | None = None
    reference_record: Path | None = None
    reference_from: Model = "retain_only"
    utility_tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    utility_limit: Count | None = None
    attacks: Annotated[tuple[str, ...], AfterValidator(_attackable)] = ()
    gibberish_model: str | None = None
    gradnorm: bool = False
    depth: bool = False
    entity_spans: Path | None = None
    apply_chat_template: bool = False
    batch_size: Count = 1
    model_args: Annotated[str, AfterValidator(_loadable)] = ""
    seed: Annotated[int, Ge(0)] = 0

    @property
    def without_control(self) -> bool:
        return self.control == "none" or (self.keep is None and self.alpha is None)


PREFIX = 0.5


@dataclass(frozen=True)
class OwnData:
    """A user's own benchmark, made of files: JSON lines, a JSON array, Parquet, CSV, or a folder that datasets saved.

    Attributes:
        files: split -> file; "forget", and as wanted "retain" (which calibrates) and "holdout" (which no model has
            seen: membership attacks).
        fields: field -> column, {"question": ..., "answer": ...} or {"text": ...}, either with "cluster"; by default
            the columns are called as the fields.
        prefix: plain text is split after this share of its words, or after this many if 1 or more.

    >>> OwnData({"forget": "mine.jsonl", "retain": "other.jsonl"}, fields={"text": "body"}).prefix
    0.5
    """

    files: Mapping[str, str | os.PathLike[str]]
    fields: Mapping[str, str] | None = None
    prefix: float = PREFIX


EXCLUSIVE = {
    ("keep", "alpha"): ": calibrate, or mix at a given alpha",
    ("retention_metric", "alpha"): ": calibrate, or mix at a given alpha",
    ("retain_model", "reference_record"): "",
    ("limit", "sample"): ": the first documents, or some of all",
}
OF_CONTROL = ("keep", "retention_metric", "alpha", "layers", "trajectory")


def check_exclusive(given: Mapping[str, object], spelled: Callable[[str], str]) -> None:
    """InputError if settings exclude each other. given: those that the user gave. spelled: a setting as he wrote it."""
    names = [name for name, value in given.items() if value is not None]
    for (a, b), why in EXCLUSIVE.items():
        if a in names and b in names:
            raise InputError(f"{spelled(a)} and {spelled(b)} exclude each other{why}")
    if given.get("control") == "none" and (taken := [name for name in OF_CONTROL if name in names]):
        raise InputError(f"{spelled('control')} none has no {spelled(taken[0])}")


def chosen(given: Mapping[str, Any], spelled: Callable[[str], str] = str) -> Settings:
    """The settings of a user who named these. InputError for those that exclude each other, and what is out of range.

    Args:
        given: setting -> value; None where he named none, which leaves the default. keep stays unset beside an alpha,
            and both beside control "none".
        spelled: a setting as he wrote it.
    """
    check_exclusive(given, spelled)
    named = {name: value for name, value in given.items() if value is not None}
    if "alpha" in named or named.get("control") == "none":
        named["keep"] = None
    try:
        return TypeAdapter(Settings).validate_python(named)
    except ValidationError as error:
        raise InputError(explained(error, given, spelled)) from None


def explained(error: ValidationError, given: Mapping[str, Any], spelled: Callable[[str], str] = str) -> str:
    """The first thing that a validation found wrong, in one line: the setting, its value, the values allowed."""
    first = error.errors(include_url=False)[0]
    name, what = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] in ("missing", "value_error") else f", not {given.get(name)!r}"[:200]
    return f"{spelled(name)}: {what[:1].lower()}{what[1:]}{value}"


_OPTION = re.compile(r"--((?!-)[a-z]+(?:-[a-z]+)*)\b")
_OTHER_NAMES = {"original", "unlearned", "benchmark", "data", "out", "overwrite", "metrics", "anyway", "fields"}


def in_python(text: str) -> str:
    """A message that speaks of options (--retain-model) as the Python API has it: retain_model."""
    names = {*Settings.__dataclass_fields__, *_OTHER_NAMES, "forget", "retain", "holdout"}

    def spelled(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return name if name in names else found[0]

    return _OPTION.sub(spelled, text)
