"""What is observed of a benchmark's documents: token scores, texts, and the Document that metrics read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]


# characters of a text: a longer one costs more to compare than a model needs to read it
MAX_TEXT = 1_000_000
# An arg-max of which a backend returns only that it is another token than the reference's, or nothing
OTHER, UNKNOWN = -1, -2


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn from a model: temperature, then the top_k likeliest tokens, then of those the fewest whose
    probability is at least top_p. None: all tokens."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


# one setting changed at a time; each is a field of TokenScores, a stored column, and the end of a metric's name
SAMPLINGS = {"temp80": Sampling(temperature=0.8), "top40": Sampling(top_k=40), "nucleus90": Sampling(top_p=0.9)}


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one teacher-forced pass observes of an answer y_1..y_n and of the end-of-sequence token after it.

    Every array has shape [n + 1]; position i < n is answer token i + 1, position n is end-of-sequence.
    Log-probabilities are in nats. `mean` and `variance` are those of log p(v) over the vocabulary, v drawn
    from the model's own distribution at that position (what Min-K%++ needs). `temp80`, `top40` and `nucleus90` are the
    log-probability of the token under those settings of SAMPLINGS, -inf where it is never drawn. What a backend does
    not return is NaN, an arg-max OTHER or UNKNOWN.
    """

    tokens: NDArray[np.int32]
    argmax: NDArray[np.int32]
    logprob: Floats
    mean: Floats
    variance: Floats
    temp80: Floats = None  # type: ignore[assignment]  # NaN, where it is not given
    top40: Floats = None  # type: ignore[assignment]
    nucleus90: Floats = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in SAMPLINGS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(len(self.tokens), np.nan, np.float32))

    def __len__(self) -> int:
        """n, the number of answer tokens, end-of-sequence not counted."""
        return len(self.tokens) - 1

    @property
    def match(self) -> NDArray[np.bool_]:
        """m_i = [the arg-max token at i is y_i], shape [n]; false where it is unknown."""
        return (self.argmax == self.tokens)[:-1]

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Where the backend returned no arg-max, shape [n]."""
        return (self.argmax == UNKNOWN)[:-1]

    @cached_property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per token, end-of-sequence included."""
        return -fmean(self.logprob.tolist())

    def to_lists(self) -> list[list[float]]:
        """The arrays of TOKEN_SCORE_FIELDS: lm-eval turns what is not a list into a string in its samples."""
        return [getattr(self, name).tolist() for name in TOKEN_SCORE_FIELDS]

    @classmethod
    def from_lists(cls, lists: Sequence[Any]) -> TokenScores:
        """The inverse of `to_lists`; the lists of SAMPLINGS may be missing."""
        dtypes = [*TOKEN_SCORE_FIELDS.values()][: max(len(lists), len(OBSERVED))]
        return cls(*(np.asarray(values, dtype) for values, dtype in zip(lists, dtypes, strict=True)))


TOKEN_SCORE_FIELDS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "argmax": np.int32,
    "logprob": np.float32,
    "mean": np.float32,
    "variance": np.float32,
    **dict.fromkeys(SAMPLINGS, np.float32),
}
OBSERVED = tuple(name for name in TOKEN_SCORE_FIELDS if name not in SAMPLINGS)  # what older versions have too


@dataclass(frozen=True)
class FlagScores:
    """What sums and greedy flags give of an answer, from a backend that gives nothing token by token.

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
    if len(lists) > 4:
        return TokenScores.from_lists(lists)
    (loss,), (units,), (revealed,), (unit,) = lists
    return FlagScores(loss, units, revealed, unit)


@dataclass(frozen=True)
class MeanLoss:
    """What a log holds of an answer whose token scores it did not keep.

    loss: mean negative log-likelihood in nats per token, end-of-sequence included.
    """

    loss: float


# what has a mean loss
Losses: TypeAlias = TokenScores | MeanLoss | FlagScores


# One document of a benchmark with everything that was observed of it: "id", "split", "cluster", the texts ("prompt",
# "reference", "generation"), "kind" (what an aggregate counts it under, see scores/lume.py), the token scores by role
# ("answer", "paraphrased_question", "true_answer", "wrong_answers", "judged_generation": under the original,
# "self_judged_generation": under the model that wrote it; MeanLoss instead where a log is all there is), "revealed"
# (see extraction_strength_similar), "clean_probability" (see gibberish), "gradient" (see gradnorm) and "logged", metric
# values taken from a log that does not hold what they could be computed from.
# Metrics name the fields that they need.
Document: TypeAlias = dict[str, Any]


# model ("original", "unlearned", "controlled", "retain_only") -> split -> documents
Observations: TypeAlias = dict[str, dict[str, list[Document]]]
