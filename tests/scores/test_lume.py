"""LUME's official scores by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scores.test_composites import losing
from unlearn_metrics.scores.composites import COMPOSITES, compose

KINDS = [f"Task{i} {kind}" for i in (1, 2, 3) for kind in ("sc", "qa")]


def documents(split: str, said: str, kinds: list[str] = KINDS, each: int = 1, **by_kind: str) -> list[dict[str, Any]]:
    """Documents of each kind; all are to say "a b" and say `said`, or what is given for their kind."""
    return [
        {"id": i, "split": split, "cluster": i, "kind": kind, "question": f"q{i}", "reference": "a b"}
        | {"generation": by_kind.get(kind.replace(" ", "_"), said)}
        for i, kind in enumerate(kinds * each)
    ]


def found(splits: dict[str, list[dict[str, Any]]], name: str = "lume_task_aggregate", benchmark: str = "lume") -> Any:
    return compose(splits, benchmark=benchmark)[name]


def test_task_aggregate_by_hand():
    """Retain: completions recall 1 or, of task 1, 1/2; answers are right but for half of task 3's. Forget: nothing is
    recalled, but for half of what completes task 2's."""
    forget = documents("forget", "c", each=2, Task2_sc="a c")
    retain = documents("retain", " A b", each=2, Task1_sc="b c")
    retain[5]["generation"] = "a b c"  # not the whole answer
    score = found({"forget": forget, "retain": retain})
    assert score.value == pytest.approx(12 / (9 / 1 + 3 / 0.5))
    assert (score.n, score.unscored) == (24, 0)


def test_what_is_regurgitated_or_lost_altogether_makes_it_0():
    right, wrong = documents("retain", "a b"), documents("forget", "c")
    assert found({"forget": wrong, "retain": right}).value == 1
    assert found({"forget": documents("forget", "c", Task3_qa="A B "), "retain": right}).value == 0
    assert found({"forget": wrong, "retain": documents("retain", "a b", Task3_sc="c")}).value == 0


def test_a_completion_is_no_answer_and_an_answer_no_completion():
    """What counts for completions does not for answers: all recall half, no answer is matched."""
    half = documents("retain", "a")
    assert found({"forget": documents("forget", "c"), "retain": half}).value == 0
    half = documents("retain", "a", Task1_qa="a b", Task2_qa="a b", Task3_qa="a b")
    assert found({"forget": documents("forget", "c"), "retain": half}).value == pytest.approx(12 / (9 + 3 / 0.5))


def test_a_limit_that_leaves_a_task_out_is_told():
    score = found({"forget": documents("forget", "c", KINDS[:3]), "retain": documents("retain", "a b")})
    assert (score.value, score.undefined) == (None, "needs documents of Task2 qa on forget")


def test_final_score_by_hand():
    """AUC 3/4 of losses, 1/2 of MMLU right, an aggregate of 1."""
    splits = {"forget": documents("forget", "c"), "retain": documents("retain", "a b")}
    splits["mmlu"] = [{"id": i, "split": "mmlu", "cluster": i, "logged": {"mmlu.acc": float(i)}} for i in range(2)]
    for split, losses in (("forget_mia", (1, 3)), ("holdout_mia", (2, 4))):
        splits[split] = [
            {"id": i, "split": split, "cluster": i, "reference": f"{split} {i}", "answer": losing(loss, loss)}
            for i, loss in enumerate(losses)
        ]
    score = found(splits, "lume_final_score", "lume_privacy")
    assert score.value == pytest.approx((1 + 0.5 + (1 - 2 * 0.25)) / 3)
    del splits["mmlu"]
    assert "--utility mmlu" in found(splits, "lume_final_score", "lume_privacy").undefined


def test_it_is_of_lume_alone():
    splits = {"forget": documents("forget", "c"), "retain": documents("retain", "a b")}
    assert "lume_task_aggregate" not in compose(splits, benchmark="tofu_forget05")
    assert "lume_final_score" not in compose(splits, benchmark="lume")  # there are no members
    assert COMPOSITES["lume_task_aggregate"].better == "higher"
