"""The registry: name -> Metric. The name is the key here, in the task YAML, in the record and in the table."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_metrics.documents import SAMPLINGS, Document, FlagScores, MeanLoss
from unlearn_metrics.metrics import fluency, leakage, memorization, privacy, retention, semantic
from unlearn_metrics.metrics.fluency import (
    distinct_1,
    distinct_2,
    gibberish,
    ngram_entropy,
    perplexity,
    refusal,
    repetition,
    token_entropy,
)
from unlearn_metrics.metrics.forget_quality import ks_forget_quality
from unlearn_metrics.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    extraction_strength_similar,
    probability,
    probability_normalised,
    probability_wrong,
    truth_ratio,
    truth_ratio_arithmetic,
)
from unlearn_metrics.metrics.privacy import gradnorm, loss, min_k, min_k_plus_plus, zlib
from unlearn_metrics.metrics.retention import rouge, rouge_f1
from unlearn_metrics.registry import Registry
from unlearn_metrics.splits import is_forget

__all__ = [
    "METRICS",
    "Metric",
    "available",
    "distinct_1",
    "distinct_2",
    "exact_memorization",
    "extraction_strength",
    "extraction_strength_similar",
    "gibberish",
    "good",
    "gradnorm",
    "ks_forget_quality",
    "loss",
    "min_k",
    "min_k_plus_plus",
    "ngram_entropy",
    "perplexity",
    "probability",
    "probability_normalised",
    "probability_wrong",
    "refusal",
    "repetition",
    "rouge",
    "rouge_f1",
    "token_entropy",
    "truth_ratio",
    "truth_ratio_arithmetic",
    "value",
    "values",
    "zlib",
]


@dataclass(frozen=True)
class Metric:
    """A pure function and the fields of a Document that are its arguments, in order.

    better: which way is better for a model that should know the text (`good` gives the direction on a split); "neither"
    where both a low and a high value can be bad.
    geometric: aggregate by the geometric mean. NaN from fn = this document has no such value.
    loss_is_enough: the function accepts a MeanLoss or FlagScores for TokenScores too. flags_are_enough: a FlagScores.
    """

    fn: Callable[..., Any]
    needs: tuple[str, ...]
    facet: Literal["memorization", "retention", "fluency", "privacy"]
    better: Literal["higher", "lower", "neither"] = "higher"
    geometric: bool = False
    loss_is_enough: bool = False
    flags_are_enough: bool = False

    def __call__(self, document: Document) -> float:
        return float(self.fn(*map(document.__getitem__, self.needs)))

    @property
    def definition(self) -> str:
        """The docstring up to its examples and source."""
        return re.split(r">>>|Source:", inspect.getdoc(self.fn) or "")[0].strip()

    @property
    def source(self) -> str:
        """Whose definition it is, from the docstring."""
        doc = " ".join(re.sub(r">>>.*?(?:\n\n|\Z)", "", inspect.getdoc(self.fn) or "", flags=re.S).split())
        named = re.search(r"OpenUnlearning's `\w+`", doc)
        return doc.partition("Source: ")[2] or (named.group() if named else "")

    def can_score(self, document: Document) -> bool:
        """Whether the document holds all arguments of fn."""
        held = document.keys() >= {*self.needs}
        return held and (self.loss_is_enough or all(map(self._takes, map(document.__getitem__, self.needs))))

    def _takes(self, field: Any) -> bool:
        if isinstance(field, list):
            return all(map(self._takes, field))
        return not isinstance(field, MeanLoss if self.flags_are_enough else (MeanLoss, FlagScores))


def _fixed(fn: Callable[..., float], **parameters: float | str) -> Metric:
    """The metric of a function of an answer whose parameters are in its name."""
    named = functools.update_wrapper(functools.partial(fn, **parameters), fn)
    del named.__wrapped__  # its signature is without them
    return Metric(named, ("answer",), "memorization")


_OWN: dict[str, Metric] = {
    "extraction_strength": Metric(memorization.extraction_strength, ("answer",), "memorization", flags_are_enough=True),
    "extraction_strength_similar": Metric(
        memorization.extraction_strength_similar, ("answer", "revealed"), "memorization"
    ),
    "exact_memorization": Metric(memorization.exact_memorization, ("answer",), "memorization"),
    "probability": Metric(memorization.probability, ("answer",), "memorization", loss_is_enough=True),
    "extraction_strength_paraphrased": Metric(
        memorization.extraction_strength, ("paraphrased_question",), "memorization", flags_are_enough=True
    ),
    "exact_memorization_paraphrased": Metric(
        memorization.exact_memorization, ("paraphrased_question",), "memorization"
    ),
    "probability_paraphrased": Metric(
        memorization.probability, ("paraphrased_question",), "memorization", loss_is_enough=True
    ),
    "probability_paraphrased_answer": Metric(
        memorization.probability, ("true_answer",), "memorization", loss_is_enough=True
    ),
    "probability_wrong": Metric(
        memorization.probability_wrong, ("wrong_answers",), "memorization", better="lower", loss_is_enough=True
    ),
    "probability_normalised": Metric(
        memorization.probability_normalised, ("answer", "wrong_answers"), "memorization", loss_is_enough=True
    ),
    "truth_ratio": Metric(
        memorization.truth_ratio, ("true_answer", "wrong_answers", "split"), "memorization", loss_is_enough=True
    ),
    "truth_ratio_arithmetic": Metric(
        memorization.truth_ratio_arithmetic,
        ("true_answer", "wrong_answers", "split"),
        "memorization",
        loss_is_enough=True,
    ),
    "rouge": Metric(retention.rouge, ("generation", "reference"), "retention"),
    "rouge_f1": Metric(retention.rouge_f1, ("generation", "reference"), "retention"),
    "answer_match": Metric(retention.answer_match, ("generation", "reference"), "retention"),
    "cosine": Metric(semantic.cosine, ("similarity",), "retention"),
    "entailment": Metric(semantic.entailment, ("entailed", "generation", "reference"), "retention"),
    "judge": Metric(semantic.judge, ("judged",), "retention"),
    "repetition": Metric(fluency.repetition, ("generation",), "fluency", better="lower"),
    "distinct_1": Metric(fluency.distinct_1, ("generation",), "fluency"),
    "distinct_2": Metric(fluency.distinct_2, ("generation",), "fluency"),
    "token_entropy": Metric(fluency.token_entropy, ("generation",), "fluency"),
    "ngram_entropy": Metric(fluency.ngram_entropy, ("generation",), "fluency"),
    "refusal": Metric(fluency.refusal, ("generation",), "fluency", better="lower"),
    "gibberish": Metric(fluency.gibberish, ("clean_probability",), "fluency", better="lower"),
    "perplexity": Metric(fluency.perplexity, ("judged_generation",), "fluency", better="lower", geometric=True),
    "self_perplexity": Metric(
        fluency.perplexity, ("self_judged_generation",), "fluency", better="neither", geometric=True
    ),
    "loss": Metric(privacy.loss, ("answer",), "privacy", better="lower", loss_is_enough=True),
    "zlib": Metric(privacy.zlib, ("answer", "reference"), "privacy", better="lower", loss_is_enough=True),
    "min_k": Metric(privacy.min_k, ("answer",), "privacy", better="lower"),
    "min_k_plus_plus": Metric(privacy.min_k_plus_plus, ("answer",), "privacy", better="lower"),
    "gradnorm": Metric(privacy.gradnorm, ("gradient",), "privacy", better="lower"),
}

# what an attacker gets who samples; k or n samples, and the chance of success that counts
_OWN |= {f"leak_at_{k}": _fixed(leakage.leak_at, k=k) for k in (1, 10, 100, 1000, 10_000, 1_000_000)}
_OWN |= {
    f"extracted_within_{n}_p{round(100 * p)}": _fixed(leakage.extracted_within, n=n, p=p)
    for p in (0.5, 0.9)
    for n in (100, 10_000, 1_000_000)
}
_OWN["expected_prefix"] = _fixed(leakage.expected_prefix)
_OWN |= {
    f"sampled_extraction_strength_{n}": _fixed(leakage.sampled_extraction_strength, n=n) for n in (1, 10, 100, 1000)
}
for _name in SAMPLINGS:
    _OWN |= {f"leak_at_{k}_{_name}": _fixed(leakage.leak_at, k=k, sampling=_name) for k in (1, 1000, 1_000_000)}
    _OWN[f"expected_prefix_{_name}"] = _fixed(leakage.expected_prefix, sampling=_name)
    _OWN |= {
        f"sampled_extraction_strength_{n}_{_name}": _fixed(leakage.sampled_extraction_strength, n=n, sampling=_name)
        for n in (1, 1000)
    }

METRICS: Registry[Metric] = Registry("metric", "unlearn_metrics.metrics", _OWN)
MEMBERSHIP_ATTACKS = tuple(name for name, metric in _OWN.items() if metric.facet == "privacy")
# What needs a look at the generation once it is there; a stock lm-eval run has no second round.
READ = {"cosine": "similarity", "entailment": "entailed", "judge": "judged"}  # by models that the user names
_LATER = {"judged_generation", "self_judged_generation", "clean_probability", *READ.values()}
TRUTH_RATIOS = ("truth_ratio", "truth_ratio_arithmetic")
JUDGED = frozenset(name for name, metric in _OWN.items() if _LATER & {*metric.needs})


def good(name: str, split: str) -> Literal["higher", "lower", "neither"]:
    """Which way is good on a split: on forget, what the model still holds of the text is bad.

    Truth ratios have a form of their own there (1 = true and wrong answers look alike); fluency is good anywhere, but
    whether to refuse what is to be forgotten is a matter of taste, and to the original what it knows by heart is least
    perplexing. Attack scores are high where a text looks new to the model. Of a metric that is not known here, nobody
    can say: "neither".
    """
    if name not in METRICS:
        return "neither"
    metric = METRICS[name]
    if is_forget(split) and name in ("refusal", "perplexity"):
        return "neither"
    if not is_forget(split) or metric.facet == "fluency" or name in TRUTH_RATIOS:
        return metric.better
    return "higher" if metric.facet == "privacy" else "lower"


def value(name: str, document: Document) -> float:
    """A metric of a document: as a log has it, else computed if it holds the metric's arguments, else NaN.

    What is computed instead of taken from a log is the importer's choice: it leaves that value out of "logged".
    """
    if name in document.get("logged", ()):
        return float(document["logged"][name])
    metric = METRICS.get(name)
    return metric(document) if metric and metric.can_score(document) else math.nan


def values(names: Iterable[str], documents: Sequence[Document]) -> dict[str, list[float]]:
    """metric -> `value` of every document."""
    names = [*names]
    rows = [[value(name, document) for name in names] for document in documents]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def available(documents: Sequence[Document]) -> list[str]:
    """The metrics that at least one of the documents has, computed or logged, in the registry's order."""
    return [
        name
        for name, metric in METRICS.items()
        if any(metric.can_score(d) or name in d.get("logged", ()) for d in documents)
    ]
