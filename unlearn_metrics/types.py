"""What flows through the package: frozen records with no behaviour beyond reading themselves.

Run records are plain dataclasses too; pydantic reads their types to validate a record on load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, and what to do."""


def first_line(error: Exception) -> str:
    """What an error of a library says, for an InputError; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one teacher-forced pass says of an answer y_1..y_n and of the end-of-sequence token after it.

    Every array has shape [n + 1]; position i < n is answer token i + 1, position n is end-of-sequence.
    Log-probabilities are in nats. `mean` and `variance` are those of log p(v) over the vocabulary, v drawn
    from the model's own distribution at that position (what Min-K%++ needs).
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
        """m_i = [the arg-max token at i is y_i], shape [n]."""
        return (self.argmax == self.tokens)[:-1]

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

# One document of a benchmark with everything that was observed of it: "id", "split", "cluster", the texts
# ("reference", "generation") and the token scores by role ("answer", "paraphrased_question", "true_answer",
# "wrong_answers", "judged_generation"). Metrics name the fields that they need.
Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """An aggregate over documents, with its 95 % interval. `unscored` documents are in no other number."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    unscored: int


@dataclass(frozen=True)
class TracePoint:
    """One evaluation during calibration."""

    alpha: float
    retention: float


@dataclass(frozen=True)
class Control:
    """How the unlearned checkpoint was controlled before it was scored.

    alpha weights the unlearned model (0 = original, 1 = unlearned). target and achieved are retention on the
    calibrating half of the retain documents; achieved_held_out / original_held_out are on the other half.
    """

    method: str
    alpha: float
    keep: float | None = None
    metric: str | None = None
    target: float | None = None
    achieved: float | None = None
    original_held_out: float | None = None
    achieved_held_out: float | None = None
    trace: list[TracePoint] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointInfo:
    """Identity of a checkpoint: sha256 over the weights, the config and the tokenizer."""

    path: str
    revision: str | None
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str


# model -> split -> metric -> Score
Scores: TypeAlias = dict[str, dict[str, dict[str, Score]]]


@dataclass(frozen=True)
class RunRecord:
    """record.json: what was measured, on what, with what, and the scores."""

    schema: str
    signature: str
    benchmark: str
    verdict: str
    control: Control
    scores: Scores
    checkpoints: dict[str, CheckpointInfo]
    data: dict[str, str]
    task_versions: dict[str, str]
    settings: dict[str, str | int | float | bool | None]
    software: dict[str, str]
    work: dict[str, int]
    wall_seconds: float
    created: str
