"""Splits of a benchmark: what their documents are for, which part of them, and the halves of a calibration.

A split has one name everywhere (YAML, record, table): ROLE, or ROLE_PART for a further part of the same documents, or
the name of another lm-eval task; `_calibration` after it is the half that chose the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

T = TypeVar("T")
Role = Literal["forget", "retain", "holdout", "other"]
ROLES: tuple[Role, ...] = ("forget", "retain", "holdout")
_CALIBRATION = "_calibration"
CALIBRATION, EVALUATION = slice(0, None, 2), slice(1, None, 2)


@dataclass(frozen=True)
class Split:
    """A split's name in its parts: forget_verbmem is Split("forget", "verbmem").

    role: what its documents are for; "other" is anything beside the benchmark's own sets, part is its name then.
    calibration: the half of the documents that chose the control; what is reported is measured on the other half.
    """

    role: Role
    part: str = ""
    calibration: bool = False

    def __str__(self) -> str:
        parts = (self.part,) if self.role == "other" else (self.role, self.part)
        return "_".join(filter(None, parts)) + (_CALIBRATION if self.calibration else "")

    @property
    def whole(self) -> str:
        """The name of the split that this is a half of, or its own."""
        return str(replace(self, calibration=False))


@cache
def parse(name: str) -> Split:
    """The split of a name."""
    whole = name.removesuffix(_CALIBRATION)
    first, _, part = whole.partition("_")
    role: Role = next((role for role in ROLES if role == first), "other")
    return Split(role, whole if role == "other" else part, name != whole)


def is_forget(name: str) -> bool:
    """Whether a split is the forget set or a further part of it."""
    return parse(name).role == "forget"


def halves(documents: Sequence[T]) -> tuple[list[T], list[T]]:
    """(calibration split, evaluation split): every other document, so that both halves hold every author alike."""
    return list(documents[CALIBRATION]), list(documents[EVALUATION])


def kept_on(metric: str) -> str:
    """The split whose documents a retention metric is of: retain, or another lm-eval task (`mmlu.acc`)."""
    task, found, _ = metric.partition(".")
    return task if found else "retain"
