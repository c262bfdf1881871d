"""The registry: name -> Metric. The name is the key here, in the task YAML, in the record and in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from unlearn_metrics.metrics import fluency, memorization, retention
from unlearn_metrics.types import Document


@dataclass(frozen=True)
class Metric:
    """A pure function and the fields of a Document that it takes, in order.

    better: which way is better for a model that should know the text (`good` says which way on a split).
    geometric: aggregate by the geometric mean. NaN from fn = this document has no such figure.
    """

    fn: Callable[..., float]
    needs: tuple[str, ...]
    facet: Literal["memorization", "retention", "fluency"]
    better: Literal["higher", "lower"] = "higher"
    geometric: bool = False

    def __call__(self, document: Document) -> float:
        return self.fn(*(document[name] for name in self.needs))


METRICS: dict[str, Metric] = {
    "extraction_strength": Metric(memorization.extraction_strength, ("answer",), "memorization"),
    "exact_memorization": Metric(memorization.exact_memorization, ("answer",), "memorization"),
    "probability": Metric(memorization.probability, ("answer",), "memorization"),
    "extraction_strength_paraphrased": Metric(
        memorization.extraction_strength, ("paraphrased_question",), "memorization"
    ),
    "exact_memorization_paraphrased": Metric(
        memorization.exact_memorization, ("paraphrased_question",), "memorization"
    ),
    "probability_paraphrased": Metric(memorization.probability, ("paraphrased_question",), "memorization"),
    "probability_paraphrased_answer": Metric(memorization.probability, ("true_answer",), "memorization"),
    "probability_wrong": Metric(memorization.probability_wrong, ("wrong_answers",), "memorization", better="lower"),
    "probability_normalised": Metric(memorization.probability_normalised, ("answer", "wrong_answers"), "memorization"),
    "truth_ratio": Metric(memorization.truth_ratio, ("true_answer", "wrong_answers", "split"), "memorization"),
    "rouge": Metric(retention.rouge, ("generation", "reference"), "retention"),
    "repetition": Metric(fluency.repetition, ("generation",), "fluency", better="lower"),
    "ngram_entropy": Metric(fluency.ngram_entropy, ("generation",), "fluency"),
    "perplexity": Metric(fluency.perplexity, ("judged_generation",), "fluency", better="lower", geometric=True),
}

# What a judge model must score first; a stock lm-eval run has no judge.
JUDGED = frozenset(name for name, metric in METRICS.items() if "judged_generation" in metric.needs)


def good(name: str, split: str) -> Literal["higher", "lower"]:
    """Which way is good on a split: on forget, what the model still holds of the text is bad.

    truth_ratio has a form of its own there (1 = true and wrong answers look alike); fluency is good anywhere.
    """
    if split == "forget" and METRICS[name].facet != "fluency" and name != "truth_ratio":
        return "lower"
    return METRICS[name].better
