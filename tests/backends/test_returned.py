"""What vLLM's objects tell of an answer, whole and as faulty builds leave things out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from unlearn_metrics.backends.returned import NOTHING, parse_prompt_logprobs

TOKENS = [5, 6, 7, 8]


def told(logprob: float, rank: int = 1) -> SimpleNamespace:
    return SimpleNamespace(logprob=logprob, rank=rank, decoded_token="x")


FIRST: list[Any] = [None, {6: told(-1.0)}, {7: told(-0.5)}]
LAST = {8: told(-2.0, 2), 9: told(-0.1)}


@pytest.mark.parametrize(
    ("given", "last_two"),
    [
        pytest.param([*FIRST, LAST], [(-0.5, 7), (-2.0, 9)], id="whole"),
        pytest.param([None], [NOTHING, NOTHING], id="only the placeholder"),
        pytest.param(None, [NOTHING, NOTHING], id="none at all"),
        pytest.param([*FIRST, {9: told(-0.1)}], [(-0.5, 7), NOTHING], id="without the token"),
        pytest.param([*FIRST, {}], [(-0.5, 7), NOTHING], id="empty"),
        pytest.param([*FIRST, None], [(-0.5, 7), NOTHING], id="null"),
        pytest.param([*FIRST, LAST | {8: told(-math.inf, 2)}], [(-0.5, 7), (math.nan, 9)], id="minus infinity"),
        pytest.param([*FIRST, LAST, {1: told(-2.0)}], [(-0.5, 7), (-2.0, 9)], id="one more"),
    ],
)
def test_positions_that_vllm_does_not_tell_are_nothing(given, last_two):
    found = parse_prompt_logprobs(TOKENS, SimpleNamespace(prompt_logprobs=given), 2)
    assert [position[1] for position in found] == [position[1] for position in last_two]
    assert [p[0] for p in found] == pytest.approx([p[0] for p in last_two], nan_ok=True)


def test_an_answer_cut_from_its_start():
    found = parse_prompt_logprobs([7, 8], SimpleNamespace(prompt_logprobs=[{7: told(-0.5)}, LAST]), -1)
    assert found[0] == NOTHING or math.isnan(found[0][0])
    assert found[1:] == [(-0.5, 7), (-2.0, 9)]
