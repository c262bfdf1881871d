"""Whether a generation says what its reference says, by models that read both. Pure functions of what they found.

The models are chosen by the user and named in the signature: backends/semantic.py runs them. An empty generation says
nothing: 0.
"""

from __future__ import annotations

from unlearn_metrics.metrics.retention import rouge

CREDIT = 0.1  # ROUGE-L recall


def cosine(similarity: float) -> float:
    """The cosine of the sentence embeddings of generation and reference, 0 where it is negative.

    similarity: that, from an encoder of sentences.

    >>> cosine(0.75)
    0.75

    Source: Yuan et al. 2024 (arXiv 2410.08109), cosine similarity.
    """
    return similarity


def entailment(entailed: float, generation: str, reference: str) -> float:
    """1 if a model of natural language inference finds that one entails the other, else 0: on forget the generation
    the reference, elsewhere the reference the generation. 0 where ROUGE-L recall is below 0.1.

    entailed: 0 or 1, what that model finds.

    >>> entailment(1.0, "She lives in Oslo.", "In Oslo"), entailment(1.0, "She", "In Oslo")
    (1.0, 0.0)

    Source: Yuan et al. 2024 (arXiv 2410.08109), entailment score.
    """
    return 0.0 if rouge(generation, reference) < CREDIT else entailed


def judge(judged: float) -> float:
    """1 if a language model that is asked says that the generation conveys the essential information of the reference
    answer, else 0. A reply that is neither yes nor no is unscored.

    judged: 0 or 1, what it says.

    >>> judge(1.0)
    1.0

    Source: the package's prompt (backends/semantic.py); judges in unlearning: Leak@k, 2025 (arXiv 2511.04934).
    """
    return judged
