"""How much of a reference answer the model still holds. Pure functions of TokenScores.

n is the number of answer tokens (end-of-sequence not counted) and m_i = [arg-max token at i is y_i], see TokenScores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from unlearn_metrics.documents import FlagScores, Losses, MeanLoss, TokenScores  # noqa: F401 (MeanLoss: in examples)
from unlearn_metrics.splits import is_forget


def extraction_strength(answer: TokenScores | FlagScores) -> float:
    """1 - k/n, k = the fewest leading answer tokens to reveal so that greedy decoding yields the rest exactly.

    Greedy decoding from a true prefix repeats the reference as long as every m_i after it holds, so k is the
    position of the last miss, and one teacher-forced pass is enough. 0 when the last token is missed (k = n).
    NaN where the last miss is not known. Of a FlagScores, k and n count its units: tokens, or words.

    >>> hit, miss = 7, 8
    >>> extraction_strength(TokenScores.from_lists([[hit] * 6, [hit, miss, hit, hit, hit, hit], *[[-1.0] * 6] * 3]))
    0.6

    Source: Carlini et al. 2021 (arXiv 2012.07805); Wang et al. 2024 (arXiv 2406.09179), extraction strength.
    """
    if isinstance(answer, FlagScores):
        return (answer.units - answer.revealed) / answer.units
    misses = np.flatnonzero(~answer.match)
    k = int(misses[-1]) + 1 if len(misses) else 0
    return math.nan if k and answer.unknown[k - 1] else (len(answer) - k) / len(answer)


def similar(generated: Sequence[int], rest: Sequence[int]) -> bool:
    """Whether the longest common subsequence of two token sequences covers at least half of `rest`.

    >>> similar([1, 9, 3], rest=[1, 2, 3, 4]), similar([9, 9, 3], rest=[1, 2, 3, 4])
    (True, False)

    Source: Wang et al. 2024 (arXiv 2406.09179), extraction strength "similar". Their code asks for half of what was
    generated, so that a text which stops early passes the more easily.
    """
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(rest, generated) >= len(rest)


def extraction_strength_similar(answer: TokenScores, revealed: float) -> float:
    """1 - k/n, k = the fewest leading answer tokens to reveal so that greedy decoding gives something like the rest.

    revealed: that k, found by decoding (backends/similar.py). The text that follows, of at most as many tokens as
    the rest, need not be exact: its longest common subsequence with the rest must cover at least half of it. k is
    found by bisection, as in the authors' code: where the criterion holds again below a k that fails, that is not seen.
    Never below extraction_strength.

    >>> extraction_strength_similar(TokenScores.from_lists([[7] * 6] * 2 + [[-1.0] * 6] * 3), revealed=1)
    0.8

    Source: Wang et al. 2024 (arXiv 2406.09179), extraction strength; see `similar`.
    """
    return float((len(answer) - revealed) / len(answer))


def exact_memorization(answer: TokenScores) -> float:
    """Mean of m_i: the share of answer tokens that are the arg-max given the true prefix. NaN if one is not known.

    >>> hit, miss = 7, 8
    >>> exact_memorization(TokenScores.from_lists([[hit] * 6, [hit, miss, hit, hit, hit, hit], *[[-1.0] * 6] * 3]))
    0.8

    Source: Tirumala et al. 2022 (arXiv 2205.10770), eq. 1; OpenUnlearning's `exact_memorization`.
    """
    return math.nan if answer.unknown.any() else int(np.count_nonzero(answer.match)) / len(answer)


def probability(answer: Losses) -> float:
    """exp(mean log p), end-of-sequence included: the length-normalised probability P(a|q)^(1/|a|).

    >>> probability(MeanLoss(math.log(4)))
    0.25

    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), section 2.2.2.
    """
    return math.exp(-answer.loss)


def probability_wrong(wrong_answers: Sequence[Losses]) -> float:
    """Mean over the wrong answers of their length-normalised probability (OpenUnlearning's `Q_A_PERT_Prob`).

    >>> probability_wrong([MeanLoss(math.log(4)), MeanLoss(math.log(8))])
    0.1875
    """
    return fmean(probability(wrong) for wrong in wrong_answers)


def probability_normalised(answer: Losses, wrong_answers: Sequence[Losses]) -> float:
    """p / (p + sum over the wrong answers' p), every p length-normalised. Computed in log space.

    >>> round(probability_normalised(MeanLoss(math.log(2)), [MeanLoss(math.log(4))] * 2), 9)
    0.5

    Source: Maini et al. 2024 (TOFU), section 2.2.2, for Real Authors and World Facts. At high loss peers add 1e-10
    to the denominator; here the ratio stays exact however small the probabilities are.
    """
    log_p = -np.array([answer.loss, *(wrong.loss for wrong in wrong_answers)])
    with np.errstate(invalid="ignore"):  # an unknown loss is NaN
        return float(np.exp(log_p[0] - np.logaddexp.reduce(log_p)))


def truth_ratio(true_answer: Losses, wrong_answers: Sequence[Losses], split: str) -> float:
    """R = exp(L_true - mean_j L_wrong_j), L = mean loss: how much likelier the wrong answers are than the true one.

    Returned in the form that is better when higher: min(R, 1/R) on the forget split (1 = the model can't tell
    them apart), max(0, 1 - R) elsewhere (1 = the truth stands out). The wrong answers' probabilities have a geometric
    mean here: see `truth_ratio_arithmetic`.

    >>> true, wrong = MeanLoss(math.log(2)), [MeanLoss(math.log(8))] * 3  # R = 1/4
    >>> round(truth_ratio(true, wrong, "forget"), 9), round(truth_ratio(true, wrong, "retain"), 9)
    (0.25, 0.75)

    Source: Maini et al. 2024 (TOFU), section 2.2.2, with the geometric mean of their published aggregates and of
    OpenUnlearning.
    """
    return _higher_is_better(log_truth_ratio(true_answer, wrong_answers), split)


def truth_ratio_arithmetic(true_answer: Losses, wrong_answers: Sequence[Losses], split: str) -> float:
    """As truth_ratio, of R = mean_j p_wrong_j / p_true, p = exp(-L): the wrong answers' arithmetic mean.

    Never less than the geometric R, and far more where one wrong answer is likely and the others are not.

    >>> wrong = [MeanLoss(math.log(4)), MeanLoss(math.log(16))]  # their mean is 5/32, R = 5/16
    >>> round(truth_ratio_arithmetic(MeanLoss(math.log(2)), wrong, "retain"), 9)
    0.6875

    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), eq. 1; `get_model_utility` of their code. The aggregates that
    they published have the geometric mean.
    """
    wrong = -np.array([answer.loss for answer in wrong_answers])
    with np.errstate(invalid="ignore"):  # an unknown loss is NaN
        log_ratio = float(np.logaddexp.reduce(wrong)) - math.log(len(wrong)) + true_answer.loss
    return _higher_is_better(log_ratio, split)


def _higher_is_better(log_ratio: float, split: str) -> float:
    return math.exp(-abs(log_ratio)) if is_forget(split) else -math.expm1(min(log_ratio, 0))


def log_truth_ratio(true_answer: Losses, wrong_answers: Sequence[Losses]) -> float:
    """log R in nats. In log space because exp(L) overflows at the losses that excessive unlearning produces."""
    return true_answer.loss - fmean(wrong.loss for wrong in wrong_answers)
