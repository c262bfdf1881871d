"""The curve at equal retention, by hand, by brute force, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from tools import coverage
from unlearn_metrics.scores import curve, stats
from unlearn_metrics.scores.curve import GRID, Path, Sums, Weights

ALPHAS = [0.0, 0.25, 0.5, 1.0]


def path(retain, forget, alphas=ALPHAS, documents=1.0) -> Path:
    """A path of clusters' means, [alphas, clusters] each, with as many documents in every cluster."""
    made = []
    for found in (retain, forget):
        found = np.array(found, float)
        made.append(Sums(tuple(range(found.shape[1])), found * documents, np.full(found.shape, documents)))
    return Path(alphas, made[0], {"es": made[1]})


def line(*points: float, clusters: int = 6) -> list[list[float]]:
    return [[point] * clusters for point in points]


def value(of: Path, rho: float = 0.95, metric: str = "es") -> float:
    return float(curve.residual(of, metric, curve.draw(of, 0, 0), [rho])[0, 0])


# by hand


@pytest.mark.parametrize(
    ("retain", "forget", "rho", "left", "alpha"),
    [
        ((1, 1.0, 0.9, 0.0), (1, 0.8, 0.4, 0.0), 0.95, 0.6, 0.375),  # half-way between two points
        ((0.5, 0.5, 0.45, 0.0), (1, 0.8, 0.4, 0.0), 0.95, 0.6, 0.375),  # relative to an original of 0.5
        ((1, 0.95, 0.9, 0.0), (1, 0.8, 0.4, 0.0), 0.95, 0.8, 0.25),  # at a point itself
        ((1, 0.9, 1.0, 0.0), (1, 0.5, 0.4, 0.0), 0.95, 0.75, 0.125),  # the first fall counts, not the last
        ((1, 1.0, 1.0, 0.8), (1, 0.8, 0.4, 0.2), 1.0, 0.4, 0.5),  # all that the original retains, as far as it lasts
        ((1, 1.1, 0.8, 0.0), (1, 0.8, 0.5, 0.0), 0.95, 0.65, 0.375),  # above the original on the way
        ((1, 0.9, 0.8, 0.0), (0.7, 0.7, 0.7, 0.7), 0.95, 0.7, 0.125),  # nothing forgotten
    ],
)
def test_value_by_hand(retain, forget, rho, left, alpha):
    of = path(line(*retain), line(*forget))
    assert value(of, rho) == pytest.approx(left)
    assert curve.strength(of, curve.draw(of, 0, 0), [rho])[0, 0] == pytest.approx(alpha)


def test_means_are_over_documents_not_clusters():
    retain = Sums(("a", "b"), np.array([[3.0, 1.0], [0.0, 1.0]]), np.array([[3.0, 1.0], [3.0, 1.0]]))
    forget = Sums(("c",), np.array([[4.0], [2.0]]), np.array([[4.0], [4.0]]))
    of = Path([0.0, 1.0], retain, {"es": forget})
    twice_b = Weights(np.array([[1, 1], [1, 2]], np.uint8), np.array([[1], [1]], np.uint8))
    assert curve.retention(of, twice_b).tolist() == [[1, 1], [0.25, 0.4]]
    assert curve.residual(of, "es", twice_b, [0.5])[0].tolist() == pytest.approx([2 / 3, 1 - 5 / 12])


def test_sums_leave_out_what_is_unscored():
    found = curve.sums(np.array([[1.0, 0.5, np.nan, 2.0], [np.nan, np.nan, 1.0, 0.0]]), ["b", "b", "a", "a"])
    assert found.labels == ("a", "b")
    assert found.total.tolist() == [[2.0, 1.5], [1.0, 0.0]]
    assert found.count.tolist() == [[1, 2], [2, 0]]


# what is not known stays so


