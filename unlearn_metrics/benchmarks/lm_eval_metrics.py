"""The metrics and their aggregation under lm-eval's names, so that it looks for none of them on the network.

Each is a function of this module with its own name: an entry point of the group `lm_eval.metrics` names it, and loading
it runs lm-eval's decorators, as its plugin guide wants it. `lm_eval --plugins unlearn_metrics.benchmarks.suites` does
the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.registry import register_aggregation, register_metric

from unlearn_metrics.metrics import JUDGED, METRICS


@register_aggregation("mean_scored")
def mean_scored(values: Sequence[float]) -> float:
    """Mean over the documents that have a value. NaN if none has."""
    scored = [v for v in values if not math.isnan(v)]
    return float(np.mean(scored)) if scored else math.nan


_known = {*JUDGED}  # "perplexity" is another thing in lm-eval, and needs a judge here


def register_all() -> None:
    """Register the metrics with lm-eval, those too that were added since."""
    for name in [name for name in METRICS if name not in _known]:
        _register(name)
        _known.add(name)


def _register(name: str) -> None:
    metric = METRICS[name]

    def function(*arguments: Any, **options: Any) -> Any:
        return metric.fn(*arguments, **options)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = metric.fn.__doc__
    better = metric.better == "higher"
    globals()[name] = register_metric(metric=name, higher_is_better=better, aggregation="mean_scored")(function)


register_all()
