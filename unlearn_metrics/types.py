"""What flows through the package: frozen records with no behaviour beyond reading themselves.

Run records are plain dataclasses too; pydantic reads their types to validate a record on load.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from annotated_types import Ge, Le, MaxLen
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # names and library errors may bring lines of their own


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """For an InputError about an unknown name: those near it, or else what to do, by default all that there are."""
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"there are {', '.join(names)}"


def first_line(error: Exception) -> str:
    """What an error of a library says, for an InputError; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# An arg-max of which a backend says only that it is another token than the reference's, or nothing
OTHER, UNKNOWN = -1, -2


def loss_of(logprobs: Sequence[float]) -> float:
    """Mean negative log-likelihood in nats per token; summed exactly."""
    return -math.fsum(logprobs) / len(logprobs)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one teacher-forced pass says of an answer y_1..y_n and of the end-of-sequence token after it.

    Every array has shape [n + 1]; position i < n is answer token i + 1, position n is end-of-sequence.
    Log-probabilities are in nats. `mean` and `variance` are those of log p(v) over the vocabulary, v drawn
    from the model's own distribution at that position (what Min-K%++ needs). What a backend does not tell is NaN, an
    arg-max OTHER or UNKNOWN.
    """

    tokens: NDArray[np.int32]
    argmax: NDArray[np.int32]
    logprob: Floats
    mean: Floats
    variance: Floats

    def __len__(self) -> int:
        """n, the number of answer tokens, end-of-sequence not counted."""
        return len(self.tokens) - 1

    @property
    def match(self) -> NDArray[np.bool_]:
        """m_i = [the arg-max token at i is y_i], shape [n]; false where it is unknown."""
        return (self.argmax == self.tokens)[:-1]

    @cached_property
    def text_loss(self) -> float:
        """As `loss`, end-of-sequence not included."""
        return loss_of(self.logprob[:-1].tolist())

    @property
    def hits(self) -> int:
        """How many m_i are true."""
        return int(np.count_nonzero(self.match))

    @property
    def last_miss(self) -> int:
        """The largest i, counted from 1, whose m_i is false; 0 if all are true."""
        return self.match.tobytes().rfind(0) + 1

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Where the backend told no arg-max, shape [n]."""
        return (self.argmax == UNKNOWN)[:-1]

    @property
    def all_known(self) -> bool:
        """Whether the backend told every arg-max."""
        return not self.unknown.any()

    @cached_property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per token, end-of-sequence included; summed exactly."""
        return loss_of(self.logprob.tolist())

    def to_lists(self) -> list[list[float]]:
        """[tokens, argmax, logprob, mean, variance]: lm-eval turns what is not a list into a string in its samples."""
        return [getattr(self, name).tolist() for name in TOKEN_SCORE_FIELDS]

    @classmethod
    def from_lists(cls, lists: Sequence[Any]) -> TokenScores:
        dtypes = TOKEN_SCORE_FIELDS.values()
        return cls(*(np.asarray(values, dtype) for values, dtype in zip(lists, dtypes, strict=True)))


TOKEN_SCORE_FIELDS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "argmax": np.int32,
    "logprob": np.float32,
    "mean": np.float32,
    "variance": np.float32,
}


@dataclass(frozen=True)
class FlagScores:
    """What sums and greedy flags tell of an answer, from a backend that gives nothing token by token.

    loss: mean negative log-likelihood in nats per token, end-of-sequence included. revealed: the fewest leading units
    (of `units`) to reveal so that greedy decoding yields the rest. NaN = not known.
    """

    loss: float
    units: int
    revealed: float
    unit: Literal["token", "word"]

    def to_lists(self) -> list[list[Any]]:
        return [[self.loss], [self.units], [self.revealed], [self.unit]]


def scores_from_lists(lists: Sequence[Any]) -> TokenScores | FlagScores:
    """The inverse of `to_lists`."""
    if len(lists) == len(TOKEN_SCORE_FIELDS):
        return TokenScores.from_lists(lists)
    (loss,), (units,), (revealed,), (unit,) = lists
    return FlagScores(loss, units, revealed, unit)


@dataclass(frozen=True)
class MeanLoss:
    """What a log tells of an answer whose token scores it did not keep.

    loss: mean negative log-likelihood in nats per token, end-of-sequence included.
    """

    loss: float


# what has a mean loss
Losses: TypeAlias = TokenScores | MeanLoss | FlagScores


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
    def uncontrolled(self) -> bool:
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


# One document of a benchmark with everything that was observed of it: "id", "split", "cluster", the texts
# ("prompt", "reference", "generation"), the token scores by role ("answer", "paraphrased_question", "true_answer",
# "wrong_answers", "judged_generation": under the original, "self_judged_generation": under the model that said it;
# MeanLoss instead where a log is all there is), "revealed" (see extraction_strength_similar), "clean_probability"
# (see gibberish), "gradient" (see gradnorm) and "logged", metric values taken from a log that does not hold what they
# could be computed from.
# Metrics name the fields that they need.
Document: TypeAlias = dict[str, Any]


def kept_on(metric: str) -> str:
    """The split whose documents a retention metric is of: retain, or another lm-eval task (`mmlu.acc`)."""
    task, found, _ = metric.partition(".")
    return task if found else "retain"


def is_forget(split: str) -> bool:
    """Whether a split is the forget set or a further part of it: "forget", "forget_verbmem"; and WMDP's questions, by
    lm-eval's names: "wmdp_bio"."""
    return split.split("_")[0] in ("forget", "wmdp")


