"""Scores and their resampling against plain numpy, and intervals against what an interval promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_metrics.record import Score
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.stats import bootstrap_weights, interval, resampled_means, scores

NAN = np.nan
hypothesis = settings(deadline=None, max_examples=200)


def score(values: np.ndarray, clusters: np.ndarray, seed: int = 0, geometric: bool = False) -> Score:
    """Of one metric."""
    (found,) = scores(np.asarray(values, float)[None], clusters, seed, [geometric])
    return found


# --- aggregates -----------------------------------------------------------------------------------------------------


@hypothesis
@given(
    st.lists(
        st.tuples(st.floats(0.01, 100) | st.just(NAN), st.floats(0.01, 100) | st.just(NAN), st.integers(0, 8)),
        min_size=1,
        max_size=20,
    )
)
def test_a_resampled_mean_is_that_of_the_documents_drawn(documents: list[tuple[float, float, int]]):
    """Two metrics, drawn alike; by repeating each document as often as it is drawn."""
    *values, clusters = map(np.array, zip(*documents, strict=True))
    drawn = bootstrap_weights(clusters, seed=1, resamples=7).astype(int)
    assert len(drawn) == (7 if len(set(clusters)) >= 5 else 0)
    samples = [[np.repeat(metric, counts) for counts in drawn] for metric in values]
    expected = [[np.mean(s[~np.isnan(s)]) if (~np.isnan(s)).any() else NAN for s in drawn_of] for drawn_of in samples]
    found = resampled_means(np.array(values), clusters, seed=1, resamples=7)
    assert found.shape == (2, len(drawn))
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-12)


def test_many_clusters_are_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).random((3, 50))
    whole = resampled_means(values, np.arange(50), 1, 40)
    monkeypatch.setattr(stats, "BLOCK", 170)
    assert resampled_means(values, np.arange(50), 1, 40) == pytest.approx(whole, rel=1e-12)


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
    found = score(values, np.arange(len(values)), geometric=geometric)
    assert (found.n, found.unscored) == (expected.n, expected.unscored)
    assert found.value == (None if expected.value is None else pytest.approx(expected.value))
    assert (found.ci_low, found.ci_high) == (None, None)


def test_unscored_documents_are_in_no_number():
    """Half the documents of each cluster unscored: the same as if they had not been there."""
    rng = np.random.default_rng(3)
    values, clusters = rng.random(60), np.repeat(np.arange(10), 6)
    unscored = np.arange(60) % 2 == 0
    found = score(np.where(unscored, NAN, values), clusters, seed=5)
    without = score(values[~unscored], clusters[~unscored], seed=5)
    assert (found.n, found.unscored) == (30, 30)
    assert found.value == pytest.approx(values[~unscored].mean())
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((without.value, without.ci_low, without.ci_high))


def test_a_geometric_mean_is_the_mean_of_logarithms():
    rng = np.random.default_rng(4)
    values, clusters = rng.lognormal(size=60), np.repeat(np.arange(12), 5)
    values[7] = NAN
    found, logs = score(values, clusters, geometric=True), score(np.log(values), clusters)
    assert found.value == pytest.approx(np.prod(values[~np.isnan(values)]) ** (1 / 59))
    assert np.log([found.ci_low, found.ci_high]) == pytest.approx([logs.ci_low, logs.ci_high], abs=1e-3)


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
    first, again, other = (score(values, clusters, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)


@pytest.mark.parametrize(("clusters", "interval"), [(1, False), (4, False), (5, True)])
def test_fewer_than_five_clusters_have_no_interval_however_many_documents(clusters: int, interval: bool):
    values = np.random.default_rng(0).random(100)
    labels = np.arange(100) % clusters
    found = score(values, labels)
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
    found = score(values, clusters)
    assert found.n == 10 * scored_clusters
    assert found.ci_low is found.ci_high is None


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_is_the_middle_of_what_was_resampled():
    """101 clusters: t(0.975, 100) = 1.98397, sqrt(101 / 100) t = 1.99386, Phi(-1.99386) = 0.023084 of 0..100 at each
    end; at level 0.5, t(0.75, 100) = 0.67695, 0.68033 and 0.24815.
    """
    resampled = np.arange(101.0)
    assert interval(resampled, 101) == pytest.approx((2.3084, 97.6916), abs=2e-4)
    assert interval(resampled, 101, level=0.5) == pytest.approx((24.815, 75.185), abs=2e-3)
    resampled[0] = NAN  # of unscored documents alone: says nothing, so 1..100
    assert interval(resampled, 100) == pytest.approx((1 + 0.023065 * 99, 1 + 0.976935 * 99), abs=1e-3)
    assert interval(np.array([NAN, NAN]), 100) == (None, None)


def test_clusters_without_a_scored_document_do_not_narrow_the_interval():
    """Six of ten clusters are scored, so the ends are those of six: t(0.975, 5) = 2.5706, sqrt(6 / 5) t = 2.8159,
    Phi(-2.8159) = 0.00243 at each end; were it ten, 0.00855."""
    values, clusters = np.random.default_rng(0).random(100), np.arange(100) % 10
    values[clusters >= 6] = NAN
    found, means = score(values, clusters), resampled_means(values[None], clusters, seed=0)[0]
    of_six, of_ten = (np.nanquantile(means, [tail, 1 - tail]) for tail in (0.00243, 0.00855))
    assert (found.ci_low, found.ci_high) == pytest.approx(of_six, abs=1e-4)
    assert (found.ci_low, found.ci_high) != pytest.approx(of_ten, abs=0.01)


def test_the_interval_of_a_geometric_mean_is_that_of_the_logarithms():
    values, clusters = np.random.default_rng(4).normal(size=40), np.arange(40) // 4
    plain, geometric = score(values, clusters), score(np.exp(values), clusters, geometric=True)
    assert np.log([geometric.value, geometric.ci_low, geometric.ci_high]) == pytest.approx(
        [plain.value, plain.ci_low, plain.ci_high], rel=1e-3
    )


def test_the_interval_of_few_clusters_reaches_as_far_as_students():
    """Ten clusters, normal values: the half-width is t(0.975, 9) = 2.262 standard errors, where plain percentiles
    give 1.96 * sqrt(9 / 10) = 1.859."""
    values = np.random.default_rng(2).normal(size=(20, 15, 10))
    found = [s for seed, datasets in enumerate(values) for s in scores(datasets, np.arange(10), seed, [False] * 15)]
    widths = np.reshape([(s.ci_high - s.ci_low) / 2 for s in found], (20, 15))
    assert np.mean(widths / (values.std(2, ddof=1) / np.sqrt(10))) == pytest.approx(2.262, abs=0.08)


def authors(rng: np.random.Generator, count: int | tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 1, count)


def skewed(rng: np.random.Generator, count: int | tuple[int, ...]) -> np.ndarray:
    """What an unlearned model keeps of an author: little of most, all of some."""
    return rng.beta(0.5, 0.8, count) - 0.5 / 1.3


@pytest.mark.parametrize(("shape", "count"), [(authors, 10), (skewed, 10), (authors, 20), (skewed, 20), (authors, 100)])
def test_the_interval_covers_the_truth_as_often_as_it_says_and_only_because_of_the_clusters(shape, count: int):
    """TOFU's numbers of authors (forget05, forget10 and retain, the rest), five questions each.

    The bounds are three binomial standard errors around 95 %; plain percentiles cover 90 % and 92.5 % at 10 and 20.
    """
    rng, datasets = np.random.default_rng(count), 4000
    by_author, spread = np.repeat(np.arange(count), 5), 0.5 * shape(rng, 100_000).std()
    outcome = {}
    for name, clusters, n in (("by author", by_author, datasets), ("by question", np.arange(len(by_author)), 400)):
        values = shape(rng, (n, count))[:, by_author] + rng.normal(0, spread, (n, len(by_author)))
        found = [
            s
            for seed, part in enumerate(np.split(values, 5))
            for s in scores(part, clusters, seed, [False] * len(part))
        ]
        outcome[name] = np.mean([(s.ci_low > 0, s.ci_high < 0) for s in found], axis=0)
    assert 1 - outcome["by author"].sum() == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / datasets))
    assert outcome["by author"].min() >= 0.008  # it errs on both sides
    # design effect 1 + 4 * 0.8 = 4.2: intervals by question are half as wide as they should be
    assert 0.5 <= 1 - outcome["by question"].sum() <= 0.8