@pytest.mark.parametrize(
    ("retain", "forget"),
    [
        ((1, 1, 0.99, 0.96), (1, 0.8, 0.4, 0)),  # never falls so far
        ((0, 0, 0, 0), (1, 0.8, 0.4, 0)),  # the original retains nothing: there is no share of it
        ((1, np.nan, 0.9, 0), (1, 0.8, 0.4, 0)),  # retention unknown on the way
        ((1, 1, 0.9, 0), (1, np.nan, 0.4, 0)),  # what is left unknown at a neighbour
    ],
)
def test_unknown_is_said_and_not_zero(retain, forget):
    of = path(line(*retain), line(*forget))
    assert math.isnan(value(of))
    found = curve.estimate(curve.residual(of, "es", curve.draw(of, 0, 50))[0], of.clusters)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.why
    assert curve.p_value(curve.residual(of, "es", curve.draw(of, 0, 50))[0], of.clusters) is None


def test_a_cluster_without_scored_documents_is_in_no_mean():
    of = path(line(1, 1, 0.9, 0), line(1, 0.8, 0.4, 0))
    forget = of.forget["es"]
    holed = Sums(forget.labels, forget.total * [1, 1, 1, 1, 1, 0], forget.count * [1, 1, 1, 1, 1, 0])
    assert value(Path(of.alphas, of.retain, {"es": holed})) == pytest.approx(0.6)


@pytest.mark.parametrize("clusters", [1, 4])
def test_few_clusters_have_a_value_and_no_interval(clusters):
    of = path(line(1, 1, 0.9, 0, clusters=clusters), line(1, 0.8, 0.4, 0, clusters=8))
    drawn = curve.residual(of, "es", curve.draw(of, 0))[0]
    found = curve.estimate(drawn, of.clusters)
    assert found.value == pytest.approx(0.6)
    assert found.low is None
    assert str(clusters) in found.why
    assert curve.p_value(drawn, of.clusters) is None


def test_an_end_that_rests_on_unreached_draws_is_not_known():
    drawn = np.concatenate([[0.5], np.linspace(0.4, 0.6, 1000)])
    drawn[1:6] = np.nan  # 0.5 %: beyond the ends anyway
    few = curve.estimate(drawn, 20)
    drawn[1:201] = np.nan
    many = curve.estimate(drawn, 20)
    assert few.low == pytest.approx(0.4, abs=0.01)
    assert few.high == pytest.approx(0.6, abs=0.01)
    assert (many.value, many.low, many.high) == (0.5, None, None)
    assert "20%" in many.why


@pytest.mark.parametrize("rho", [0.0, 1.01, math.nan])
def test_a_retention_outside_is_refused(rho):
    with pytest.raises(ValueError, match="between 0"):
        curve.along(np.ones((2, 1)), np.ones((2, 1)), [rho])


# a brute-force twin


def slow(alphas, retain, forget, rho) -> float:
    """f(rho) of documents' values, [alphas, n], in plain Python."""
    for b in range(len(alphas) - 1):
        r = [sum(row) / len(row) / (sum(retain[0]) / len(retain[0])) for row in (retain[b], retain[b + 1])]
        f = [sum(row) / len(row) for row in (forget[b], forget[b + 1])]
        if r[1] < rho:
            return f[0] + (r[0] - rho) / (r[0] - r[1]) * (f[1] - f[0])
    return math.nan


def random_path(seed: int, clusters: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    fall = np.linspace(1, 0.5, 5)[:, None]
    return tuple(np.clip(fall + rng.normal(0, 0.1, (5, clusters)), 0, 1.2) for _ in range(2))


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_what_redrawn_documents_give(seed):
    alphas = [0, 0.25, 0.5, 0.75, 1]
    retain, forget = random_path(seed)
    of = path(retain, forget, alphas, documents=3.0)
    weights = curve.draw(of, seed, 40)
    for column, found in enumerate(curve.residual(of, "es", weights, [0.9])[0]):
        r, f = (
            np.repeat(values, 3 * drawn[column].astype(int), 1).tolist()
            for values, drawn in ((retain, weights.retain), (forget, weights.forget))
        )
        assert found == pytest.approx(slow(alphas, r, f, 0.9), nan_ok=True)


# properties


floats = st.floats(0.01, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=2, max_size=9), st.floats(0.05, 1))
def test_f_lies_between_its_neighbours_and_is_exact_at_points(points, rho):
    retain, forget = zip(*points, strict=True)
    of = path(line(*retain), line(*forget), list(range(len(points))))
    found = value(of, rho)
    relative = np.array(retain) / retain[0]
    if math.isnan(found):
        assert relative.min() >= rho - 1e-12
    else:
        first = int((relative < rho).argmax())
        low, high = sorted(forget[first - 1 : first + 1])
        assert low - 1e-9 <= found <= high + 1e-9


