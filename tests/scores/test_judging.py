"""Judging metrics: by hand, against loops and scipy, against published figures of 152 real models."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from tests import SHARED
from unlearn_metrics.scores import agreement, composites, faithfulness, judging, stability
from unlearn_metrics.scores.judging import Readings, differences, judge

UDS = SHARED / "reference" / "uds"
needs_uds = pytest.mark.skipif(not UDS.is_dir(), reason="needs shared/reference/uds beside the project")
pools = st.lists(st.integers(0, 9).map(float), min_size=2, max_size=12).map(np.array)

# --- faithfulness


@given(pools, pools)
def test_auc_counts_pairs_and_turns_with_the_sign(knows, others):
    pairs = [(p > n) + (p == n) / 2 for p in knows for n in others]
    assert faithfulness.auc(knows, others) == pytest.approx(sum(pairs) / len(pairs))
    assert faithfulness.auc(-knows, -others) == pytest.approx(1 - faithfulness.auc(knows, others))
    assert faithfulness.delong(knows[None], others[None])[0][0] == pytest.approx(faithfulness.auc(knows, others))


def test_auc_of_what_is_not_known_is_not_known():
    assert math.isnan(faithfulness.auc(np.array([1.0, np.nan]), np.array([0.0])))
    assert math.isnan(faithfulness.auc(np.array([]), np.array([0.0])))


def test_delong_is_the_jackknife_of_the_pools():
    """Its covariance is that of leaving one model out, (n - 1) / n of the jackknife's sum of squares in each pool."""
    rng = np.random.default_rng(0)
    knows, others = rng.normal(1, 1, (2, 9)), rng.normal(0, 1, (2, 7))
    _, spread = faithfulness.delong(knows, others)
    expected = np.zeros((2, 2))
    for pool, n in ((0, 9), (1, 7)):
        left_out = []
        for i in range(n):
            parts = [knows, others]
            parts[pool] = np.delete(parts[pool], i, axis=1)
            left_out.append([faithfulness.auc(p, q) for p, q in zip(*parts, strict=True)])
        centred = np.array(left_out) - np.mean(left_out, axis=0)
        expected += (n - 1) / n * centred.T @ centred
    assert spread == pytest.approx(expected)


def test_a_difference_by_hand_and_where_none_can_show():
    aucs, spread = np.array([0.9, 0.8]), np.array([[0.0025, 0.0005], [0.0005, 0.0025]])
    gap, low, high, p = faithfulness.difference(aucs, spread, 0, 1)
    assert (gap, low, high) == pytest.approx(
        (0.1, 0.1 - 1.959964 * math.sqrt(0.004), 0.1 + 1.959964 * math.sqrt(0.004))
    )
    assert p == pytest.approx(2 * reference.norm.sf(0.1 / math.sqrt(0.004)))
    perfect = faithfulness.delong(np.array([[2.0, 3], [4, 5]]), np.array([[0.0, 1], [0, 1]]))
    assert all(map(math.isnan, faithfulness.difference(*perfect, 0, 1)[1:]))


def test_score_interval_has_a_width_at_the_ends_and_holds_the_value():
    low, high = faithfulness.score_interval(1.0, 20, 20)
    assert high == 1
    assert 0.8 < low < 0.95
    # the end is the AUC whose own variance puts what was seen 1.96 deviations away (Hanley & McNeil)
    share = (1 - low) / (2 - low) + low / (1 + low)
    assert (1 - low) ** 2 == pytest.approx(1.959964**2 * low * (1 - low) * (1 + 19 * share) / 400, rel=1e-5)
    assert faithfulness.score_interval(0.0, 20, 20) == pytest.approx((0, 1 - low))
    assert faithfulness.score_interval(0.3, 8, 5)[0] < 0.3 < faithfulness.score_interval(0.3, 8, 5)[1]


@given(pools, pools)
def test_no_other_cut_gets_more_right(knows, others):
    cut, right = faithfulness.threshold(knows, others)
    if math.isnan(cut):
        assert len({*knows, *others}) == 1
        return
    values = sorted({*knows, *others})
    cuts = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    shares = [(sum(knows > c) + sum(others <= c)) / (len(knows) + len(others)) for c in cuts]
    assert (cut, right) == (cuts[shares.index(max(shares))], pytest.approx(max(shares)))


@given(pools, pools, st.integers(0, 3))
def test_the_threshold_of_a_draw_is_that_of_the_models_drawn(knows, others, seed):
    """The vectorized thresholds of draws against the plain function on copies."""
    rng = np.random.default_rng(seed)
    counts = [rng.integers(0, 3, (5, len(pool))).astype(float) for pool in (knows, others)]
    mine = judging._cuts(knows, others, *counts)
    for row in range(5):
        drawn = [np.repeat(pool, c[row].astype(int)) for pool, c in zip((knows, others), counts, strict=True)]
        assert mine[row] == pytest.approx(faithfulness.threshold(*drawn)[0], nan_ok=True)