# model ("original", "uncontrolled", "controlled", "retain_only") -> split -> documents
Observations: TypeAlias = dict[str, dict[str, list[Document]]]

# --- record.json: plain dataclasses, whose types are the published schema (runs.RECORD_TYPE) -------------------------

Text: TypeAlias = Annotated[str, MaxLen(10_000)]
LongText: TypeAlias = Annotated[str, MaxLen(10_000_000)]
Count: TypeAlias = Annotated[int, Ge(0)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
# pydantic reads this off each class: nothing unknown, nothing converted, no NaN and no infinity
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class Score:
    """An aggregate over documents, with its 95 % interval. `unscored` documents are in no other number.

    undefined: why a composite has no value, in words.
    """

    __pydantic_config__ = STRICT

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: Count
    unscored: Count
    undefined: Text | None = None


@dataclass(frozen=True)
class TracePoint:
    """One evaluation during calibration. forget: the same metric on the forget set, along a trajectory."""

    __pydantic_config__ = STRICT

    alpha: Share
    retention: float
    forget: float | None = None


@dataclass(frozen=True)
class Control:
    """How the unlearned checkpoint was controlled before it was scored.

    alpha is the control's strength (0 = original, 1 = unlearned): of `mix`, the weight of the unlearned model.
    parameters are what else the control was given. target and achieved are retention, the mean of `metric`, on the
    calibrating half of the documents; achieved_held_out / original_held_out are on the other half.
    """

    __pydantic_config__ = STRICT

    method: Text
    alpha: Share
    keep: float | None = None
    metric: Text | None = None
    target: float | None = None
    achieved: float | None = None
    original_held_out: float | None = None
    achieved_held_out: float | None = None
    trace: list[TracePoint] = field(default_factory=list)
    parameters: dict[Text, Text] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointInfo:
    """Identity of a checkpoint: sha256 over the weights, the config and the tokenizer; None where not known."""

    __pydantic_config__ = STRICT

    path: Text
    revision: Text | None
    weights_sha256: Text | None
    config_sha256: Text | None
    tokenizer_sha256: Text | None


@dataclass(frozen=True)
class Prompt:
    """How a split was asked: the task's templates, and the whole prompt of its first document."""

    __pydantic_config__ = STRICT

    doc_to_text: Text
    doc_to_target: Text
    example: LongText


@dataclass(frozen=True)
class GitState:
    """Of the source tree that the plugin ran from. None in a record of an installed package."""

    __pydantic_config__ = STRICT

    commit: Text
    dirty: bool


@dataclass(frozen=True)
class Imported:
    """Where an imported record comes from. as_logged: metrics whose per-document values were taken from the log as
    they are, since it does not hold what they could be computed from. notes: where the log's conventions or figures
    are not this package's, in words."""

    __pydantic_config__ = STRICT

    format: Text
    file: Text
    sha256: Text
    as_logged: list[Text] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)


# model -> split -> metric -> Score
Scores: TypeAlias = dict[Text, dict[Text, dict[Text, Score]]]


@dataclass(frozen=True)
class RunRecord:
    """record.json: what was measured, on what, with what, and the scores.

    name: what a table calls the unlearned checkpoint. composites: model -> name -> figures of several splits or models.
    checkpoints: "original", "unlearned", and "retain_only" where forget quality has a reference. imported: None where
    the package measured the record itself. ability: metrics of other lm-eval tasks, TASK.METRIC -> which way is
    good. What could not be known is None or absent, never a default.
    """

    __pydantic_config__ = STRICT

    schema: Text
    signature: Text
    name: Text
    benchmark: Text
    verdict: Text
    control: Control
    scores: Scores
    composites: dict[Text, dict[Text, Score]]
    checkpoints: dict[Text, CheckpointInfo]
    data: dict[Text, Text]
    task_versions: dict[Text, Text]
    prompts: dict[Text, Prompt]
    settings: dict[Text, Text | int | float | bool | None]
    software: dict[Text, Text]
    git: GitState | None
    imported: Imported | None
    work: dict[Text, Count]
    wall_seconds: float | None
    created: Text
    ability: dict[Text, Literal["higher", "lower"]] = field(default_factory=dict)
