"""What is judged again, and what is not: the decoder has the scores of its own texts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import hf
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.jobs.observing import judge, with_generation


@pytest.mark.parametrize("checkpoint", ["original", "excessive"])
def test_a_model_does_not_read_again_what_it_has_said(demo: Path, checkpoint: str) -> None:
    lm = HFLM(str(demo / "checkpoints" / checkpoint), device="cpu", dtype="float32", batch_size=1)
    said: dict[Pair, TokenScores] = {}
    tasks = suites.load("demo", demo / "data")
    documents = with_generation(suites.evaluate(lm, tasks, limit=6, said=said))
    for document in documents[:2]:  # a text that it has not said
        document["generation"] = f"{document['generation']} x"
    hf.work(lm).clear()
    plain, before = judge(lm, documents), Counter(hf.work(lm))
    hf.work(lm).clear()
    got = judge(lm, documents, known=said)
    assert 0 < hf.work(lm)["scored"] < before["scored"] / 2
    for mine, wanted in zip(got, plain, strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None and wanted is not None:
            assert mine.tokens.tolist() == wanted.tokens.tolist()
            assert mine.argmax.tolist() == wanted.argmax.tolist()
            for name in ("logprob", "mean", "variance"):
                np.testing.assert_allclose(getattr(mine, name), getattr(wanted, name), rtol=1e-5, atol=5e-5)
    assert suites.load("demo", demo / "data")["forget"].said is None