# --- stability


@pytest.mark.parametrize(
    ("gain", "floor", "r", "symmetric"),
    [
        (0.4, 0.2, 0.5, 2 / 3),
        (0.1, 0.2, 1, 2 / 3),
        (-0.1, 0.2, 0, 0),
        (0.0, 0.2, 1, 0),
        (0.0, 0.0, 1, 1),
        (0.3, 0.3, 1, 1),
    ],
)
def test_relearning_by_hand(gain, floor, r, symmetric):
    assert stability.relearning(np.array([gain]), floor).tolist() == pytest.approx([r])
    assert stability.alike(np.array([gain]), floor).tolist() == pytest.approx([symmetric])


def test_relearning_of_no_gain_against_a_loss_is_not_defined():
    assert np.isnan(stability.relearning(np.array([0.0]), -0.1)).all()


@pytest.mark.parametrize(
    ("before", "after", "q"),
    [(0.1, 0.4, 0.25), (0.4, 0.1, 1), (0, 0.2, 0), (0, 0, 1), (0.2, 0, 1), (-0.1, 0.2, math.nan)],
)
def test_quantization_by_hand(before, after, q):
    assert stability.quantization(np.array([before]), np.array([after])) == pytest.approx(q, nan_ok=True)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_alike_is_symmetric_and_bounded(a, b):
    one = stability.alike(np.array([a]), np.array([b]))[0]
    assert one == stability.alike(np.array([b]), np.array([a]))[0]
    assert 0 <= one <= 1
    assert stability.alike(np.array([a]), np.array([a]))[0] == 1


# --- agreement


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=9))
def test_correlations_are_scipys_and_weights_are_copies(pairs):
    x, y = np.array(pairs, float).T
    weights = np.random.default_rng(0).integers(0, 3, (4, len(x))).astype(float)
    for fn, theirs in ((agreement.pearson, reference.pearsonr), (agreement.kendall, reference.kendalltau)):
        for row, mine in zip(weights, fn(x, y, np.maximum(weights, 1e-300)), strict=True):
            copies = np.repeat(np.arange(len(x)), row.astype(int))
            if len({*x[copies]}) > 1 and len({*y[copies]}) > 1:
                assert mine == pytest.approx(theirs(x[copies], y[copies]).statistic, abs=1e-9)


def test_agreement_says_why_there_is_none():
    few = agreement.agreement(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), "kendall", 0)
    assert (few.value, few.low) == (1, None)
    assert "too few" in str(few.why)
    flat = agreement.agreement(np.ones(9), np.arange(9.0), "pearson", 0)
    assert (flat.value, flat.why) == (None, "a value is the same for all models")
    assert agreement.agreement(np.array([np.nan, 1]), np.ones(2), "pearson", 0).why == "1 model has both values"


# --- all together


def readings(rng: np.random.Generator, **more: Any) -> Readings:
    before = rng.uniform(0, 0.3, 12)
    made = {
        "sign": 1,
        "knows": rng.normal(1, 0.4, 20),
        "others": rng.normal(0, 0.4, 20),
        "unlearned": before,
        "useful": np.arange(12) > 1,
        "attacked": {"relearn": before + 0.4, "nf4": before * 1.25},
        "retain_only": {"before": 0.1, "relearn": 0.3},
        "controlled": before[::-1].copy(),
    }
    return Readings(**(made | more))


def test_a_judgement_by_hand():
    """Gains of 0.4 against 0.2: R = 1/2, symmetric 2/3; a rise by a quarter: Q = 4/5, symmetric 8/9."""
    found = judge(readings(np.random.default_rng(0)))
    assert found.n == (20, 20, 10)  # two of the unlearned are of no use
    assert found.stability["relearn"].value == pytest.approx(0.5)
    assert found.stability["nf4"].value == pytest.approx(0.8)
    assert found.robustness.value == pytest.approx(2 / (1 / 0.5 + 1 / 0.8))
    area = found.faithfulness.value
    assert found.overall.value == pytest.approx(2 / (1 / area + 1 / found.robustness.value))
    assert found.robustness_symmetric.value == pytest.approx(2 / (3 / 2 + 9 / 8))
    assert found.order["relearn"].value == found.order["nf4"].value == 1
    assert found.order["under control"].value == pytest.approx(
        reference.kendalltau(*[r := np.random.default_rng(0).uniform(0, 0.3, 12), r[::-1]]).statistic
    )
    assert found.overall.low < found.overall.value < found.overall.high
    # all told apart: resampled pools are told apart too, but the interval is no narrower for it
    apart = judge(readings(np.random.default_rng(0), knows=np.linspace(2, 3, 20), others=np.linspace(0, 1, 20)))
    assert apart.faithfulness.value == 1
    assert apart.overall.low < 2 / (1 / apart.faithfulness.low + 1 / apart.robustness.value) + 1e-3


