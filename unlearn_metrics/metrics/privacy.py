"""Membership attacks: does the model betray that it was trained on a text? Pure functions.

An attack gives every document a score, higher = less likely a member; an AUC compares forget with holdout documents.
End-of-sequence is left out, except where a peer's convention differs.
"""

from __future__ import annotations

import zlib as _zlib

import numpy as np

from unlearn_metrics.documents import Floats, Losses, MeanLoss, TokenScores  # noqa: F401 (MeanLoss: in examples)


def loss(answer: Losses) -> float:
    """Mean loss in nats per token, end-of-sequence included as in OpenUnlearning.

    >>> loss(MeanLoss(1.5))
    1.5

    Source: Yeom et al. 2018 (arXiv 1709.01604).
    """
    return answer.loss


def zlib(answer: Losses, reference: str) -> float:
    """Mean loss over the bytes of the zlib-compressed answer text, with the space before it (OpenUnlearning).

    >>> zlib(MeanLoss(1.5), "Oslo") == 1.5 / len(_zlib.compress(b" Oslo"))
    True

    Source: Carlini et al. 2021 (arXiv 2012.07805), the Zlib attack.
    """
    return answer.loss / len(_zlib.compress(f" {reference}".encode()))


def _lowest(values: Floats, k: float) -> float:
    """Minus the mean of the lowest max(1, int(k n)) of n values; NaN if one is NaN, which sorting would hide."""
    if np.isnan(values).any():
        return float("nan")
    count = max(1, int(k * len(values)))
    return float(-np.sort(values.astype(np.float64))[:count].mean())


def min_k(answer: TokenScores, k: float = 0.4) -> float:
    """Minus the mean of the lowest share k of the token log-probabilities.

    >>> min_k(TokenScores.from_lists([[7] * 6, [7] * 6, [-5, -1, -3, -2, -4, -9], *[[-1.0] * 6] * 2]))
    4.5

    Source: Shi et al. 2023 (arXiv 2310.16789).
    """
    return _lowest(answer.logprob[:-1], k)


def min_k_plus_plus(answer: TokenScores, k: float = 0.4) -> float:
    """As min_k, of (log p - mean) / deviation at each position, the variance at least 1e-6 (OpenUnlearning).

    >>> min_k_plus_plus(TokenScores.from_lists([[7] * 3, [7] * 3, [-5, -1, -9], [-1.0] * 3, [4.0] * 3]))
    2.0

    Source: Zhang et al. 2024 (arXiv 2404.02936), eq. 4.
    """
    deviation = np.sqrt(np.maximum(answer.variance[:-1].astype(np.float64), 1e-6))
    return _lowest((answer.logprob[:-1] - answer.mean[:-1]) / deviation, k)


def gradnorm(gradient: float) -> float:
    """Mean over the model's parameter tensors of the L2 norm of the gradient of the mean loss, end-of-sequence not
    counted (OpenUnlearning's `mia_gradnorm`, p = 2).

    gradient: that, from a backward pass (backends/gradient.py).

    >>> gradnorm(2.5)
    2.5

    Source: Wang et al. 2024 (Pandora's White-Box, arXiv
    2402.17012).
    """
    return gradient


def weighted_aucs(forget: Floats, holdout: Floats, forget_weights: Floats, holdout_weights: Floats) -> Floats:
    """The probability that a holdout document scores higher than a forget document, ties half (Mann-Whitney U / mn).

    forget: [m], holdout: [n]; weights, how often each is drawn: [resamples, m], [resamples, n]. Returns [resamples].
    0.5 = no leak, 1 = every forget document looks more like a member.

    >>> weighted_aucs(np.array([1.0, 2.0]), np.array([2.0, 3.0]), np.ones((1, 2)), np.ones((1, 2)))
    array([0.875])
    """
    values = np.concatenate([forget, holdout])
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # of equal values
    padded = np.zeros((len(forget_weights), len(values)))

    def at_each(weights: Floats, start: int) -> Floats:
        """[resamples, distinct values]: how often each is drawn, of one side."""
        padded[:] = 0
        padded[:, start : start + weights.shape[1]] = weights
        return np.add.reduceat(padded[:, order], first, axis=1)

    mine, theirs = at_each(forget_weights, 0), at_each(holdout_weights, len(forget))
    wins = (theirs * (mine.cumsum(1) - mine / 2)).sum(1)
    return np.asarray(wins / (holdout_weights.sum(1) * forget_weights.sum(1)))
