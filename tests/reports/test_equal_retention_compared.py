"""compare at equal retention: the primary test, what comes after it, and a leaderboard's ranks of the same records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import ttest_rel

from tests.paths import METRIC, path
from tests.reports.test_compare import made, only, save
from tests.reports.test_leaderboard import found, record
from unlearn_metrics.record import ClusterSums, MeasuredPath, RunRecord
from unlearn_metrics.reports import comparison_words as words
from unlearn_metrics.reports import paired_tests
from unlearn_metrics.reports.compare import compare
from unlearn_metrics.reports.leaderboard import rows
from unlearn_metrics.reports.paired_tests import Curves, Run, at_equal_retention, corrected


def of(record: RunRecord) -> Run:
    return Run(record.name, record, {}, {}, {})


def residual_of(a: RunRecord, b: RunRecord, metrics: tuple[str, ...] = ()) -> tuple[list[paired_tests.Test], Curves]:
    curves = at_equal_retention(of(a), of(b), metrics, 0)
    return corrected(curves.tests), curves


def test_residual_is_the_paired_test_of_clusters():
    """Retention is the same in every draw, so what is left is a mean over clusters: its test is that of Student's t."""
    rng = np.random.default_rng(3)
    for shift in (0, 0.05, 0.1, 0.2):
        mine = rng.uniform(0.6, 0.8, 12)
        theirs = mine - shift + rng.normal(0, 0.1, 12)
        first, mean = residual_of(record("a", mine.tolist()), record("b", theirs.tolist()))[0]
        assert (first.facet, first.split, first.metric, first.retention) == (
            "Residual",
            "forget",
            "extraction_strength",
            "95%",
        )
        assert (first.primary, first.n, first.clusters) == (True, 120, 12)
        assert (first.value_baseline, first.value_run) == pytest.approx((mine.mean(), theirs.mean()))
        assert first.difference == pytest.approx((theirs - mine).mean())
        t = ttest_rel(theirs, mine)
        assert first.p == first.p_corrected == pytest.approx(t.pvalue, rel=0.1)
        assert (first.ci_low, first.ci_high) == pytest.approx(t.confidence_interval(), abs=0.005)
        assert (mean.retention, mean.p, mean.primary) == ("90% to 100%", None, False)


def test_a_pair_is_compared_as_a_leaderboard_ranks_it():
    """By the same function: the sign of a significant difference is the order of the ranks, else they are shared."""
    rng, said = np.random.default_rng(0), []
    for shift in np.linspace(-0.15, 0.15, 31):
        mine = rng.uniform(0.3, 0.6, 10)
        pair = [record("a", mine.tolist()), record("b", (mine + shift + rng.normal(0, 0.1, 10)).tolist())]
        (table,) = rows.groups(found(*pair))
        ranks = {row.name: (row.rank, row.rank_worst) for row in table.rows}
        first = residual_of(*pair)[0][0]
        shown = {row.name: row.values["residual"].value for row in table.rows}
        assert (first.value_baseline, first.value_run) == pytest.approx((shown["a"], shown["b"]))
        if first.decided:
            assert ranks == ({"a": (2, 2), "b": (1, 1)} if first.better else {"a": (1, 1), "b": (2, 2)})
        else:
            assert set(ranks.values()) == {(1, 2)}
        said.append((first.decided, first.better))
    assert {(True, True), (True, False)} <= {*said}
    assert any(not decided for decided, _ in said)


def test_few_clusters_have_neither_a_rank_nor_a_decision():
    pair = [record("a", [0.9] * 5), record("b", [0.1, 0.1, 0.1, 0.1, 0.2])]
    tests, curves = residual_of(*pair)
    (table,) = rows.groups(found(*pair))
    assert [row.rank for row in table.rows] == [None, None]
    assert (tests[0].p, tests[0].p_corrected, tests[0].decided) == (None, None, False)
    (sentence,) = words.sentences(tests, curves)
    assert (
        "whether b and a differ by residual extraction_strength at 95% retention cannot be decided with 5" in sentence
    )
    assert "may differ" not in sentence


