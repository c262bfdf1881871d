"""What stands under a record's table."""

from __future__ import annotations

import dataclasses

from tests.reports.test_leaderboard import record, score
from unlearn_metrics.reports import table


def test_equivalence_is_said_of_each_model_that_has_an_interval():
    known, unknown = score(0.02, -0.01, 0.05), score(None)
    composites = {
        "unlearned": {"log_truth_ratio_difference": score(0.4, 0.3, 0.5)},
        "controlled": {"log_truth_ratio_difference": known},
        "original": {"log_truth_ratio_difference": unknown, "privleak": known},
    }
    assert table.composite_notes(dataclasses.replace(record(), composites=composites)) == [
        "as published: truth ratios on forget are further than 0.1 nats from the retain-only model's "
        "(mean log R +0.400 [+0.300, +0.500])",
        "under control: truth ratios on forget are equivalent to the retain-only model's within 0.1 nats "
        "(mean log R +0.020 [-0.010, +0.050])",
    ]
    assert table.composite_notes(record()) == []


def test_a_p_value_is_called_one():
    composites = {"unlearned": {"forget_quality": score(0.3), "model_utility": score(0.5)}}
    text = table.markdown(dataclasses.replace(record(), composites=composites))
    assert "| forget_quality (p-value) ↑ |" in text
    assert "| model_utility ↑ |" in text
