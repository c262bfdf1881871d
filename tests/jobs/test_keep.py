"""The search along a control's path: whatever the shape of retention, what it chooses was measured and holds."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from unlearn_metrics.jobs.keep import RESOLUTION, search
from unlearn_metrics.scores.curve import STEP, TOP


def on(curve: Callable[[float], float], target: float, **more: float) -> tuple[float, dict[float, float]]:
    """(strength chosen, strength -> retention of all that were tried, in order)."""
    alpha, tried = search(curve, lambda a: curve(a) >= target, **more)
    assert len(tried) == len({*tried})
    return alpha, {a: curve(a) for a in tried}


@given(edge=st.floats(0.01, 0.99))
def test_the_edge_of_a_step_is_found(edge: float):
    alpha, tried = on(lambda a: 1.0 if a <= edge else 0.0, 0.5)
    assert edge - RESOLUTION <= alpha <= edge
    assert alpha == 0 or tried[alpha] >= 0.5
    assert len(tried) <= 16 + 4


@given(st.lists(st.floats(0, 1), min_size=97, max_size=97), st.floats(0.05, 1))
def test_on_any_curve_the_strength_chosen_holds_and_none_tried_above_it_does(values: list[float], target: float):
    alpha, tried = on(lambda a: values[round(a * 64)], target, top=TOP)
    assert alpha == max((a for a, retained in tried.items() if a <= 1 and retained >= target), default=0.0)


def test_retention_is_not_taken_to_fall_monotonically():
    # fails at 1, holds on [0.6, 0.8], fails on [0.3, 0.6), holds below: bisection from [0, 1] would end near 0.3
    alpha, _ = on(lambda a: float(a < 0.3 or 0.6 <= a <= 0.8), 1.0)
    assert 0.8 - RESOLUTION <= alpha <= 0.8


def test_a_steep_fall_is_resolved_in_retention_not_in_strength():
    """As on SmolLM2, where alpha 0.25 retains 0.96 and 0.2578 retains 0.83."""
    alpha, tried = on(lambda a: min(1.0, max(0.0, 1 - 17 * (a - 0.2476))), 0.95)
    near = [retained for a, retained in sorted(tried.items()) if 0.9 <= retained <= 1]
    assert max(b - a for a, b in zip(near[1:], near, strict=False)) <= 3 * STEP  # in the 16 points that are measured
    assert tried[alpha] >= 0.95


def test_a_model_that_loses_nothing_is_followed_past_itself_where_that_means_something():
    kept, tried = on(lambda a: 1 - max(0.0, a - 1) / 5, 0.95, top=TOP)
    assert kept == 1
    assert max(tried) == TOP
    assert max(on(lambda a: 1.0, 0.95)[1]) == 1
    assert on(lambda a: 0.0, 0.95)[0] == 0