@pytest.mark.parametrize("off", [-1e-13, 0.0, 1e-13])
def test_a_path_that_just_reaches_a_retention_reaches_it_on_any_processor(off):
    """A last bit must not decide whether f is known: 0.9 is reached, and not fallen below, however it is rounded."""
    assert math.isnan(value(path(line(1, 0.9 + off), line(1, 0.5), [0, 1]), 0.9))
    assert value(path(line(1, 0.9 + off, 0.8), line(1, 0.5, 0.1), [0, 0.5, 1]), 0.9) == pytest.approx(0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(7)))
def test_order_of_clusters_changes_nothing(seed, order):
    retain, forget = random_path(seed)
    alphas = [0, 0.25, 0.5, 0.75, 1]
    as_is, other = path(retain, forget, alphas), path(retain[:, order], forget[:, order], alphas)
    weights = curve.draw(as_is, 0, 30)
    moved = Weights(weights.retain[:, order], weights.forget[:, order])
    np.testing.assert_allclose(
        curve.residual(as_is, "es", weights, GRID), curve.residual(other, "es", moved, GRID), rtol=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_less_retention_never_takes_a_weaker_update(seed):
    retain, forget = random_path(seed)
    of = path(retain, forget, [0, 0.25, 0.5, 0.75, 1])
    weights = curve.draw(of, 0, 30)
    at = curve.strength(of, weights, GRID)
    assert not (np.diff(at, axis=0) > 1e-12).any()  # NaN where not reached


# a floor, a barrier, the highest common retention, crossings


def test_above_floor():
    of = path(line(1, 1, 0.9, 0), line(0.9, 0.7, 0.3, 0))
    weights = curve.draw(of, 0, 20)
    left = curve.residual(of, "es", weights)
    floor = Sums(of.forget["es"].labels, np.full((1, 6), 0.1), np.ones((1, 6)))
    assert curve.above_floor(left, of, "es", floor, weights)[0] == pytest.approx((0.5 - 0.1) / (0.9 - 0.1))
    beyond = Sums(floor.labels, np.full((1, 6), 0.95), np.ones((1, 6)))  # knows more than the original
    assert np.isnan(curve.above_floor(left, of, "es", beyond, weights)).all()


@pytest.mark.parametrize(
    ("retained", "expected"), [((1, 0.22, 0.96), True), ((1, 0.9, 0.95), False), ((1, 0.3, 0.0), False)]
)
def test_barrier(retained, expected):
    assert curve.barrier([0, 0.5, 1], retained) is expected


def test_common_retention():
    mild, harsh = path(line(1, 1, 0.99, 0.98), line(1, 1, 1, 1)), path(line(1, 0.9, 0.5, 0), line(1, 1, 1, 1))
    assert curve.common([harsh, harsh]) == 0.95
    assert curve.common([harsh, mild]) == pytest.approx(0.98)


def test_crossings_and_whether_they_are_established():
    rho, rng = np.array(GRID), np.random.default_rng(0)
    d = (0.96 - rho)[:, None] + np.concatenate([[0], rng.normal(0, 0.005, 2000)])
    assert curve.crossings(GRID, d) == [pytest.approx(0.96)]
    assert set(curve.signs(d, 10).tolist()) == {-1, 0, 1}
    assert curve.crossings(GRID, abs(d)) == []
    noisy = (0.96 - rho)[:, None] + np.concatenate([[0], rng.normal(0, 0.1, 2000)])
    assert curve.crossings(GRID, noisy) == [pytest.approx(0.96)]
    assert not curve.signs(noisy, 10).any()


# p-values and ranks


def test_p_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.4, 30):
        drawn = shift + np.concatenate([[0], rng.normal(0, 0.1, 4000)])
        found = curve.difference(drawn, 10)
        assert (curve.p_value(drawn, 10) < 0.05) == (not found.low <= 0 <= found.high)


