"""Estimates from samples: by hand, by enumeration, and how often bounds hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from unlearn_metrics.metrics.sampled import dkw_margin, leak_at_k, leak_rate_bound, mean_score_bound


@pytest.mark.parametrize("n", range(1, 7))
def test_leak_at_k_is_the_share_of_subsets_with_a_leak(n):
    for leaked in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * leaked + [False] * (n - leaked), k))
            share = sum(map(any, subsets)) / len(subsets)
            assert leak_at_k(n, leaked, k) == pytest.approx(share, abs=1e-12)


@given(st.integers(1, 40), st.floats(0, 1))
def test_leak_at_k_is_unbiased(n, p):
    """Its mean over binomial numbers of leaks is 1 - (1 - p)^k."""
    k = (n + 1) // 2
    chances = [math.comb(n, leaked) * p**leaked * (1 - p) ** (n - leaked) for leaked in range(n + 1)]
    mean = math.fsum(chance * leak_at_k(n, leaked, k) for leaked, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


def test_bound_of_the_rate():
    assert leak_rate_bound(10, 10) == 1
    assert leak_rate_bound(100, 0, 0.01) == pytest.approx(1 - 0.01 ** (1 / 100))
    bound = leak_rate_bound(20, 3, 0.1)
    assert binom.cdf(3, 20, bound) == pytest.approx(0.1)  # so few leaks are just that improbable


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_of_the_rate_holds_as_often_as_it_says(n, p, alpha):
    missed = math.fsum(binom.pmf(c, n, p) for c in range(n + 1) if leak_rate_bound(n, c, alpha) < p)
    assert missed <= alpha + 1e-9


def test_bound_of_the_mean_by_hand():
    """Two of four scores are 0, two 1/2: F_n is 1/2 from 0 on and 1 from 1/2 on, each less eps."""
    eps = dkw_margin(4, 0.5)
    assert eps == pytest.approx(math.sqrt(math.log(2) / 8))
    assert mean_score_bound([0.5, 0, 0.5, 0], 0.5) == pytest.approx(1 - ((0.5 - eps) / 2 + (1 - eps) / 2))
    assert mean_score_bound([1.0] * 5) == 1
    assert mean_score_bound([0.3], 0.05) == 1  # one sample tells nothing at this confidence: eps is 1.22


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_bound_is_above_the_mean_and_falls_with_more_samples(scores):
    assert np.mean(scores) - 1e-9 <= mean_score_bound(scores) <= 1 + 1e-9
    assert mean_score_bound(scores * 4) <= mean_score_bound(scores) + 1e-9


def test_the_bound_of_the_mean_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.beta(0.3, 1.2, (2_000, 25))
    missed = np.mean([mean_score_bound(row, 0.2) < 0.2 for row in draws])  # the mean of that distribution
    assert missed <= 0.2


@pytest.mark.parametrize(("n", "leaked", "k"), [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_what_is_no_number_of_samples_is_refused(n, leaked, k):
    with pytest.raises(ValueError, match="samples"):
        leak_at_k(n, leaked, k)


@pytest.mark.parametrize("scores", [[], [1.5], [-0.1], [float("nan")]])
def test_what_is_no_score_is_refused(scores):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_score_bound(scores)
