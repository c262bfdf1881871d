"""A real server that this project did not write: llama-cpp-python's, over the demo's checkpoint as GGUF.

It compiles for minutes, so it is not in the test extra. In any environment:
    pip install "llama-cpp-python[server]" gguf
    LLAMA_CPP_PYTHON=/path/to/its/python python -m pytest tests/backends/test_llama_cpp.py
"""

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.gguf import GGUFLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

from unlearn_metrics.backends import bisection, token_scores
from unlearn_metrics.documents import UNKNOWN, scores_from_lists
from unlearn_metrics.metrics.memorization import extraction_strength

PYTHON = os.environ.get("LLAMA_CPP_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LLAMA_CPP_PYTHON names no Python with llama-cpp-python[server]"),
]

# argv: tensors (npz), config, tokenizer, GGUF to write, whether llama.cpp puts a start token before a prompt
CONVERT = """
import json, sys
import gguf, numpy as np
tensors, c, t = np.load(sys.argv[1]), json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
w = gguf.GGUFWriter(sys.argv[4], "llama")
w.add_block_count(c["num_hidden_layers"]); w.add_context_length(c["max_position_embeddings"])
w.add_embedding_length(c["hidden_size"]); w.add_feed_forward_length(c["intermediate_size"])
w.add_head_count(c["num_attention_heads"]); w.add_head_count_kv(c["num_key_value_heads"])
w.add_layer_norm_rms_eps(c["rms_norm_eps"]); w.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
w.add_rope_dimension_count(c["head_dim"]); w.add_vocab_size(c["vocab_size"])
vocab = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
special = {a["id"] for a in t["added_tokens"]}
w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2"); w.add_token_list(vocab)
w.add_token_types([3 if i in special else 1 for i in range(len(vocab))])
w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
w.add_bos_token_id(0); w.add_eos_token_id(1); w.add_pad_token_id(2); w.add_add_bos_token(sys.argv[5] == "yes")
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
for name, x in tensors.items():
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads:  # llama.cpp rotates neighbouring rows
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    w.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(x))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
"""


@pytest.fixture(scope="module")
def model(demo, tmp_path_factory) -> HFLM:
    """By hf, with a start token before each prompt, as llama.cpp asks the model below."""
    folder = tmp_path_factory.mktemp("hf")
    shutil.copytree(demo / "checkpoints" / "moderate", folder, dirs_exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    start = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    tokenizer["post_processor"]["single"].insert(0, start)
    tokenizer["post_processor"]["special_tokens"] = {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    lm = HFLM(str(folder), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    assert lm.tok_encode("He")[0] == 0
    return lm


@pytest.fixture(scope="module")
def requests(demo) -> list[Instance]:
    rows = [json.loads(line) for line in (demo / "data" / "forget_perturbed.json").read_text().splitlines()[:8]]
    pairs = [(f"Question: {r['question']}\nAnswer:", f" {r['answer']}") for r in rows]
    return [Instance("token_scores", {}, pair, i, metadata=("demo", i, 1)) for i, pair in enumerate(pairs)]


@contextlib.contextmanager
def serve(model: HFLM, folder: Path, start_token: str) -> Iterator[str]:
    state = {k: v.numpy() for k, v in model.model.state_dict().items() if k != "lm_head.weight"}
    np.savez(folder / "tensors.npz", **state)
    source = Path(model.config._name_or_path)
    files = [folder / "tensors.npz", source / "config.json", source / "tokenizer.json", folder / "demo.gguf"]
    subprocess.run([PYTHON, "-c", CONVERT, *map(str, files), start_token], check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    settings = {"model": folder / "demo.gguf", "logits_all": "true", "n_ctx": 256, "port": port, "n_threads": 1}
    settings |= {"type_k": 0, "type_v": 0}  # keys and values in float32
    arguments = [str(x) for name, v in settings.items() for x in (f"--{name}", v)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([PYTHON, "-m", "llama_cpp.server", *arguments], stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models")
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def api(url: str, model: HFLM) -> LocalCompletionsAPI:
    """Its server takes text only, one prompt at a time."""
    tokenizer = {"tokenizer": model.config._name_or_path, "tokenizer_backend": "huggingface"}
    return LocalCompletionsAPI(
        f"{url}/v1/completions", model="x", tokenized_requests=False, max_length=256, **tokenizer
    )


def test_llama_cpp_gives_what_hf_gives(model, requests, tmp_path, caplog):
    wanted = [scores_from_lists(lists) for lists in token_scores(model, requests)]
    with serve(model, tmp_path, "yes") as url, caplog.at_level(logging.WARNING, "unlearn_metrics"):
        found = [scores_from_lists(lists) for lists in token_scores(api(url, model), requests)]
        strings = GGUFLM(url, max_length=256)
        words = bisection.by_words(strings, [r.args for r in requests])
        cuts = [
            [strings.loglikelihood([Instance("", {}, (prompt + answer[:i], answer[i:]), 0)])[0][1] for i in spaces]
            for prompt, answer in (r.args for r in requests)
            for spaces in [[i for i, c in enumerate(answer) if c == " "]]
        ]
    worst = 0.0
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(f.tokens, w.tokens)
        np.testing.assert_array_equal(f.match, w.match)
        worst = max(worst, float(np.abs(f.logprob - w.logprob).max()))
        assert extraction_strength(f) == extraction_strength(w)
        assert f.loss == pytest.approx(w.loss, abs=1e-3)
    print(f"largest difference of a log-probability: {worst:.1e} nats")
    assert worst < 1e-3
    assert 0 < sum(map(extraction_strength, found)) < len(found)
    assert "min_k_plus_plus for 8 of 8 answers" in caplog.text
    assert [w.revealed for w in words] == [flags.index(True) if True in flags else len(flags) for flags in cuts]


def test_without_a_start_token_its_figures_are_of_other_positions_and_are_not_taken(model, requests, tmp_path):
    """llama-cpp-python 0.3 gives log p(y_i) after y_1..y_i then: lm-eval's own loglikelihood believes it."""
    with serve(model, tmp_path, "no") as url:
        found = [scores_from_lists(lists) for lists in token_scores(api(url, model), requests)]
    for f in found:
        assert np.isnan(f.logprob).all()
        assert (f.argmax == UNKNOWN).all()
        assert math.isnan(extraction_strength(f))
