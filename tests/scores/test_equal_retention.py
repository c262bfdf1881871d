"""What records say of paths, by hand: values of several models at the same retention, on the same draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.paths import path
from unlearn_metrics.errors import InputError
from unlearn_metrics.scores import curve, equal_retention

METRIC = "extraction_strength"


def test_models_are_paired_on_the_same_draws():
    """One has 0.1 more in every cluster: so in every draw, though each by itself varies."""
    less = path([0.2, 0.4, 0.3, 0.7, 0.5, 0.6])
    more = path([0.3, 0.5, 0.4, 0.8, 0.6, 0.7])
    found, clusters = equal_retention.paired([less, more], METRIC, (0.95, 0.975))
    assert found.shape == (2, 2, 1 + curve.DRAWS)
    assert clusters == 6
    assert found[:, :, 0] == pytest.approx(np.array([[0.45, 0.725], [0.55, 0.775]]))
    assert found[1, 0] - found[0, 0] == pytest.approx(np.full(1 + curve.DRAWS, 0.1))
    assert found[0, 0].std() > 0.05
    again, _ = equal_retention.paired([more], METRIC)
    assert again[0, 0].tolist() == found[1, 0].tolist()  # whoever else is there


def test_other_clusters_cannot_be_paired():
    six = path([0.5] * 6)
    with pytest.raises(InputError, match="same clusters"):
        equal_retention.paired([six, path([0.5] * 7)], METRIC)
    with pytest.raises(InputError, match="not measured along the path of every model"):
        equal_retention.paired([six, dataclasses.replace(six, forget={}, splits={})], METRIC)


def test_barrier():
    assert equal_retention.barrier(path([0.5] * 6, half=0.2))
    assert not equal_retention.barrier(path([0.5] * 6))
