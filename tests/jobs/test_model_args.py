"""--model-args: how the model is loaded, in lm-eval's spelling."""

from __future__ import annotations

import pytest

from tests import CHECKPOINTS
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.opening import build_lm, open_pair
from unlearn_metrics.settings import Settings, chosen


def test_they_reach_transformers_and_lm_eval():
    original, unlearned = open_pair(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "moderate"))
    settings = chosen({"device": "cpu", "model_args": "attn_implementation=eager,max_length=64"})
    lm = build_lm(original, unlearned, settings)
    assert (lm.model.config._attn_implementation, lm.max_length) == ("eager", 64)


@pytest.mark.parametrize(
    ("model_args", "said"),
    [
        ("max_lenght=64", "model_args: there is no 'max_lenght' to set; did you mean max_length?"),
        ("pretrained=other", "there is no 'pretrained' to set"),  # which model it is, is no matter of loading
        ("dtype=float16", "there is no 'dtype' to set"),
        ("parallelize", "'parallelize' has no value; it is written parallelize=VALUE"),
    ],
)
def test_what_cannot_be_set_is_refused_before_any_work(model_args: str, said: str):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        chosen({"model_args": model_args})


def test_remote_code_stays_off_unless_it_is_asked_for():
    assert "trust_remote_code" not in Settings.model_args
