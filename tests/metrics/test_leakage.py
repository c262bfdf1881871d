"""Leakage in closed form: by hand, by really sampling, and what must always hold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from unlearn_metrics.backends import hf
from unlearn_metrics.documents import SAMPLINGS, TokenScores
from unlearn_metrics.metrics import METRICS
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


# --- other settings of sampling


def test_a_setting_reads_its_own_log_probabilities():
    plain, cooler = scores(0.5, 0.5), np.log(np.array([0.8, 0.8, 1.0]))
    known = replace(plain, temp80=cooler, top40=np.array([-math.inf, 0.0, 0.0]))
    assert (leak_at(known, 1), leak_at(known, 1, "temp80")) == pytest.approx((0.25, 0.64))
    assert sampled_extraction_strength(known, 1) == 0.5
    assert sampled_extraction_strength(known, 1, sampling="temp80") == 1
    # a token that is never drawn: no number of queries gives the answer, unless it is revealed
    assert (leak_at(known, 1_000_000, "top40"), queries_to_extract(known, 0.5, "top40")) == (0, math.inf)
    assert (expected_prefix(known, "top40"), sampled_extraction_strength(known, 1, sampling="top40")) == (0, 0.5)
    assert math.isnan(leak_at(known, 1, "nucleus90"))  # the backend did not return it
    named = {name: METRICS[name]({"answer": known}) for name in ("leak_at_1_temp80", "leak_at_1000_top40")}
    assert named == pytest.approx({"leak_at_1_temp80": 0.64, "leak_at_1000_top40": 0})
    assert math.isnan(METRICS["sampled_extraction_strength_1000_nucleus90"]({"answer": known}))


WARPERS = {
    "temp80": TemperatureLogitsWarper(0.8),
    "top40": TopKLogitsWarper(40),
    "nucleus90": TopPLogitsWarper(0.9),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("vocabulary", [7, 500])
def test_log_probabilities_are_those_that_transformers_samples_from(name, spread, vocabulary):
    """Against transformers' own warpers, for every token as the target: flat, peaked and small vocabularies."""
    torch.manual_seed(vocabulary)
    logits = (torch.randn(4, vocabulary) * spread).repeat_interleave(vocabulary, 0)
    target = torch.arange(vocabulary).repeat(4)
    found = hf.reduce(logits.clone(), target)[4 + list(SAMPLINGS).index(name)]
    warped = WARPERS[name](None, logits.double())  # type: ignore[arg-type]
    expected = warped.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    if (
        not spread
    ):  # where all are alike, transformers' nucleus is of whichever come first; here equal ones are together
        expected = torch.full_like(expected, -math.log(vocabulary))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_likeliest_are_found_by_blocks():
    torch.manual_seed(0)
    logits = torch.randn(3, 64 * 200)
    logits[0, 64 * 7 : 64 * 7 + 40] = 9.0  # all in one block
    assert torch.equal(hf.likeliest_of(logits, 40), logits.sort(-1, descending=True).values[:, :40])


def test_other_settings_against_really_sampling():
    """A model of 90 tokens drawn from as transformers does, 200,000 times: how often two tokens are the answer."""
    rng = np.random.default_rng(0)
    logits, n = torch.tensor(rng.normal(0, 1.5, (90, 90))), 200_000
    first = int(logits[0].topk(2).indices[1])  # likely enough to be seen
    answer = [first, int(logits[first].topk(3).indices[2])]
    rows = torch.stack([logits[0], logits[answer[0]], logits[answer[1]]])
    reduced = hf.reduce(rows.clone(), torch.tensor([*answer, 0]))
    known = TokenScores(np.array([*answer, 0]), *(values.numpy() for values in reduced))
    for name, warper in WARPERS.items():
        p = [warper(None, row[None]).softmax(-1)[0].numpy() for row in rows[:2]]  # type: ignore[arg-type]
        drawn = [rng.choice(90, n, p=each / each.sum()) for each in p]
        hits = [(draw == token) for draw, token in zip(drawn, answer, strict=True)]
        share = (hits[0] & hits[1]).mean()
        assert share == pytest.approx(leak_at(known, 1, name), abs=5 * math.sqrt(share / n))
        assert (hits[0].mean() + share) / 2 == pytest.approx(expected_prefix(known, name), abs=0.006)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=60), st.integers(0, 59))
def test_a_set_only_raises_what_it_holds(logits, token):
    target = torch.tensor([token % len(logits)])
    _, logprob, _, _, *drawn = (float(v) for v in hf.reduce(torch.tensor([logits]), target))
    cooler, *sets = drawn
    for value in sets:
        assert value == -math.inf or value >= logprob - 1e-4
    if target.item() == int(np.argmax(logits)):
        assert cooler >= logprob - 1e-5
        assert all(value > -math.inf for value in sets)
