"""Every metric as an evaluate.Metric: the same numbers, alone and combined, and nothing from the network."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from tests import ROOT
from unlearn_metrics.documents import SAMPLINGS, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.scores.evaluate_modules import INPUTS, load


def token_scores(seed: int, n: int) -> TokenScores:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 200_000, n + 1).astype(np.int32)
    argmax = np.where(random.random(n + 1) < 0.7, tokens, 0).astype(np.int32)
    logp = [-random.random(n + 1).astype(np.float32) for _ in range(2)]
    drawn = [-random.random(n + 1).astype(np.float32) for _ in SAMPLINGS]
    return TokenScores(tokens, argmax, *logp, random.random(n + 1).astype(np.float32), *drawn)


ROLES = ("answer", "paraphrased_question", "true_answer", "judged_generation", "self_judged_generation")
TEXTS = [("Oslo, I am told, in Oslo.", "She was born in Oslo."), ("", "No."), ("I don't know.", "In Bergen, in 1950.")]


def document(i: int) -> dict[str, Any]:
    roles = {role: token_scores(10 * i + r, 3 + i) for r, role in enumerate(ROLES)}
    if i == 1:  # an empty generation
        roles |= {"judged_generation": None, "self_judged_generation": None}
    wrong = [token_scores(100 * i + j, 2 + j) for j in range(3)]
    texts = {"generation": TEXTS[i][0], "reference": TEXTS[i][1]}
    return (
        roles
        | texts
        | {"wrong_answers": wrong, "split": ("forget", "retain", "retain")[i], "revealed": i}
        | {"clean_probability": (0.9, None, 0.25)[i], "gradient": (0.3, 7.0, 0.01)[i]}
        | {"similarity": (0.4, 0.2, 0.7)[i], "entailed": (0.1, 0.6, 0.9)[i], "judged": (1.0, 1.0, 0.0)[i]}
    )


DOCUMENTS = [document(i) for i in range(3)]


def plain(value: Any) -> Any:
    """As it stands in lm-eval's samples."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.to_lists() if isinstance(value, TokenScores) else value


COLUMNS = {INPUTS.get(n, (n,))[0]: [plain(d[n]) for d in DOCUMENTS] for n in DOCUMENTS[0]}


def own(name: str) -> dict[str, Any]:
    return {c: COLUMNS[c] for c in (INPUTS.get(n, (n,))[0] for n in METRICS[name].needs)}


@pytest.mark.parametrize("name", METRICS)
def test_gives_what_the_function_gives(name: str):
    expected = [METRICS[name](d) for d in DOCUMENTS]
    values = load(name).compute(**own(name), aggregate=False)[name]
    assert values == pytest.approx(expected, rel=0, abs=0, nan_ok=True)  # bit for bit
    known = [v for v in expected if not math.isnan(v)]
    mean = math.exp(sum(map(math.log, known)) / len(known)) if METRICS[name].geometric else sum(known) / len(known)
    result = load(name).compute(**own(name))
    assert result == {name: pytest.approx(mean), f"{name}_unscored": 3 - len(known)}


def test_combined():
    """All at once, by compute and by adding document after document."""
    names = list(METRICS)
    together = evaluate.combine([load(name) for name in names]).compute(**COLUMNS)
    alone = {}
    for name in names:
        alone |= load(name).compute(**own(name))
    assert together == pytest.approx(alone, nan_ok=True)
    some = evaluate.combine([load(name) for name in ("rouge", "distinct_1")])
    for d in DOCUMENTS:
        some.add(prediction=d["generation"], reference=d["reference"])
    assert some.compute() == {k: together[k] for k in ("rouge", "rouge_unscored", "distinct_1", "distinct_1_unscored")}


@pytest.mark.parametrize("name", METRICS)
def test_says_what_it_is(name: str):
    module = load(name)
    assert (module.name, module.module_type) == (name, "metric")
    assert len(module.description.split()) > 3
    assert module.citation
    for column in own(name):
        assert column in module.inputs_description
        assert column in module.features


def test_bad_input_is_named():
    with pytest.raises(InputError, match="did you mean extraction_strength"):
        load("extraction_strenght")
    with pytest.raises(ValueError, match="truth_ratio needs wrong_answers, split"):
        load("truth_ratio").compute(true_answer=COLUMNS["true_answer"])
    for bad in ([[1], [1], [-1.0], [-1.0], [1.0]], [[1, 2], [1, 2], [-1.0], [-1.0, -1], [1.0, 1]], [[1, 2]] * 4):
        with pytest.raises(ValueError, match="document 1: token scores are the lists tokens, argmax"):
            load("probability").compute(answer=[COLUMNS["answer"][0], bad])
    with pytest.raises(TypeError, match="no argument 'agregate'"):
        load("rouge").compute(predictions=["a"], references=["a"], agregate=False)


def test_a_file_of_scores_serves_too(tmp_path: Path):
    """evaluate's own way: an Arrow file in its cache, gone afterwards."""
    module = load("rouge", keep_in_memory=False, cache_dir=str(tmp_path))
    assert module.compute(predictions=["a b"], references=["a b c d"])["rouge"] == 1 / 2
    assert not list(tmp_path.rglob("*.arrow"))


def test_neither_network_nor_lm_eval(tmp_path: Path):
    script = """
import socket, sys

def refuse(*args, **kwargs):
    raise SystemExit("the network was asked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from unlearn_metrics.scores.evaluate_modules import load
print(load("rouge").compute(predictions=["a"], references=["a b"]))
assert "lm_eval" not in sys.modules and "unlearn_metrics.backends" not in sys.modules
"""
    env = {k: v for k, v in os.environ.items() if "OFFLINE" not in k} | {"HF_HOME": str(tmp_path)}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "{'rouge': 0.5, 'rouge_unscored': 0}"), done.stderr