def test_nothing_else_counts_unless_the_primary_test_does(tmp_path):
    """Ten authors; perplexity differs hugely. The first pair has the same residual, the second does not."""
    rng = np.random.default_rng(0)
    left = rng.uniform(0.4, 0.6, 10)
    fluent = np.exp(rng.normal(1, 0.1, 20))
    values = [{"retain": {"perplexity": (fluent * f).tolist(), "rouge": rng.random(20).tolist()}} for f in (1, 9, 9)]
    moves = (0, rng.normal(0, 0.05, 10), rng.normal(-0.2, 0.02, 10))
    a, b, c = (
        save(tmp_path / name, v, path=path((left + move).tolist()))
        for name, v, move in zip("abc", values, moves, strict=True)
    )
    same, other = compare([a, b]), compare([a, c])
    for result in (same, other):
        assert any(note.startswith("Tested first: residual extraction_strength at 95% ") for note in result.notes)
        assert any("noise of the calibration is not in their intervals" in note for note in result.notes)
        (perplexity,) = [t for t in result.tests if t.metric == "perplexity"]
        assert perplexity.p == 2 / 2**10
    assert not any(t.decided for t in same.tests)
    assert [t.p_corrected for t in same.tests if not t.primary] == [None] * 3
    assert same.sentences[0].startswith(
        "Residual: no difference between b and a by residual extraction_strength at 95% retention is established (p "
    )
    assert same.sentences[1:] == ["The other metrics are not tested, since the first establishes no difference."]
    assert other.sentences[0].startswith(
        "Residual: c is better than a by residual extraction_strength at 95% retention: -0.2"
    )
    assert "; on average over 90% to 100% retention -0." in other.sentences[0]
    assert other.sentences[1].startswith("Fluency: c is worse than a by perplexity (retain) (p ≤ 0.0039)")
    # what is asked for without the primary metric is corrected by Holm alone
    (alone,) = compare([a, b], metrics=["perplexity"]).tests
    assert (alone.p_corrected, alone.decided) == (2 / 2**10, True)
    first, *_ = compare([a, b, c], metrics=["extraction_strength"], all_pairs=True).tests
    assert first.p_corrected == pytest.approx(min(1, 3 * first.p))


@pytest.mark.parametrize(
    ("pairs", "primary", "others", "expected"),
    [
        (1, 0.01, [0.01, 0.04], [0.01, 0.02, 0.04]),
        (1, 0.03, [0.01, 0.04], [0.03, 0.03, 0.04]),  # never less than the one that comes before
        (1, 0.06, [0.001, 0.04], [0.06, None, None]),
        (2, 0.01, [0.001, 0.02], [0.02, 0.02, 0.04]),
        (2, 0.03, [0.001, 0.02], [0.06, None, None]),
        (1, None, [0.001, 0.02], [None, None, None]),
        (2, 0.8, [], [1.0]),
    ],
)
def test_gatekeeping_by_hand(pairs, primary, others, expected):
    tests = [made(facet="Residual", primary=True, p=primary), *(made(p=p) for p in others)]
    assert [t.p_corrected for t in corrected(tests, pairs)] == pytest.approx(expected)


