"""What the task tests share: values by plain transformers code, and lm-eval's command with the network blocked."""

import json
import math
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# Imported by every Python that has its folder on PYTHONPATH: any use of the network is noted and refused.
BLOCK_NETWORK = """
import os, socket

def refuse(*args, **kwargs):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        print(args, file=file)
    raise OSError("the network is blocked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def forward(lm: HFLM, prompt: str, answer: str) -> dict[str, np.ndarray]:
    """One sequence, alone: the answer's tokens and end-of-sequence, the arg-max and the log-probability of each."""
    context, whole = lm.tokenizer(prompt)["input_ids"], lm.tokenizer(prompt + answer)["input_ids"]
    assert whole[: len(context)] == context
    ids = [*whole, lm.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, len(context) - 1 : -1].double()
    targets = torch.tensor(ids[len(context) :])
    logprob = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    return {"tokens": targets.numpy(), "argmax": logits.argmax(-1).numpy(), "logprob": logprob.numpy()}


def generate(lm: HFLM, prompt: str, tokens: list[int] = (), limit: int = 200) -> list[int]:
    """Greedy decoding after the prompt and the first tokens of an answer."""
    ids = torch.tensor([[*lm.tok_encode(prompt), *tokens]])
    config = {"max_new_tokens": limit, "do_sample": False, "pad_token_id": lm.tokenizer.pad_token_id}
    with torch.no_grad():
        return lm.model.generate(ids, attention_mask=torch.ones_like(ids), **config)[0, ids.shape[1] :].tolist()


def text_of(lm: HFLM, prompt: str, limit: int = 200) -> str:
    return lm.tokenizer.decode(generate(lm, prompt, limit=limit), skip_special_tokens=True)


def strength(tokens: list[int], argmax: list[int]) -> float:
    """Extraction strength, token by token from the end; the last position is end-of-sequence."""
    n = k = len(tokens) - 1
    while k > 0 and tokens[k - 1] == argmax[k - 1]:
        k -= 1
    return 1 - k / n


def exact(scores) -> float:
    hits = [a == t for a, t in zip(scores["argmax"], scores["tokens"], strict=True)][:-1]
    return sum(hits) / len(hits)


def prob(scores) -> float:
    return math.exp(sum(scores["logprob"]) / len(scores["logprob"]))


def ask(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def heed_ctrl_c() -> None:
    """For Popen's preexec_fn: what a shell starts in the background, pytest for one, is deaf to SIGINT, and so is its
    child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(*args: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCK_NETWORK)
    source = Path(__file__).parent.parent  # this tree, whichever is installed
    extra = {
        "PYTHONPATH": f"{site}{os.pathsep}{source}",
        "NETWORK_LOG": str(folder / "network"),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    base = {k: v for k, v in os.environ.items() if k not in OFFLINE}
    return subprocess.run(args, cwd=folder, env=base | extra, capture_output=True, text=True, timeout=1200)