def test_a_metric_that_is_low_for_knowledge_is_judged_as_its_mirror():
    rng = np.random.default_rng(1)
    plain = readings(rng)
    turned = {name: -getattr(plain, name) for name in ("knows", "others", "unlearned", "controlled")}
    attacked = {name: -values for name, values in plain.attacked.items()}
    mirror = readings(
        rng, **turned, sign=-1, attacked=attacked, retain_only={k: -v for k, v in plain.retain_only.items()}
    )
    one, other = judge(plain), judge(mirror)
    assert one.faithfulness == other.faithfulness
    assert one.threshold.value == -other.threshold.value
    assert one.stability["relearn"] == other.stability["relearn"]
    assert one.symmetric == other.symmetric
    assert other.stability["nf4"].value is None  # a ratio of negative values says nothing
    # losses: down by a fifth under the attack, which is knowledge that comes back
    losses = readings(rng, sign=-1, knows=np.full(9, 0.1), others=np.full(9, 2.0), unlearned=np.full(12, 3.0))
    assert judge(losses.__class__(**vars(losses) | {"attacked": {"nf4": np.full(12, 2.4)}})).stability[
        "nf4"
    ].value == pytest.approx(0.8)


def test_what_cannot_be_said_is_none_with_its_reason():
    alone = judge(Readings(1, np.array([1.0, 2, np.nan]), np.array([0.0, 0.5])))
    assert alone.n == (2, 2, 0)
    assert alone.faithfulness.value == 1
    assert (alone.robustness.value, alone.robustness.why) == (None, "no attack")
    assert alone.threshold.low is None
    nobody = judge(readings(np.random.default_rng(0), unlearned=np.full(12, 9.0)))  # all of them still know
    assert (nobody.robustness.value, nobody.robustness.why) == (None, "no unlearned model is counted")
    empty = judge(readings(np.random.default_rng(0), knows=np.full(20, np.nan)))
    assert (empty.faithfulness.value, empty.overall.value) == (None, None)
    flat = judge(Readings(1, np.ones(6), np.ones(6)))
    assert (flat.faithfulness.value, flat.threshold.value, flat.right) == (0.5, None, None)


def test_differences_are_corrected_by_holm():
    rng = np.random.default_rng(0)
    knows, others = rng.normal(1, 1, 30), rng.normal(0, 1, 30)
    metrics = {
        "base": Readings(1, knows, others),
        "worse": Readings(1, knows + rng.normal(0, 3, 30), others + rng.normal(0, 3, 30)),
        "mirror": Readings(-1, -knows, -others),
    }
    found = differences(metrics, "base")
    assert found.keys() == {"worse", "mirror"}
    assert (found["mirror"].value.value, found["mirror"].p) == (0, None)
    assert found["worse"].p == found["worse"].p_holm  # the only test
    assert found["worse"].value.value < 0


# --- published figures


@needs_uds
def test_the_published_robustness_follows_from_the_published_parts():
    """Every aggregate of UDS's meta-evaluation whose parts are given: 22 of 22, as near as four decimals can tell."""
    published = json.loads((UDS / "meta_eval.json").read_text())["robustness"]
    assert len(published) == 22
    for name, it in published.items():
        r, q, agg = (it[key] for key in ("relearning", "quantization", "agg"))
        low, high = (float(composites.harmonic(*np.array([[r + off], [q + off]]))[0]) for off in (-5e-5, 5e-5))
        assert low - 5.1e-5 <= agg <= high + 5.1e-5, name


@needs_uds
def test_composites_of_152_real_models():
    """memorization_score and model_utility as published, from the parts that are published."""
    models = json.loads((UDS / "method_results.json").read_text())["models"]
    assert len(models) == 152
    names = {
        "probability": "q_prob",
        "probability_normalised": "q_prob",
        "rouge": "q_rouge",
        "truth_ratio": "truth_ratio",
    }
    splits = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}
    memorized = dict(zip(composites.MEMORIZATION, ("es", "em", "paraprob"), strict=True))
    for it in models:

        def mean(split: str, metric: str, it: dict[str, Any] = it) -> np.ndarray:
            if split == "forget":
                return np.array([1 - it[f"one_minus_{memorized[metric]}"]])
            return np.array([it[f"{splits[split]}_{names[metric]}"]])

        truth = np.array([1 - it["one_minus_truth"]])
        model: Any = SimpleNamespace(mean=mean, log_ratios=lambda split: {}, average=lambda *_, truth=truth: truth)
        assert composites.model_utility(model)[0] == pytest.approx(it["model_utility"], abs=1e-10)
        assert composites.memorization_score(model)[0] == pytest.approx(it["mem"], abs=1e-10)
