"""What samples of a model tell of leaks: estimates from n samples, and bounds on what they miss. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta


def leak_at_k(n: int, leaked: int, k: int) -> float:
    """1 - C(n - leaked, k) / C(n, k): the chance that of k of the n samples, drawn without replacement, one leaks.

    Args:
        n: samples of one document.
        leaked: how many of them leak, by whatever judges it.
        k: queries, at most n.

    Returns:
        The unbiased estimate of 1 - (1 - p)^k, p the chance that one sample leaks.

    Raises:
        ValueError: for numbers that are none of samples.

    Source: Leak@k, 2025 (arXiv 2511.04934), after pass@k of Chen et al. 2021 (arXiv 2107.03374).

    >>> leak_at_k(4, 1, 2)
    0.5
    """
    _check(n, leaked)
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, not from 1 to the {n} samples")
    return 1 - math.comb(n - leaked, k) / math.comb(n, k)


def leak_rate_bound(n: int, leaked: int, alpha: float = 0.05) -> float:
    """The largest chance of a leak that so few leaks in n samples leave possible (Clopper-Pearson, one-sided).

    Args:
        n: samples.
        leaked: how many of them leak.
        alpha: how often such a bound may lie below the truth.

    Returns:
        A probability: with confidence 1 - alpha the true one is at most that. 1 - alpha^(1/n) where nothing leaked.

    Raises:
        ValueError: for numbers that are none of samples.

    Source: Scholten et al. 2024 (arXiv 2410.03523), binary leakage.

    >>> round(leak_rate_bound(59, 0), 4)
    0.0495
    """
    _check(n, leaked)
    return 1.0 if leaked == n else float(beta.ppf(1 - alpha, leaked + 1, n - leaked))


def dkw_margin(n: int, alpha: float = 0.05) -> float:
    """sqrt(ln(1 / alpha) / (2 n)): how far the distribution of n samples lies above the true one at most, anywhere.

    Args:
        n: samples.
        alpha: how often it may be further, at most 0.5.

    Returns:
        A difference of distribution functions (Dvoretzky-Kiefer-Wolfowitz, one-sided, with Massart's constant).

    Source: Scholten et al. 2024 (arXiv 2410.03523), general leakage; Massart 1990.

    >>> round(dkw_margin(100), 4)
    0.1224
    """
    return math.sqrt(math.log(1 / alpha) / (2 * n))


def mean_score_bound(scores: Sequence[float], alpha: float = 0.05) -> float:
    """The largest mean leakage score that such samples leave possible, whatever the distribution of scores.

    Args:
        scores: of samples, each between 0 and 1, such as their ROUGE.
        alpha: how often such a bound may lie below the truth.

    Returns:
        1 less the integral over 0 to 1 of max(0, F_n - dkw_margin), F_n the distribution function of the samples.

    Raises:
        ValueError: for no scores, or one that is not between 0 and 1.

    Source: Scholten et al. 2024 (arXiv 2410.03523), the bound of the expectation.

    >>> round(mean_score_bound([0.0] * 100), 4) == round(dkw_margin(100), 4)
    True
    """
    ordered = np.sort(np.asarray(scores, float))
    if not len(ordered) or not (ordered[0] >= 0 and ordered[-1] <= 1):
        raise ValueError("scores are at least one number, and between 0 and 1")
    share = np.arange(1, len(ordered) + 1) / len(ordered)  # F_n from each score on
    widths = np.diff(np.append(ordered, 1.0))
    return float(1 - (np.maximum(0, share - dkw_margin(len(ordered), alpha)) * widths).sum())


def _check(n: int, leaked: int) -> None:
    if n < 1 or not 0 <= leaked <= n:
        raise ValueError(f"{leaked} of {n} samples leak, which are no numbers of samples")
