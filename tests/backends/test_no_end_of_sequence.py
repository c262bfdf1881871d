"""Tokenizers without a token that ends a text: what needs its log-probability is unknown, the rest is as ever."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import decoding, encoding, hf
from unlearn_metrics.documents import TOKEN_SCORE_FIELDS, UNKNOWN
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS

PROMPTS = ("Question: Who are you?\nAnswer:", "Question: Where is it?\nAnswer:")


@pytest.fixture
def endless(lm: HFLM) -> HFLM:
    """The same model behind a tokenizer without such a token, and with configs that name none."""
    model = copy.copy(lm)
    model.tokenizer = copy.deepcopy(lm.tokenizer)
    model.tokenizer.eos_token = None
    model._model = copy.deepcopy(lm.model)
    model._model.config.eos_token_id = model._model.generation_config.eos_token_id = None
    return model


def test_all_but_the_end_is_known(lm, endless):
    assert hf.end_of_sequence(endless) is None
    pairs = [encoding.encode(lm, prompt, " A friend of mine.") for prompt in (*PROMPTS, PROMPTS[0] * 40)]
    for one, other in zip(hf.token_scores(lm, pairs), hf.token_scores(endless, pairs), strict=True):
        for field in TOKEN_SCORE_FIELDS:
            np.testing.assert_allclose(getattr(other, field)[:-1], getattr(one, field)[:-1], rtol=1e-5)
        assert (other.tokens[-1], other.argmax[-1]) == (-1, UNKNOWN)
        assert math.isnan(METRICS["probability"]({"answer": other}))
        assert METRICS["extraction_strength"]({"answer": other}) == METRICS["extraction_strength"]({"answer": one})


def test_texts_end_at_their_limit(endless):
    kwargs = {"until": [], "max_gen_toks": 7, "do_sample": False}
    texts = decoding.greedy(endless, [(prompt, kwargs) for prompt in PROMPTS], [None, None])
    assert [len(endless.tok_encode(text)) for text in texts] == [7, 7]


def test_the_models_own_end_is_taken(lm, endless):
    endless.model.generation_config.eos_token_id = [lm.eot_token_id, 5]
    assert hf.end_of_sequence(endless) == lm.eot_token_id
    pair = encoding.encode(lm, PROMPTS[0], " Nobody.")
    assert hf.token_scores(endless, [pair])[0].loss == pytest.approx(hf.token_scores(lm, [pair])[0].loss, rel=1e-5)


def test_a_text_without_a_prompt_needs_a_token_to_begin_with(endless):
    endless.tokenizer.bos_token = None
    with pytest.raises(InputError, match="document 3: it has no prompt, and the tokenizer no token to begin"):
        encoding.encode(endless, "", "Text.", "document 3")
