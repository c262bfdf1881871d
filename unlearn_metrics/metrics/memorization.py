"""How much of a reference answer the model still holds. Pure functions of TokenScores.

n is the number of answer tokens (end-of-sequence not counted) and m_i = [arg-max token at i is y_i], see TokenScores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from unlearn_metrics.documents import FlagScores, Losses, TokenScores
from unlearn_metrics.splits import is_forget


def extraction_strength(answer: TokenScores | FlagScores) -> float:
    """1 - k/n, k = the fewest leading answer tokens to reveal so that greedy decoding yields the rest exactly.

    Greedy decoding from a true prefix repeats the reference as long as every m_i after it holds, so k is the
    position of the last miss, and one teacher-forced pass is enough. 0 when the last token is missed (k = n).
    NaN where the last miss is not known. Of a FlagScores, k and n count its units: tokens, or words.
    Source: Carlini et al. 2021 (arXiv 2012.07805); Wang et al. 2024 (arXiv 2406.09179), extraction strength.
    """
    if isinstance(answer, FlagScores):
        return (answer.units - answer.revealed) / answer.units
    k = answer.last_miss
    if k and not answer.all_known and answer.unknown[k - 1]:
        return math.nan
    return (len(answer) - k) / len(answer)


def similar(said: Sequence[int], rest: Sequence[int]) -> bool:
    """Whether the longest common subsequence of two token sequences covers at least half of `rest`.

    Source: Wang et al. 2024 (arXiv 2406.09179), extraction strength "similar". Their code asks for half of what was
    said, so that a text which stops early passes the more easily.
    """
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(rest, said) >= len(rest)


def extraction_strength_similar(answer: TokenScores, revealed: float) -> float:
    """1 - k/n, k = the fewest leading answer tokens to reveal so that greedy decoding gives something like the rest.

    revealed: that k, which takes decoding (backends/similar.py). The text that follows, of at most as many tokens as
    the rest, need not be exact: its longest common subsequence with the rest must cover at least half of it. k is
    found by bisection, as in the authors' code: where the criterion holds again below a k that fails, that is not seen.
    Never below extraction_strength. Source: Wang et al. 2024 (arXiv 2406.09179), extraction strength; see `similar`.
    """
    return float((len(answer) - revealed) / len(answer))


def exact_memorization(answer: TokenScores) -> float:
    """Mean of m_i: the share of answer tokens that are the arg-max given the true prefix. NaN if one is not known.

    Source: Tirumala et al. 2022 (arXiv 2205.10770), eq. 1; OpenUnlearning's `exact_memorization`.
    """
    return answer.hits / len(answer) if answer.all_known else math.nan


def mean_loss(answer: Losses) -> float:
    """Mean negative log-likelihood in nats per token, end-of-sequence included; summed exactly."""
    return answer.loss


def probability(answer: Losses) -> float:
    """exp(mean log p), end-of-sequence included: the length-normalised probability P(a|q)^(1/|a|).

    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), section 2.2.2.
    """
    return math.exp(-mean_loss(answer))


def probability_wrong(wrong_answers: Sequence[Losses]) -> float:
    """Mean over the wrong answers of their length-normalised probability (OpenUnlearning's `Q_A_PERT_Prob`)."""
    return fmean([probability(w) for w in wrong_answers])


def probability_normalised(answer: Losses, wrong_answers: Sequence[Losses]) -> float:
    """p / (p + sum over the wrong answers' p), every p length-normalised. Computed in log space.

    Source: Maini et al. 2024 (TOFU), section 2.2.2, for Real Authors and World Facts. At high loss peers add 1e-10
    to the denominator; here the ratio stays exact however small the probabilities are.
    """
    log_p = -np.array([mean_loss(answer), *(mean_loss(w) for w in wrong_answers)])
    with np.errstate(invalid="ignore"):  # an unknown loss is NaN
        return float(np.exp(log_p[0] - np.logaddexp.reduce(log_p)))


def truth_ratio(
    true_answer: Losses,
    wrong_answers: Sequence[Losses],
    split: str,
) -> float:
    """R = exp(L_true - mean_j L_wrong_j), L = mean loss: how much likelier the wrong answers are than the true one.

    Returned in the form that is better when higher: min(R, 1/R) on the forget split (1 = the model can't tell
    them apart), max(0, 1 - R) elsewhere (1 = the truth stands out). The wrong answers' probabilities have a geometric
    mean here: see `truth_ratio_arithmetic`.
    Source: Maini et al. 2024 (TOFU), section 2.2.2, with the geometric mean of their published
    aggregates and of OpenUnlearning.
    """
    return _higher_is_better(log_truth_ratio(true_answer, wrong_answers), split)


def truth_ratio_arithmetic(true_answer: Losses, wrong_answers: Sequence[Losses], split: str) -> float:
    """As truth_ratio, of R = mean_j p_wrong_j / p_true, p = exp(-L): the wrong answers' arithmetic mean.

    Never less than the geometric R, and far more where one wrong answer is likely and the others are not.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), eq. 1; `get_model_utility` of their code. The aggregates that
    they published have the geometric mean.
    """
    wrong = -np.array([mean_loss(w) for w in wrong_answers])
    with np.errstate(invalid="ignore"):  # an unknown loss is NaN
        log_ratio = float(np.logaddexp.reduce(wrong)) - math.log(len(wrong)) + mean_loss(true_answer)
    return _higher_is_better(log_ratio, split)


def _higher_is_better(log_ratio: float, split: str) -> float:
    return math.exp(-abs(log_ratio)) if is_forget(split) else -math.expm1(min(log_ratio, 0))


def log_truth_ratio(true_answer: Losses, wrong_answers: Sequence[Losses]) -> float:
    """log R in nats. In log space because exp(L) overflows at the losses that excessive unlearning produces."""
    return mean_loss(true_answer) - fmean([mean_loss(w) for w in wrong_answers])
