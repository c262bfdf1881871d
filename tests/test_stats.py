"""Aggregates against plain numpy, and intervals against what an interval promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_metrics.stats import aggregate, bootstrap_weights, score
from unlearn_metrics.types import Score

NAN = np.nan
hypothesis = settings(deadline=None, max_examples=200)


def one_each(n: int) -> np.ndarray:
    return bootstrap_weights(np.arange(n), seed=0, resamples=200)


# --- aggregates -----------------------------------------------------------------------------------------------------


@hypothesis
@given(
    st.lists(
        st.tuples(st.floats(0.01, 100) | st.just(NAN), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    )
)
def test_a_weight_is_how_often_a_document_stands_in_the_sample(drawn: list[tuple[float, int]]):
    values, counts = np.array([v for v, _ in drawn]), np.array([c for _, c in drawn])
    sample = np.repeat(values, counts)
    sample = sample[~np.isnan(sample)]
    weights = np.vstack([counts, np.ones(len(values))]).astype(float)
    mean, geometric = aggregate(values, weights)[0], aggregate(values, weights, geometric=True)[0]
    assert mean == pytest.approx(np.mean(sample) if len(sample) else NAN, nan_ok=True)
    assert geometric == pytest.approx(np.prod(sample) ** (1 / len(sample)) if len(sample) else NAN, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "geometric", "expected"),
    [
        ([1, 2, 6], False, Score(3, None, None, 3, 0)),
        ([1, NAN, 3], False, Score(2, None, None, 2, 1)),  # NaN as 0 would give 4/3
        ([0, NAN, 1, 1], False, Score(2 / 3, None, None, 3, 1)),  # but a 0 is a 0
        ([2, NAN, 4, 8, NAN], True, Score(4, None, None, 3, 2)),  # cube root of 64
        ([NAN, NAN], False, Score(None, None, None, 0, 2)),
        ([NAN] * 20, True, Score(None, None, None, 0, 20)),
        ([], False, Score(None, None, None, 0, 0)),
    ],
)
def test_score_by_hand(values: list[float], geometric: bool, expected: Score):
    found = score(np.array(values, float), np.arange(len(values)), one_each(len(values)), geometric)
    assert (found.n, found.unscored) == (expected.n, expected.unscored)
    assert found.value == (None if expected.value is None else pytest.approx(expected.value))
    assert (found.ci_low, found.ci_high) == (None, None)


def test_unscored_documents_are_in_no_number():
    """Half the documents of each cluster unscored: the same as if they had not been there."""
    rng = np.random.default_rng(3)
    values, clusters = rng.random(60), np.repeat(np.arange(10), 6)
    unscored = np.arange(60) % 2 == 0
    weights = bootstrap_weights(clusters, seed=5)
    found = score(np.where(unscored, NAN, values), clusters, weights)
    kept = clusters[~unscored]
    without = score(values[~unscored], kept, bootstrap_weights(kept, seed=5))
    assert (found.n, found.unscored) == (30, 30)
    assert found.value == pytest.approx(values[~unscored].mean())
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((without.value, without.ci_low, without.ci_high))


# --- resampling -----------------------------------------------------------------------------------------------------


def test_clusters_are_drawn_whole_evenly_and_with_replacement():
    clusters = np.array([7, -2, 7, 30, 0, 7, 30, 11, 5, 5, -2])  # labels need no order
    labels = np.unique(clusters)
    weights = bootstrap_weights(clusters, seed=1, resamples=4000)
    assert weights.shape == (4000, len(clusters))
    drawn = np.stack([weights[:, clusters == label][:, 0] for label in labels], axis=1)
    for label, times in zip(labels, drawn.T, strict=True):
        assert (weights[:, clusters == label] == times[:, None]).all()
    assert (drawn.sum(1) == len(labels)).all()  # as many clusters as there are
    assert drawn.min() == 0
    assert drawn.max() >= 3
    # Binomial(6, 1/6): mean 1, variance 5/6; four standard errors over 4000 resamples
    assert drawn.mean(0) == pytest.approx(np.ones(6), abs=0.06)
    assert drawn.var(0) == pytest.approx(np.full(6, 5 / 6), abs=0.09)


def test_the_seed_fixes_the_result():
    values, clusters = np.random.default_rng(0).random(40), np.repeat(np.arange(8), 5)
    first, again, other = (score(values, clusters, bootstrap_weights(clusters, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)


@pytest.mark.parametrize(("clusters", "interval"), [(1, False), (4, False), (5, True)])
def test_fewer_than_five_clusters_have_no_interval_however_many_documents(clusters: int, interval: bool):
    values = np.random.default_rng(0).random(100)
    labels = np.arange(100) % clusters
    found = score(values, labels, bootstrap_weights(labels, seed=0))
    assert found.value == pytest.approx(values.mean())
    assert found.n == 100
    if interval:
        assert found.ci_low < found.value < found.ci_high
    else:
        assert found.ci_low is found.ci_high is None


@pytest.mark.parametrize("scored_clusters", [1, 4])
def test_fewer_than_five_clusters_with_a_scored_document_have_no_interval(scored_clusters: int):
    """The other clusters tell nothing: with one left, every resample has the same mean, which is no certainty."""
    clusters = np.repeat(np.arange(10), 10)
    values = np.where(clusters < scored_clusters, np.random.default_rng(0).random(100), NAN)
    found = score(values, clusters, bootstrap_weights(clusters, seed=0))
    assert found.n == 10 * scored_clusters
    assert found.ci_low is found.ci_high is None


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_is_the_middle_of_the_resampled_aggregates():
    """Resample i is document i alone, so the resampled aggregates are the values themselves."""
    values, each, weights = np.arange(101.0), np.arange(101), np.eye(101)
    found = score(values, each, weights)
    assert (found.ci_low, found.ci_high) == pytest.approx((2.5, 97.5))  # of 0..100
    found = score(values, each, weights, level=0.5)
    assert (found.ci_low, found.ci_high) == pytest.approx((25, 75))
    values[0] = NAN  # a resample of unscored documents alone says nothing: 1..100, 1 + 0.025 * 99
    found = score(values, each, weights)
    assert (found.ci_low, found.ci_high) == pytest.approx((3.475, 97.525))
    found = score(2.0 ** np.arange(101), each, weights, geometric=True, level=0.5)
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((2**50, 2**25, 2**75))


def test_the_interval_covers_the_truth_as_often_as_it_says_and_only_because_of_the_clusters():
    """40 authors, 5 questions each: what is common to an author has four times the variance of what is not."""
    truth, datasets, rng = 0.3, 400, np.random.default_rng(11)
    by_author = np.repeat(np.arange(40), 5)
    outcome = {"by author": np.zeros(2), "by question": np.zeros(2)}
    for seed in range(datasets):
        values = truth + rng.normal(0, 1, 40)[by_author] + rng.normal(0, 0.5, 200)
        for name, clusters in (("by author", by_author), ("by question", np.arange(200))):
            found = score(values, clusters, bootstrap_weights(clusters, seed, resamples=400))
            outcome[name] += (truth < found.ci_low, truth > found.ci_high)
    too_high, too_low = outcome["by author"] / datasets
    assert 0.90 <= 1 - too_high - too_low <= 0.98
    assert min(too_high, too_low) >= 0.005  # it errs on both sides
    # design effect 1 + 4 * 0.8 = 4.2: intervals by question are half as wide as they should be, and cover 2 in 3
    assert 0.5 <= 1 - outcome["by question"].sum() / datasets <= 0.8
