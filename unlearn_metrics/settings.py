"""What the user chose for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from unlearn_metrics.errors import InputError


class ControlChoice(StrEnum):
    """control.controls.CONTROLS, without importing torch (a test compares the two), and none."""

    mix = "mix"
    trim = "trim"
    layers = "layers"
    temperature = "temperature"
    select = "select"
    none = "none"


@dataclass(frozen=True)
class Settings:
    """What the user chose. Exactly one of keep and alpha is set; control "none", or neither of them: no control.

    control: a name in control.controls.CONTROLS. layers: of the control `layers`, the tensors that it mixes.
    trajectory: of `select`, the folder of checkpoints; the unlearned model is one of them, the last that is looked at.
    retention_metric: what calibration keeps: a metric of the retain split, or TASK.METRIC of one of utility_tasks.
    retain_model: the checkpoint that never saw the forget set; or reference_record, an earlier run whose model
    reference_from stands for it. utility_tasks: lm-eval tasks beside the benchmark, from include_path too.
    gibberish_model: a text classifier for the generations. gradnorm: the attack that takes a backward pass, too.
    """

    keep: float | None = 0.95
    retention_metric: str = "extraction_strength"
    alpha: float | None = None
    control: str = "mix"
    layers: str | None = None
    trajectory: Path | None = None
    limit: int | None = None
    device: str | None = None
    dtype: str | None = None
    name: str | None = None
    retain_model: str | None = None
    reference_record: Path | None = None
    reference_from: str = "retain_only"
    utility_tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    utility_limit: int | None = None
    gibberish_model: str | None = None
    gradnorm: bool = False
    apply_chat_template: bool = False
    batch_size: int = 1
    seed: int = 0

    @property
    def without_control(self) -> bool:
        return self.control == "none" or (self.keep is None and self.alpha is None)


PREFIX = 0.5


@dataclass(frozen=True)
class OwnData:
    """A user's own benchmark: split -> file, the columns that hold the fields, and where plain text is split."""

    files: Mapping[str, Path]
    fields: Mapping[str, str] | None = None
    prefix: float = PREFIX


EXCLUSIVE = {
    ("keep", "alpha"): ": calibrate, or mix at a given alpha",
    ("retention_metric", "alpha"): ": calibrate, or mix at a given alpha",
    ("retain_model", "reference_record"): "",
}
OF_CONTROL = ("keep", "retention_metric", "alpha", "layers", "trajectory")


def check_exclusive(given: Mapping[str, object], spelled: Callable[[str], str]) -> None:
    """InputError if settings exclude each other. given: those that the user gave. spelled: a setting as he wrote it."""
    names = [name for name, value in given.items() if value is not None]
    for (a, b), why in EXCLUSIVE.items():
        if a in names and b in names:
            raise InputError(f"{spelled(a)} and {spelled(b)} exclude each other{why}")
    if given.get("control") == "none" and (taken := [name for name in OF_CONTROL if name in names]):
        raise InputError(f"{spelled('control')} none takes no {spelled(taken[0])}")
