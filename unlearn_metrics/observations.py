"""What can be observed of a document, declared once each: request, stored column and check follow from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_metrics.documents import Document, TokenScores, scores_from_lists


@dataclass(frozen=True)
class Observation:
    """A field of a Document that a model is needed for.

    Attributes:
        kind: TokenScores, or the type of one value: str, int, float; list: of a number for each layer.
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
    "similarity": Observation(float, high=1),  # this and the next two: see metrics/semantic.py
    "entailed": Observation(float, high=1),
    "judged": Observation(float, high=1),
    "patched": Observation(list),  # what each layer lacks of the answer, see erasure_depth
    "lens": Observation(list),  # the same by logit lens
}


def layout(needs: Collection[str], fields: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(role, how many requests) of a document, in the order in which a task makes them and lm-eval returns responses.

    needs: the fields that metrics take; fields: the document's row of the data.
    """
    return [
        (role, len(fields.get(str(it.answer)) or ()) if it.several else 1)
        for role, it in OBSERVATIONS.items()
        if it.request is not None and role in needs
    ]


def observed(roles: Sequence[tuple[str, int]], responses: Sequence[Any]) -> Document:
    """role -> what was observed, from the responses to the requests of `layout`, in order."""
    result: Document = {}
    rest = iter(responses)
    for role, count in roles:
        if OBSERVATIONS[role].kind is not TokenScores:
            result[role] = next(rest)
        elif OBSERVATIONS[role].several:
            result[role] = [scores_from_lists(next(rest)) for _ in range(count)]
        else:
            result[role] = scores_from_lists(next(rest))
    return result
