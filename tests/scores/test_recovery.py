"""What attacks bring back: by hand, against a twin with loops, and what holds of all data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from unlearn_metrics.record import Estimate, Recovery, Worst, attack_of, under
from unlearn_metrics.records.attacked import sentence
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.recovery import largest, of_metric, recoveries

CLUSTERS = np.repeat(np.arange(6), 2)


def documents(values, clusters=CLUSTERS):
    return [
        {"id": i, "cluster": int(c), "logged": {"share": v}}
        for i, (v, c) in enumerate(zip(values, clusters, strict=True))
    ]


def test_a_table_by_hand():
    """Two attacks on six clusters of two: one gives 0.3 to the unlearned model and 0.1 to the retain-only model."""
    zero = np.zeros(12)
    observed = {
        "unlearned": {"forget": documents(zero + 0.2)},
        "retain_only": {"forget": documents(zero + 0.1)},
        under("unlearned", "prefix"): {"forget": documents(zero + 0.5)},
        under("retain_only", "prefix"): {"forget": documents(zero + 0.2)},
        under("unlearned", "int4"): {"forget": documents(zero + 0.2)},
        under("retain_only", "int4"): {"forget": documents(zero + 0.1)},
        under("unlearned", "relearn"): {"forget": documents(zero + 0.4)},  # no retain-only model was fine-tuned again
    }
    found, worst = recoveries(observed, ["share", "absent"], seed=0)
    assert found.keys() == worst.keys() == {"unlearned"}
    of = found["unlearned"]["share"]
    assert found["unlearned"].keys() == {"share"}
    assert {name: it.value.value for name, it in of.items()} == pytest.approx(
        {"prefix": 0.3, "int4": 0, "relearn": 0.2}
    )
    assert of["prefix"].net.value == pytest.approx(0.2)
    assert (of["prefix"].net.low, of["prefix"].net.high) == pytest.approx((0.2, 0.2))
    assert of["int4"].net.value == 0
    assert of["relearn"].net is None
    # of 2^6 flips of signs, two are as far from 0; nothing is as far as nothing
    assert [of[name].p for name in ("prefix", "int4", "relearn")] == pytest.approx([2 / 64, 1, 2 / 64])
    assert [of[name].p_corrected for name in ("prefix", "int4", "relearn")] == pytest.approx([6 / 64, 1, 6 / 64])
    assert worst["unlearned"]["share"].attack == "prefix"
    assert worst["unlearned"]["share"].value == Estimate(0.5, 0.5, 0.5)
    assert (worst["unlearned"]["share"].net_attack, worst["unlearned"]["share"].net.value) == (
        "prefix",
        pytest.approx(0.2),
    )


def test_pairs_are_by_document_and_unknown_is_in_no_mean():
    before = documents([0.1, 0.2, math.nan, *[0.5] * 9])
    after = documents([0.3, math.nan, 0.9, *[0.6] * 9])[::-1]  # in another order
    observed = {"controlled": {"forget": before}, under("controlled", "int8"): {"forget": after}}
    found, worst = recoveries(observed, ["share"], seed=0)
    assert found["controlled"]["share"]["int8"].value.value == pytest.approx((0.2 + 9 * 0.1) / 10)
    assert worst["controlled"]["share"].value.value == pytest.approx((0.3 + 0.9 + 9 * 0.6) / 11)
    nothing = {**observed, under("controlled", "int8"): {"forget": documents([math.nan] * 12)}}
    assert recoveries(nothing, ["share"], seed=0) == ({"controlled": {}}, {"controlled": {}})
    assert recoveries({"controlled": {"forget": before}}, ["share"], seed=0) == ({}, {})


def test_below_five_clusters_there_is_no_interval():
    few = np.repeat(np.arange(4), 3)
    observed = {
        "unlearned": {"forget": documents(np.full(12, 0.2), few)},
        under("unlearned", "int8"): {"forget": documents(np.full(12, 0.4), few)},
    }
    found, worst = recoveries(observed, ["share"], seed=0)
    estimate = found["unlearned"]["share"]["int8"].value
    assert (estimate.value, estimate.low) == (pytest.approx(0.2), None)
    assert "no interval from 4 clusters" in estimate.why
    assert worst["unlearned"]["share"].value.low is None


def test_the_interval_against_a_twin_with_loops():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(8), 3)
    before, after, taught = rng.random((3, 24)) * [[1], [1], [0.2]]
    found, _ = of_metric(["a"], before, after[None], taught[None], clusters, seed=5)
    net = after - before - taught
    means = []
    for drawn in stats.draws(8, 5):
        chosen = [net[clusters == c] for c, times in enumerate(drawn) for _ in range(times)]
        means.append(np.concatenate(chosen).mean())
    reach = t.ppf(0.975, 7) * np.std(means) * math.sqrt(8 / 7)
    estimate = found["a"].net
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (net.mean(), net.mean() - reach, net.mean() + reach)
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_what_holds_of_all_data(seed, attacks):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(7), 4)
    before, after = rng.random(28), rng.random((attacks, 28))
    names = [f"attack_{i}" for i in range(attacks)]
    # a model that is attacked beside itself has no net recovery
    same, worst = of_metric(names, before, after, after - before, clusters, seed=0)
    assert all(it.net.value == pytest.approx(0, abs=1e-12) for it in same.values())
    # the worst case is the largest; one attack is its own worst case
    assert worst.value.value == pytest.approx(after.mean(1).max())
    assert worst.value.low <= worst.value.value <= worst.value.high
    alone, one = of_metric(names[:1], before, after[:1], np.full((1, 28), np.nan), clusters, seed=0)
    assert one.net is None
    assert one.value.value - before.mean() == pytest.approx(alone["attack_0"].value.value)
    assert all(it.p_corrected >= it.p for it in same.values())


def test_the_largest_of_equal_figures_is_wider_than_one_of_them():
    rng = np.random.default_rng(0)
    one = 0.5 + 0.1 * rng.standard_normal((1, 2001))
    one[0, 0] = 0.5
    many = 0.5 + 0.1 * rng.standard_normal((10, 2001))
    many[:, 0] = 0.5
    _, alone = largest(one, 20)
    _, ten = largest(many, 20)
    assert alone.low == pytest.approx(0.5 - t.ppf(0.975, 19) * math.sqrt(20 / 19) * 0.1, abs=0.01)
    assert ten.low < alone.low - 0.05
    assert ten.high == pytest.approx(alone.high, abs=0.01)
    assert largest(np.array([[0.1], [np.nan], [0.3]]), 3)[0] == 2


def test_where_no_attack_brings_anything_back_none_is_called_the_worst():
    none, some = Recovery(Estimate(0.0), Estimate(0.0), 1.0, 1.0), Recovery(Estimate(0.02), Estimate(0.02), 0.4, 0.4)
    worst = Worst("int8", Estimate(0.0), "int8", Estimate(0.0))

    def said(found):
        return sentence("As published", "extraction_strength", Estimate(0.0), found, worst)

    assert said({"int8": none, "prefix": none}).endswith("is 0.00; none of 2 attacks brings anything back.")
    assert said({"int8": none}).endswith("is 0.00; the attack int8 brings nothing back.")
    assert "under the worst of 2 attacks 0.00; it is not established" in said({"int8": none, "prefix": some})
    unknown = Recovery(Estimate(None), None, None, None)
    assert "none of 2" not in said({"int8": none, "prefix": unknown})


def test_sentences():
    before = Estimate(0.59, 0.46, 0.71)

    def of(value, net, p):
        return Recovery(Estimate(value), None if net is None else Estimate(net, net - 0.01, net + 0.01), p, p)

    worst = Worst("prefix", Estimate(0.65, 0.5, 0.8), "prefix", Estimate(0.06, 0.02, 0.1))
    found = {"prefix": of(0.06, 0.06, 0.01), "int4": of(0.0, 0.0, 1.0), "noise_5": of(-0.1, 0.2, 0.01)}
    words = sentence("Under control", "extraction_strength", before, found, worst)
    assert words == (
        "Under control its extraction_strength on the forget set is 0.59 [0.46, 0.71], under the worst of 3 attacks "
        "(prefix) 0.65 [0.50, 0.80]; prefix (+6.0 points) gives more back than to a model that never saw the data."
    )
    found = {"prefix": of(0.06, 0.06, 0.2)}
    words = sentence("As published", "probability", before, found, worst)
    assert "under the attack prefix 0.65" in words
    assert words.endswith(
        "it is not established that any gives more back than it gives a model that never saw the data."
    )
    words = sentence("As published", "probability", before, {"prefix": of(0.06, None, 0.01)}, worst)
    assert words.endswith(
        "without a retain-only model under the same attack, what attacks bring back may be what they themselves teach."
    )


def test_names_of_models_under_attacks():
    assert attack_of(under("unlearned", "int4")) == ("unlearned", "int4")
    assert attack_of("unlearned") == ("unlearned", None)
