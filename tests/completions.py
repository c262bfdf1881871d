"""A small OpenAI-compatible completion server over a real model, as a reference of the protocol (see vLLM's server).

Log-probabilities by one plain forward pass of transformers per prompt. `quirk` makes it a server as some are.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from lm_eval.models.huggingface import HFLM

QUIRKS = ("no echo", "no top_logprobs", "no special tokens", "values of the next token", "hidden start token")


@contextlib.contextmanager
def serve(lm: HFLM, quirk: str = "") -> Iterator[tuple[str, list[dict]]]:
    """(URL, what was asked of it so far)."""
    asked: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"eos_token": lm.tokenizer.eos_token, "bos_token": lm.tokenizer.bos_token})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock, torch.no_grad():
                if self.path == "/tokenize":
                    return self.answer({"tokens": encode(body["prompt"])})
                if self.path == "/detokenize":
                    return self.answer({"prompt": lm.tokenizer.decode(body["tokens"])})
                asked.append(body)
                if self.path.endswith("/chat/completions"):
                    text = generate(encode(body["messages"][-1]["content"]), body)
                    return self.answer({"choices": [{"index": 0, "message": {"content": text}}]})
                prompt = body["prompt"]
                prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
                prompts = [encode(p) if isinstance(p, str) else p for p in prompts]
                if body.get("echo"):
                    found = [{"text": "", "logprobs": echo(p)} for p in prompts]
                else:
                    found = [{"text": generate(p, body)} for p in prompts]
                # in no order, as the protocol allows
                return self.answer({"choices": [{"index": i} | c for i, c in enumerate(found)][::-1]})

    def encode(text: str) -> list[int]:
        return lm.tokenizer(text, add_special_tokens=False, split_special_tokens=quirk == "no special tokens").input_ids

    def generate(prompt: list[int], body: dict) -> str:
        out = lm.model.generate(
            torch.tensor([prompt]), max_new_tokens=body["max_tokens"], do_sample=False, pad_token_id=2
        )
        text = lm.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        for stop in body["stop"]:
            text = text.split(stop)[0]
        return text

    def echo(prompt: list[int]) -> dict:
        hidden = [lm.tokenizer.bos_token_id] if quirk == "hidden start token" else []
        log_p = lm.model(torch.tensor([hidden + prompt])).logits[0].log_softmax(-1)[len(hidden) :]
        ids = [*prompt, int(log_p[-1].argmax())]
        before = [None, *log_p]  # before[i] predicts ids[i]
        if quirk == "values of the next token":  # llama-cpp-python, for a prompt without a start token
            ids, before = prompt, [None, *log_p[1:]]
        if quirk == "ends hidden" and len(prompt) % 2:  # as llama-cpp-python leaves out a generated end-of-sequence
            ids, before = ids[:-1], before[:-1]
        if quirk == "no echo":
            ids, before = ids[-1:], before[-1:]
        names = [lm.tokenizer.decode([t]) for t in ids]
        given = [None if row is None else float(row[t]) for row, t in zip(before, ids, strict=True)]
        tops = [
            None if row is None else {lm.tokenizer.decode([int(row.argmax())]): float(row.max()), name: lp}
            for row, name, lp in zip(before, names, given, strict=True)
        ]
        return {
            "tokens": names,
            "token_logprobs": given,
            "top_logprobs": None if quirk == "no top_logprobs" else tops,
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/completions", asked
    finally:
        server.shutdown()
        server.server_close()