def test_ranks_of_rows_far_apart_and_alike():
    rng = np.random.default_rng(0)
    values = np.array([0.1, 0.5, 0.5, 0.9])
    rows = values[:, None] + np.concatenate([np.zeros((4, 1)), rng.normal(0, 0.02, (4, 2000))], 1)
    assert curve.ranks(rows, 10) == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert curve.ranks(rows[:1], 10) == [(1, 1)]
    assert curve.ranks(rows, 5) == [None] * 4
    rows[1] = np.nan  # not reached
    assert curve.ranks(rows, 10) == [(1, 1), None, (2, 2), (3, 3)]


def test_nothing_is_told_apart_by_the_few_draws_that_all_rows_have():
    """Each of many rows is unknown in 2 % of the draws, each in others."""
    values = np.linspace(0.1, 0.9, 60)[:, None] + np.random.default_rng(0).normal(0, 0.001, (60, 2001))
    for i, row in enumerate(values):
        row[1 + (np.arange(40) + 40 * i) % 2000] = np.nan
    assert curve.estimate(values[0], 40).low is not None
    assert curve.ranks(values, 40) == [None] * 60  # no draw is left
    assert not curve.signs(values, 40).any()
    assert curve.ranks(values[:20], 40) == [(i, i) for i in range(1, 21)]
    assert curve.signs(values[:20], 40).all()


def test_ranks_of_two_rows_separate_where_their_difference_does():
    rng = np.random.default_rng(0)
    for gap in np.linspace(0, 0.3, 40):
        rows = np.array([[0.5], [0.5 + gap]]) + np.concatenate([np.zeros((2, 1)), rng.normal(0, 0.05, (2, 2000))], 1)
        separate = curve.ranks(rows, 10) == [(1, 1), (2, 2)]
        assert separate == (curve.p_value(rows[0] - rows[1], 10) < 0.05)
        assert curve.signs(rows[:1] - rows[1:], 10).tolist() == [-1 if separate else 0]


def test_figures_together_are_at_most_as_many_tests_as_they_are():
    """Draws with a long tail: the quantile of the largest says more tests than there are."""
    largest = np.abs(np.random.default_rng(0).standard_t(3, (2000, 4))).max(1)
    single, four = (curve.threshold(largest, values, 10) for values in (1, 4))
    t = [-stdtrit(9, 0.025 / values) * math.sqrt(10 / 9) for values in (1, 4)]
    assert (single, four) == pytest.approx(t)
    assert curve.threshold(np.full(100, 1.0), 4, 10) == pytest.approx(t[0])  # at least one


def test_rows_that_share_their_noise_are_told_apart():
    """Ten rows .05 apart, whose clusters differ far more than that: untouching intervals tell little."""
    rng = np.random.default_rng(0)
    clusters = rng.normal(0, 0.15, 10)
    means = 0.05 * np.arange(10)[:, None] + clusters + rng.normal(0, 0.03, (10, 10))
    weights = np.concatenate([np.ones((1, 10)), stats.draws(10, 0, 4000)])
    rows = means @ weights.T / weights.sum(1)
    ranges = curve.ranks(rows, 10)
    middle = np.mean([(best + worst) / 2 for best, worst in ranges])
    apart = [curve.estimate(row, 10) for row in rows]
    plain = np.mean([1 + sum(other.high < row.low for other in apart) for row in apart])
    assert middle == pytest.approx(5.5, abs=0.3)
    assert all(best <= i + 1 <= worst for i, (best, worst) in enumerate(ranges))
    assert plain < 4


