"""What can be observed of a document, declared once each: request, stored column and check follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlearn_metrics.documents import TokenScores


@dataclass(frozen=True)
class Observation:
    """A field of a Document that a model is needed for.

    Attributes:
        kind: TokenScores, or the type of one value: str, int, float.
        request: lm-eval's request type and the function of that name in `backends` that serves it; None where a job
            adds the field afterwards.
        answer: the field of the data whose text is scored (TokenScores).
        several: a list of them.
        high: the largest value that a stranger's table may hold; the least is 0.
    """

    kind: type
    request: str | None = None
    answer: str | None = None
    several: bool = False
    high: float = math.inf


OBSERVATIONS = {
    "answer": Observation(TokenScores, "token_scores", "answer"),
    "paraphrased_question": Observation(TokenScores, "token_scores", "paraphrased_question"),
    "true_answer": Observation(TokenScores, "token_scores", "paraphrased_answer"),
    "wrong_answers": Observation(TokenScores, "token_scores", "perturbed_answer", several=True),
    "generation": Observation(str, "greedy_until"),
    "revealed": Observation(int, "similar_strength"),  # see extraction_strength_similar
    "gradient": Observation(float, "gradnorm", high=3.5e38),
    "judged_generation": Observation(TokenScores),  # under the original
    "self_judged_generation": Observation(TokenScores),  # under the model that wrote it
    "clean_probability": Observation(float, high=1),  # see gibberish
}