def test_gatekeeping_holds_the_chance_of_any_false_positive():
    """Nothing differs, or the primary metric alone does: then the others have the level to themselves."""
    rng, false, after = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        p = rng.random(5).tolist()
        tests = [made(facet="Residual", primary=True, p=p[0]), *(made(p=x) for x in p[1:])]
        false += any(t.decided for t in corrected(tests))
        tests[0] = dataclasses.replace(tests[0], p=1e-9)
        after += any(t.decided for t in corrected(tests)[1:])
    for count in (false, after):
        assert 0.03 <= count / 2000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def crossing(forget: list[float], noise: float, name: str) -> RunRecord:
    """Retention 1, 0.97, 0.94, 0.88 along alpha; the forget set as given, and its clusters around it."""
    parts = np.array([1, -1, 2, -2, 0, 1, -1, 2, -2, 0]) * noise
    alphas, k = [0.0, 0.25, 0.5, 1.0], len(parts)
    count = [[10] * k for _ in alphas]
    retain = ClusterSums(list(range(k)), [[10 * r] * k for r in (1, 0.97, 0.94, 0.88)], count)
    values = np.array(forget)[:, None] + np.outer(np.array([0, 1, -1, 1]), parts)
    left = ClusterSums(list(range(k)), (10 * values).tolist(), count)
    return dataclasses.replace(
        record(name),
        path=MeasuredPath(METRIC, alphas, [retain, retain], {METRIC: left}, {METRIC: "forget"}),
        residual={},
    )


@pytest.mark.parametrize(("noise", "crossed"), [(0.001, True), (0.4, False)])
def test_curves_that_cross_are_named(noise, crossed):
    """b - a is -0.1 at 97 % and 0.05 at 94 %, so it is 0 at 95 %."""
    a = crossing([1, 0.8, 0.6, 0.4], noise, "a")
    b = crossing([1, 0.7, 0.65, 0.5], 0, "b")
    tests, curves = residual_of(a, b)
    assert curves.crossings == [pytest.approx(0.95)]
    assert curves.crossed == crossed
    said = words.sentences(tests, curves)[0]
    end = "." if crossed else ", though it is not established that they do."
    assert said.endswith(f"their curves cross at 95.0% retention{end}")


def test_what_is_reached_only_beyond_alpha_1_is_compared_where_both_are_too():
    mild, harsh = record("mild", 0.5, own=0.96), record("harsh", 0.6)
    tests, curves = residual_of(harsh, mild)
    assert [t.retention for t in tests] == ["95%", "90% to 100%", "96.0%"]
    assert curves.notes == ["95% retention is beyond alpha 1 for one of them; both reach 96.0% before."]


def test_without_two_paths_that_can_be_compared_checkpoints_are(tmp_path):
    values = {"forget": {"rouge": [0.1 * i for i in range(10)]}}
    paths = {"a": path([0.5] * 10), "old": None, "barred": path([0.5] * 10, half=0.5), "others": path([0.5] * 12)}
    a, old, barred, others = (save(tmp_path / name, values, path=at) for name, at in paths.items())
    for folder, says in (
        (old, "old has no measured path, like an older run or one at a given alpha: controlled checkpoints are"),
        (barred, "barred is not on a linear path (retrained or distilled?): controlled checkpoints are"),
        (others, "a and others: the paths are not over the same clusters of documents"),
    ):
        result = compare([a, folder])
        assert any(note.startswith(says) for note in result.notes), result.notes
        assert only(result).metric == "rouge"
        assert only(result).p_corrected == 1


def test_other_metrics_at_equal_retention_come_after_the_primary_one():
    pair = []
    for name, left in (("a", 0.6), ("b", 0.4)):
        made_of = path([left + 0.01 * i for i in range(10)])
        forget = {"probability": path([left / 2] * 10).forget[METRIC]} | made_of.forget
        splits = dict.fromkeys(forget, "forget")
        pair.append(dataclasses.replace(record(name), path=dataclasses.replace(made_of, forget=forget, splits=splits)))
    tests, curves = residual_of(*pair)
    assert [(t.metric, t.retention, t.primary) for t in tests] == [
        (METRIC, "95%", True),
        (METRIC, "90% to 100%", False),
        ("probability", "95%", False),
    ]
    assert [t.decided for t in tests] == [True, False, True]  # in every draw b has as much less
    (others,) = words.sentences(tests, curves)[1:]
    assert others.startswith("Residual by other metrics: b is better than a by probability (forget) (p ≤ ")
    (alone,) = residual_of(*pair, metrics=("probability",))[0]
    assert (alone.metric, alone.primary, alone.decided) == ("probability", False, True)
