"""From the values of documents along a path to what a record says at equal retention, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.paths import METRIC, path
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import Control, Headline, MeasuredPath, Score
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores import curve
from unlearn_metrics.scores.equal_retention import (
    MAX_CLUSTERS,
    barrier,
    measured,
    paired,
    residuals,
    with_retain_only,
)


def straight(authors: int = 6, barred: bool = False) -> MeasuredPath:
    """Retention falls from 1 to 0.8 and the forget set from 0.9 to 0.1 along alpha, the same for every document."""
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    clusters = [i // 2 for i in range(2 * authors)]
    at = {
        alpha: {
            "retain": {"extraction_strength": [0.2 if barred and alpha == 0.5 else 1 - 0.2 * alpha] * len(clusters)},
            "forget": {"probability": [0.9 - 0.8 * alpha] * len(clusters)},
        }
        for alpha in alphas
    }
    return measured("extraction_strength", "retain", at, {"retain": clusters, "forget": clusters})


def test_sums_by_hand():
    path = straight(authors=2)
    calibration, evaluation = path.retain
    assert calibration.clusters == evaluation.clusters == [0, 1]
    assert calibration.total[4] == pytest.approx([0.8, 0.8])  # one document of each author's two in either half
    assert calibration.count == evaluation.count == [[1, 1]] * 5
    assert path.forget["probability"].total[2] == pytest.approx([1.0, 1.0])
    assert path.splits == {"probability": "forget"}


def test_what_is_still_there_by_hand():
    """Retention 0.95 is at alpha 1/4, where the forget set has 0.7; the mean over [0.90, 1] is that at 0.95."""
    found = residuals(straight(), 0.95, seed=0)["probability"]
    assert found.value.value == pytest.approx(0.7)
    assert (found.value.low, found.value.high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert found.alpha == pytest.approx(0.25)
    assert found.average.value == pytest.approx(0.7, abs=0.01)  # at 1 it is the point before the first below
    assert {point.retention: point.value.value for point in found.curve}[0.9] == pytest.approx(0.5)
    assert found.above_floor is None
    assert [*found.sensitivity.values()] == pytest.approx([0.7] * 4)


def test_above_a_model_that_never_saw_the_forget_set_by_hand():
    documents = [{"id": i, "split": "forget", "cluster": i // 2, "logged": {"probability": 0.3}} for i in range(12)]
    found = residuals(with_retain_only(straight(), {"forget": documents}), 0.95, seed=0)["probability"]
    assert found.above_floor is not None
    assert found.above_floor.value == pytest.approx((0.7 - 0.3) / (0.9 - 0.3))


def test_a_retention_that_is_not_reached_is_unknown_not_0():
    found = residuals(straight(), 0.7, seed=0)["probability"]
    assert (found.value.value, found.alpha) == (None, None)
    assert "does not fall" in str(found.value.why)
    said = verdict(SCORES, CONTROL, Headline(["probability"], "extraction_strength", 0.0), {"probability": found})
    assert "; at 70% of the original's retention its residual is unknown: retention does not fall so far" in said


def test_fewer_than_five_clusters_have_no_interval():
    found = residuals(straight(authors=4), 0.95, seed=0)["probability"]
    assert found.value.value == pytest.approx(0.7)
    assert (found.value.low, found.value.high) == (None, None)
    assert "4 clusters" in str(found.value.why)


def test_a_barrier_is_seen():
    assert barrier(straight()) is False
    assert barrier(straight(barred=True)) is True
    path = straight()
    short = replace(path, alphas=path.alphas[:2])
    assert barrier(short) is None  # neither end nor middle was measured


def test_more_clusters_than_a_record_holds_are_drawn_in_groups_of_neighbours():
    n = 2 * MAX_CLUSTERS + 10
    values = np.linspace(0, 1, n).tolist()
    at = {a: {"retain": {"m": [1.0] * n}, "forget": {"f": values}} for a in (0.0, 1.0)}
    path = measured("m", "retain", at, {"retain": [*range(n)], "forget": [*range(n)]})
    sums = path.forget["f"]
    assert len(sums.clusters) == -(-n // 3) <= MAX_CLUSTERS
    assert sums.total[0][0] == pytest.approx(sum(values[:3]))
    assert sum(sums.count[0]) == n


CONTROL = Control("mix", 0.25, keep=0.95, metric="extraction_strength")
SCORES = {
    model: {
        "forget": {"probability": Score(value, None, None, 9, 0)},
        "retain": {"extraction_strength": Score(1.0, None, None, 9, 0)},
    }
    for model, value in (("original", 0.9), ("unlearned", 0.09), ("controlled", 0.6))
}


def test_the_verdict_is_about_equal_retention():
    found = residuals(straight(), 0.95, seed=0)
    said = verdict(SCORES, CONTROL, Headline(["probability"], "extraction_strength", 0.0), found)
    assert said == (
        "As published, the unlearned model keeps 10% of the original's probability on the forget set and 100% of the "
        "original's extraction_strength on retain; held to 95% of the original's retention (mix, alpha 0.25), its "
        "residual probability is 0.70 [0.70, 0.70]."
    )


def test_models_are_paired_on_the_same_draws():
    """One has 0.1 more in every cluster: so in every draw, though each by itself varies."""
    less = path([0.2, 0.4, 0.3, 0.7, 0.5, 0.6])
    more = path([0.3, 0.5, 0.4, 0.8, 0.6, 0.7])
    found, clusters = paired([less, more], METRIC, (0.95, 0.975))
    assert found.shape == (2, 2, 1 + curve.DRAWS)
    assert clusters == 6
    assert found[:, :, 0] == pytest.approx(np.array([[0.45, 0.725], [0.55, 0.775]]))
    assert found[1, 0] - found[0, 0] == pytest.approx(np.full(1 + curve.DRAWS, 0.1))
    assert found[0, 0].std() > 0.05
    again, _ = paired([more], METRIC)
    assert again[0, 0].tolist() == found[1, 0].tolist()  # whoever else is there


def test_other_clusters_cannot_be_paired():
    six = path([0.5] * 6)
    with pytest.raises(InputError, match="same clusters"):
        paired([six, path([0.5] * 7)], METRIC)
    with pytest.raises(InputError, match="not measured along the path of every model"):
        paired([six, replace(six, forget={}, splits={})], METRIC)


@pytest.mark.parametrize(
    ("control", "ends"),
    [
        (Control("mix", 1.0), "without a control, forgetting and damage cannot be distinguished."),  # given, not found
        (Control("mix", 0.0), "at the given alpha 0 it is the original."),
        (replace(CONTROL, alpha=1.0, target=0.95), "it needs no control."),
        (replace(CONTROL, alpha=0.0, target=0.95), "so under control nothing is forgotten."),
    ],
)
def test_a_given_alpha_says_nothing_about_what_is_kept(control: Control, ends: str):
    assert verdict(SCORES, control, Headline(["probability"], "extraction_strength", 0.0)).endswith(ends)
