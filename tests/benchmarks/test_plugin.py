"""lm-eval's rules for plugins: an entry point for each metric, which names the decorated function."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint

import pytest
from lm_eval.api import registry

from tests import ROOT
from unlearn_metrics.metrics import JUDGED, METRICS, good

ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]


def test_there_is_an_entry_point_for_each_metric():
    assert set(ENTRIES["lm_eval.metrics"]) == METRICS.keys() - JUDGED
    assert set(ENTRIES["lm_eval.aggregations"]) == {"mean_scored"}


@pytest.mark.parametrize("group", ["lm_eval.metrics", "lm_eval.aggregations"])
def test_an_entry_point_is_the_object_that_its_module_registers(group):
    """By its place, too: else lm-eval takes the placeholder and the decorated function for two things of one name."""
    known = registry.metric_registry if group == "lm_eval.metrics" else registry.aggregation_registry
    for name, value in ENTRIES[group].items():
        loaded = EntryPoint(name, value, group).load()
        assert value == f"{loaded.__module__}:{loaded.__qualname__}"
        assert known.get(name) is loaded


def test_metrics_bring_their_direction_and_aggregation():
    for name in ENTRIES["lm_eval.metrics"]:
        assert registry.is_higher_better(name) == (good(name, "retain") == "higher")
        assert registry.get_metric_aggregation(name) is registry.get_aggregation("mean_scored")


def test_models_are_where_they_say():
    for name, value in ENTRIES["lm_eval.models"].items():
        assert EntryPoint(name, value, "lm_eval.models").load() is registry.get_model(name)
