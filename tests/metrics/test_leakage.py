"""Leakage in closed form: by hand, by really sampling, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_metrics.documents import TokenScores
from unlearn_metrics.metrics.leakage import (
    expected_prefix,
    extracted_within,
    leak_at,
    queries_to_extract,
    sampled_extraction_strength,
)

KS = (1, 10, 100, 1000, 10_000, 1_000_000)


def scores(*probabilities: float, logs: list[float] | None = None) -> TokenScores:
    """An answer whose tokens have these probabilities; the end-of-sequence token's has no say."""
    found = [math.log(p) for p in probabilities] if logs is None else logs
    n = len(found) + 1
    fields = np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32), np.array([*found, -50.0])
    return TokenScores(*fields, np.zeros(n), np.zeros(n))


def test_by_hand():
    answer = scores(0.5, 0.25, 0.8)  # p = 0.1
    assert leak_at(answer, 1) == pytest.approx(0.1)
    assert leak_at(answer, 10) == pytest.approx(1 - 0.9**10)
    assert queries_to_extract(answer, 0.5) == 7  # 0.9^6 = 0.531, 0.9^7 = 0.478
    assert (extracted_within(answer, 6, 0.5), extracted_within(answer, 7, 0.5)) == (0, 1)
    assert expected_prefix(answer) == pytest.approx((0.5 + 0.125 + 0.1) / 3)
    # with 1 sample and p 0.5 only the last token (0.8) can be left out: two of three are revealed
    assert sampled_extraction_strength(answer, 1) == pytest.approx(1 / 3)
    # with 3, 1 - (1 - 0.2)^3 = 0.488 is not enough, with 4 it is 0.590; with 7 nothing need be revealed
    assert sampled_extraction_strength(answer, 3) == pytest.approx(1 / 3)
    assert sampled_extraction_strength(answer, 4) == pytest.approx(2 / 3)
    assert sampled_extraction_strength(answer, 7) == 1


def test_degenerate_answers():
    certain, hopeless, unknown = scores(1.0, 1.0), scores(logs=[-1e5, -1.0]), scores(logs=[math.nan, -1.0])
    assert [leak_at(certain, 1), queries_to_extract(certain, 0.9), expected_prefix(certain)] == [1, 1, 1]
    assert sampled_extraction_strength(certain, 1) == 1
    assert (leak_at(hopeless, 1_000_000), queries_to_extract(hopeless, 0.5)) == (0, math.inf)
    assert sampled_extraction_strength(hopeless, 10) == 0.5
    assert sampled_extraction_strength(scores(0.5, logs=[-1.0, -1e5]), 1000) == 0
    values = [f(unknown, 1) for f in (leak_at, sampled_extraction_strength)]
    assert all(map(math.isnan, [*values, queries_to_extract(unknown, 0.5), extracted_within(unknown, 9, 0.5)]))


def test_a_tiny_probability_is_not_0():
    tiny = scores(logs=[math.log(1e-300)])
    assert leak_at(tiny, 1) == pytest.approx(1e-300)
    assert leak_at(tiny, 1_000_000) == pytest.approx(1e-294)
    assert queries_to_extract(tiny, 0.5) == pytest.approx(math.log(2) * 1e300)


def test_against_really_sampling():
    """A small model of three tokens, where each token's distribution depends on the one before."""
    rng = np.random.default_rng(0)
    model, answer, n = rng.dirichlet([1, 1, 1], size=3), [2, 0, 1, 1], 200_000
    known = scores(*(model[a][b] for a, b in zip([0, *answer], answer, strict=False)))

    def sample(given: int) -> np.ndarray:
        """[n, rest]: what the model says after the first tokens of the answer."""
        last, drawn = np.full(n, [0, *answer][given]), []
        for _ in answer[given:]:
            last = (rng.random(n)[:, None] > model[last].cumsum(1)).sum(1)
            drawn.append(last)
        return np.array(drawn).T

    whole = sample(0) == answer
    hits = whole.all(1)
    assert hits.mean() == pytest.approx(leak_at(known, 1), abs=4 * math.sqrt(0.25 / n))
    assert hits.reshape(-1, 10).any(1).mean() == pytest.approx(leak_at(known, 10), abs=0.015)
    assert whole.cumprod(1).mean() == pytest.approx(expected_prefix(known), abs=0.005)
    queries = 5
    by_sampling = next(
        k
        for k in range(len(answer) + 1)
        if k == len(answer) or (sample(k) == answer[k:]).all(1).reshape(-1, queries).any(1).mean() >= 0.5
    )
    assert sampled_extraction_strength(known, queries) == 1 - by_sampling / len(answer)


@given(st.lists(st.floats(-40, 0), min_size=1, max_size=12))
def test_what_must_always_hold(logs: list[float]):
    answer = scores(logs=logs)
    leaks = [leak_at(answer, k) for k in KS]
    assert leaks == sorted(leaks)
    assert all(0 <= leak <= 1 for leak in leaks)
    assert queries_to_extract(answer, 0.5) <= queries_to_extract(answer, 0.9)
    strengths = [sampled_extraction_strength(answer, n) for n in (1, 10, 100, 1000)]
    assert strengths == sorted(strengths)
    assert sampled_extraction_strength(answer, 10, 0.9) <= sampled_extraction_strength(answer, 10, 0.5)
    assert leaks[0] <= expected_prefix(answer) + 1e-12 <= 1 + 1e-9
    queries = queries_to_extract(answer, 0.5)
    if 1 < queries < 1e9:
        assert leak_at(answer, int(queries) - 1) < 0.5 + 1e-9
        assert leak_at(answer, int(queries)) >= 0.5 - 1e-9