# which alphas


def walk(retention) -> dict[float, float]:
    seen = {0.0: 1.0}
    while new := curve.propose(seen):
        assert not set(new) & seen.keys()
        seen |= {alpha: retention(alpha) for alpha in new}
    return seen


@pytest.mark.parametrize(
    "retention",
    [
        lambda a: 1 - 0.9 * a**3,
        lambda a: 1.0 if a < 0.2541 else 0.0,  # a step
        lambda a: max(0, 1 - 30 * max(0, a - 0.25) ** 1.0),  # steep
        lambda a: 0.0,
        lambda a: 1 - 4 * a * (1 - a),  # a barrier
    ],
)
def test_retention_is_resolved_or_alpha_is(retention):
    seen = walk(retention)
    assert set(np.arange(9) / 8) <= seen.keys()
    assert len(seen) <= curve.POINTS + 1
    alphas = sorted(seen)
    end = next(i for i, alpha in enumerate(alphas) if seen[alpha] < GRID[0])
    inside = np.clip([seen[alpha] for alpha in alphas[: end + 1]], GRID[0], 1)
    fine = np.diff(alphas[: end + 1]) <= curve.FINEST
    assert len(seen) == curve.POINTS + 1 or (fine | (np.abs(np.diff(inside)) <= curve.STEP)).all()


def test_the_path_goes_on_beyond_1_where_retention_lasts():
    assert max(walk(lambda a: 1 - 0.05 * a)) == curve.TOP  # not even there
    assert max(walk(lambda a: 1 - 0.15 * a)) == 1.375  # well below the curve, so that redrawn data are too
    assert max(walk(lambda a: 1 - 0.25 * a)) == 1


# coverage: `python -m tools.coverage` does this with real checkpoints


def logistic_population(seed: int, edge: float, clusters: int = 60) -> Path:
    """A path on which each cluster of 20 documents falls at an alpha of its own, those of forget earlier."""
    grid, rng = np.linspace(0, 1.5, 97)[:, None], np.random.default_rng(seed)

    def split(middle: float) -> Sums:
        means = 1 / (1 + np.exp((grid - middle - rng.normal(0, 0.05, clusters)) / 0.08))
        return Sums(tuple(range(clusters)), 20 * means, np.full(means.shape, 20.0))

    retain, forget = split(edge), split(edge - 0.2)
    return Path(grid[:, 0].tolist(), retain, {coverage.KEPT: forget, coverage.OTHER: forget})


# a retain-only model that gives a little of each cluster by chance
FLOOR = Sums(tuple(range(60)), 20 * np.random.default_rng(2).uniform(0, 0.1, (1, 60)), np.full((1, 60), 20.0))


def test_coverage_and_size_of_a_simulated_control():
    """95 % intervals hold the truth, and 5 % tests seldom reject; bounds are two standard errors away."""
    a, b = logistic_population(0, 0.7), logistic_population(1, 0.6)
    found = coverage.one_and_two({"a": a, "b": b}, FLOOR, (20, 10), 200, 1000)
    assert min(found["a"][1:5] + found["b"][1:5] + found["b - a"][1:] + found["all ranks"][1:]) >= 0.91
    assert found["b"][0] != pytest.approx(found["a"][0], abs=0.001)
    assert max(coverage.null(a, b, (20, 10), 200, 1000)) <= 0.08


def test_the_simulation_sees_an_interval_that_is_too_narrow(monkeypatch):
    plain = curve.estimate
    monkeypatch.setattr(curve, "estimate", lambda drawn, clusters, level=0.95: plain(drawn, clusters, 0.7))
    found = coverage.one_and_two({"a": logistic_population(0, 0.7)}, FLOOR, (20, 10), 100, 1000)
    assert found["a"][1] < 0.85
