"""Sampling: the texts come from the model's own distribution, and what follows from them is by hand."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from tests import CHECKPOINTS
from tests.command import run
from unlearn_metrics.backends.sampling import _cut, sample
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.sampling import Sampling, summed
from unlearn_metrics.metrics.sampled import leak_rate_bound, mean_score_bound

PROMPT = "Question:"  # after which a dozen words are likely


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_have_the_models_distribution(lm, temperature):
    """The first token of 1,500 samples, against softmax of the logits over the temperature (chi-square)."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.tok_encode(PROMPT)])).logits[0, -1].float()
    p = (logits / temperature).softmax(-1).tolist()
    likely = sorted(range(len(p)), key=lambda i: -p[i])[:8]
    names = {lm.tok_decode([i]): place for place, i in enumerate(likely)}
    texts = sample(lm, PROMPT, 1_500, 1, [], temperature, seed=1)
    counts = Counter(names.get(text, 8) for text in texts)
    expected = [p[i] for i in likely] + [1 - sum(p[i] for i in likely)]
    kept = [i for i in range(9) if expected[i] * len(texts) >= 5]
    rest = 1 - sum(expected[i] for i in kept)
    observed = [counts[i] for i in kept] + [len(texts) - sum(counts[i] for i in kept)] * (rest > 1e-9)
    wanted = [expected[i] * len(texts) for i in kept] + [rest * len(texts)] * (rest > 1e-9)
    if len(observed) > 1:
        assert chisquare(observed, wanted, sum_check=False).pvalue > 1e-4
    else:
        assert observed == [len(texts)]


def test_a_small_top_p_leaves_the_likeliest_token(lm):
    assert len(set(sample(lm, PROMPT, 40, 1, [], top_p=0.01))) == 1


def test_a_seed_gives_the_same_texts_and_samples_differ(lm):
    one, again, other = (sample(lm, "Q", 5, 8, [], 1.5, seed=seed) for seed in (3, 3, 4))
    assert one == again != other
    assert len(set(one)) > 1
    with pytest.raises(InputError, match="leave no room for a prompt"):
        sample(lm, "Q", 1, lm.max_length, [])


def test_texts_end_at_the_first_stop():
    assert _cut("a 2. b\nc", ["\n", " 2."]) == "a"
    assert _cut("a b", ["\n", ""]) == "a b"


def test_summed_by_hand():
    """Two of four samples leak of one document, none of the other."""
    documents = [
        {"id": i, "cluster": i, "rouge": shares, "leaked": leaked}
        for i, (shares, leaked) in enumerate((([1.0, 1.0, 0.5, 0.0], 2), ([0.25] * 4, 0)))
    ]
    found = summed(documents, Sampling(count=4, alpha=0.1), "by hand")
    assert {k: score.value for k, score in found.leak_at.items()} == {1: 0.25, 2: pytest.approx((5 / 6) / 2)}
    bounds = [leak_rate_bound(4, leaked, 0.1) for leaked in (2, 0)]
    assert [d["rate_bound"] for d in found.documents] == bounds
    assert found.bounds["rate_bound"].value == pytest.approx(sum(bounds) / 2)
    expected = [mean_score_bound(d["rouge"], 0.1) for d in documents]
    assert found.bounds["rouge_bound"].value == pytest.approx(sum(expected) / 2)
    documents[1]["rouge"] = [None] * 4  # a reference without words
    unknown = summed(documents, Sampling(count=4), "by hand")
    assert unknown.documents[1]["rouge_bound"] is None
    assert (unknown.bounds["rouge_bound"].n, unknown.bounds["rouge_bound"].unscored) == (1, 1)


def test_the_command(tmp_path):
    """What the original knows by heart leaks in every sample, verbatim."""
    out = tmp_path / "leaks.json"
    given = ("--benchmark", "demo", "--samples", 3, "--limit", 2, "--recall", 0.9, "--out", out)
    done = run("sample", CHECKPOINTS / "original", *given)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [d["leaked"] for d in found["documents"]] == [3, 3]
    assert found["leak_at"]["1"]["value"] == found["bounds"]["rate_bound"]["value"] == 1
    assert math.isclose(found["documents"][0]["rouge"][0], 1)
    done = run("sample", CHECKPOINTS / "original", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run("sample", tmp_path / "nothing", *given[:-1], tmp_path / "x")
    assert done.returncode == 2
    assert not (tmp_path / "x").exists()
