"""Backends other than lm-eval's hf: a completion server, vLLM's objects, and what has only `loglikelihood`."""

import importlib.metadata
import json
import logging
import math
import sys
import types
from collections import namedtuple
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from tests.completions import QUIRKS, serve
from unlearn_metrics import tasks_path
from unlearn_metrics.backends import encoding, returned, token_scores
from unlearn_metrics.documents import OTHER, UNKNOWN, FlagScores, TokenScores, scores_from_lists
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.metrics.memorization import exact_memorization, extraction_strength

TASKS = ["demo_forget", "demo_holdout"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def folder(demo) -> Path:
    """The checkpoint that knows some of the text: its values are neither 0 nor 1."""
    return demo / "checkpoints" / "moderate"


@pytest.fixture(scope="module")
def model(folder) -> HFLM:
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def requests(demo) -> list[Instance]:
    """Six questions, one of them twice, with answers that are known in part, a wrong one, and one without a prompt."""
    rows = [json.loads(line) for line in (demo / "data" / "forget_perturbed.json").read_text().splitlines()[:6]]
    pairs = [(f"Question: {r['question']}\nAnswer:", f" {r['answer']}") for r in rows]
    pairs += [pairs[0], (pairs[1][0], f" {rows[1]['perturbed_answer'][0]}"), ("", rows[2]["answer"])]
    return [Instance("token_scores", {}, pair, i, metadata=("demo", i, 1)) for i, pair in enumerate(pairs)]


def api(url: str, folder: Path, **kwargs) -> LocalCompletionsAPI:
    settings = {"tokenizer_backend": "huggingface", "tokenizer": str(folder), "max_length": 256} | kwargs
    return LocalCompletionsAPI(base_url=url, model="demo", **settings)


def scores(lm, requests) -> list[TokenScores | FlagScores]:
    return [scores_from_lists(lists) for lists in token_scores(lm, requests)]


def assert_close(found: TokenScores, wanted: TokenScores) -> None:
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.match, wanted.match)
    np.testing.assert_allclose(found.logprob, wanted.logprob, atol=2e-5)
    assert np.isnan([found.mean, found.variance]).all()
    assert extraction_strength(found) == extraction_strength(wanted)
    assert found.loss == pytest.approx(wanted.loss, abs=1e-5)


# --- a server that echoes log-probabilities -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"batch_size": 2, "num_concurrent": 3},
        {"tokenized_requests": False, "batch_size": 3},
        {"tokenizer": None, "tokenizer_backend": "remote", "custom_prefix_token_id": 0},  # which lm-eval takes for none
    ],
    ids=["batches of tokens", "concurrent", "batches of text", "remote tokenizer"],
)
def test_a_server_gives_what_hf_gives(model, folder, requests, settings):
    wanted = scores(model, requests)
    strengths = [extraction_strength(s) for s in wanted]
    assert 0 < sum(strengths) < len(strengths)
    with serve(model) as (url, asked):
        found = scores(api(url, folder, **settings), requests)
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w)
    prompts = [p for body in asked for p in (body["prompt"] if settings.get("batch_size", 1) > 1 else [body["prompt"]])]
    assert len(prompts) == len(requests) - 1, "equal pairs are asked once"


def test_a_prompt_too_long_is_cut_as_by_lm_eval(model, folder, requests, caplog):
    """A server of 31 tokens, one of them to generate: the last 30 at the answer, and one later at end-of-sequence."""
    request = min(requests[:6], key=lambda r: len(model.tok_encode(r.args[1])))
    pair = encoding.encode(model, *request.args)
    whole = [*pair.context, *pair.answer, model.eot_token_id]
    n = len(pair.answer)
    assert n < 30 < len(whole) - 1
    with torch.no_grad():
        first = model.model(torch.tensor([whole[-31:-1]])).logits[0].log_softmax(-1)
        last = model.model(torch.tensor([whole[-30:-1]])).logits[0].log_softmax(-1)
    wanted = [float(first[-n - 1 + i, t]) for i, t in enumerate(pair.answer)] + [float(last[-1, whole[-1]])]
    with serve(model) as (url, _):
        lm = api(url, folder, max_length=31)
        (found,) = scores(lm, [request])
        ((total, greedy),) = lm.loglikelihood([request])
    np.testing.assert_allclose(found.logprob, wanted, atol=2e-5)
    assert (total, greedy) == (pytest.approx(float(found.logprob[:-1].sum()), abs=1e-4), bool(found.match.all()))


@pytest.mark.parametrize("quirk", QUIRKS)
def test_what_a_server_does_not_tell_is_unscored_and_never_wrong(model, folder, requests, quirk, caplog):
    requests = requests[:6]
    wanted = scores(model, requests)
    text = quirk == "no special tokens"
    with serve(model, quirk) as (url, _), caplog.at_level(logging.WARNING, "unlearn_metrics"):
        lm = api(url, folder, batch_size=2, tokenized_requests=not text)
        found = scores(lm, requests)
    (line,) = [r.message for r in caplog.records if r.name == "unlearn_metrics.backends"]
    if quirk == "hidden start token":  # not seen in the response: other values, of a model that has a start token
        assert not any(np.isnan(f.logprob).any() for f in found)
        assert "min_k_plus_plus, leakage under temp80, leakage under top40, leakage under nucleus90 for 6 of 6" in line
        assert "probability" not in line
        return
    for f, w in zip(found, wanted, strict=True):
        if quirk == "no top_logprobs":
            np.testing.assert_allclose(f.logprob, w.logprob, atol=2e-5)
            assert METRICS["probability"].fn(f) == pytest.approx(METRICS["probability"].fn(w), abs=1e-5)
        else:
            assert np.isnan(f.logprob).all()
            assert all(math.isnan(METRICS[name].fn(f)) for name in ("probability", "loss", "min_k"))
        assert (f.argmax == UNKNOWN).all()
        assert math.isnan(extraction_strength(f))
        assert math.isnan(exact_memorization(f))
    assert line.startswith("LocalCompletionsAPI does not report what these need, unscored (NaN): extraction_strength, ")
    assert line.endswith(" for 6 of 6 answers")
    assert ("probability," in line) is (quirk != "no top_logprobs")


def test_a_choice_is_read_by_its_own_text():
    """By hand: the answer 7 8 1, of servers that hide a start token, show what was sent, and add one."""
    lm = types.SimpleNamespace(
        eot_token_id=1,
        tokenized_requests=False,
        decode_batch=lambda rows: ["".join(chr(60 + t) for t in r) for r in rows],
    )

    def response(names, values):
        tops = [None, *({"x": max(f, -0.1), name: f} for name, f in zip(names[1:], values[1:], strict=True))]
        given = {"tokens": names, "token_logprobs": values, "top_logprobs": tops}
        return {"choices": [{"index": 0, "logprobs": given}]}

    def read(sent, ctxlen, names, values):
        echoes = returned.parse_completions(lm, response(names, values), tokens=[sent], ctxlens=[ctxlen])
        return returned.believed(echoes)[0]

    known = [(-0.1, 7), (-2.0, OTHER), (-0.1, 1)]
    values = [None, -9.0, -0.1, -2.0, -0.1, -0.1]
    assert read([0, 5, 6, 7, 8, 1], 3, ["A", "B", "C", "D", "", "?"], values) == known
    assert read([5, 6, 7, 8, 1], 2, ["A", "B", "C", "D", "", "?"], values) == known
    assert read([6, 7, 8, 1], 1, ["A", "B", "C", "D", "", "?"], values) == known
    nothing = read([6, 7, 8, 1], 1, ["A", "B", "CD", "", "", "?"], values)  # split otherwise
    assert [argmax for _, argmax in nothing] == [UNKNOWN] * 3
    assert all(math.isnan(logprob) for logprob, _ in nothing)
    lm.base_url = "URL"
    with pytest.raises(InputError, match=r"URL returned 1 completions for 2 prompts; try batch_size=1"):
        returned.parse_completions(lm, response(["A", "B"], [None, -1.0]), tokens=[[1], [2]], ctxlens=[1, 1])


@pytest.mark.parametrize("tokenized", [True, False])
def test_a_server_that_shows_no_generated_end_is_believed_by_its_other_answers(model, folder, requests, tokenized):
    with serve(model, "ends hidden") as (url, _):
        found = scores(api(url, folder, tokenized_requests=tokenized), requests)
    for f, w in zip(found, scores(model, requests), strict=True):
        assert_close(f, w)


@pytest.mark.parametrize(("p", "argmax"), [(0.6, 7), (0.4, UNKNOWN)])
def test_half_a_character_is_the_arg_max_only_if_nothing_can_be_likelier(p, argmax):
    """top_logprobs go by text, and all halves of characters have the same one."""
    assert returned._position(["�"], [math.log(p)], [{"�": math.log(p)}], 0, 7) == (math.log(p), argmax)


def run(model, **kwargs):
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata={"pretrained": "x"})
    return lm_eval.simple_evaluate(model=model, tasks=TASKS, task_manager=manager, limit=4, bootstrap_iters=0, **kwargs)


@pytest.fixture(scope="module")
def by_hf(model):
    return run(model)


def test_a_stock_run_on_a_server_gives_all_but_what_needs_moments(model, folder, by_hf, tmp_path, caplog):
    with serve(model) as (url, asked), caplog.at_level(logging.WARNING, "unlearn_metrics"):
        settings = f"base_url={url},model=demo,tokenizer={folder},tokenizer_backend=huggingface,num_concurrent=2"
        arguments = {"model_args": settings + ",max_length=256", "batch_size": 4, "use_cache": str(tmp_path / "cache")}
        found = run("local-completions", **arguments)
        first = len(asked)
        again = run("local-completions", **arguments)
    assert len(asked) == first, "all from lm-eval's cache"
    assert again["results"] == found["results"]
    lines = [r.message for r in caplog.records if r.name == "unlearn_metrics.backends"]
    assert len(lines) == 1, lines
    assert "unscored (NaN): extraction_strength_similar, min_k_plus_plus, leakage under temp80, " in lines[0]
    for task in TASKS:
        for key, wanted in by_hf["results"][task].items():
            got = found["results"][task][key]
            if key == "min_k_plus_plus,none":
                assert math.isnan(got)
                assert found["results"][task]["min_k_plus_plus_unscored,none"] == 4
            elif isinstance(wanted, float) and not math.isnan(wanted):
                assert got == pytest.approx(wanted, abs=1e-5), key
    strengths = [s["extraction_strength"] for s in by_hf["samples"]["demo_forget"]]
    assert [s["extraction_strength"] for s in found["samples"]["demo_forget"]] == strengths


def test_a_chat_server_still_gives_the_metrics_of_texts(model, by_hf, caplog):
    """Without a chat template of our own: the one that lm-eval's class leaves to the server, here the bare question."""
    with serve(model) as (url, _), caplog.at_level(logging.WARNING, "unlearn_metrics"):
        lm = LocalChatCompletion(base_url=url.replace("completions", "chat/completions"), model="demo")
        found = run(lm, apply_chat_template=True)["results"]["demo_forget"]
    assert 0 <= found["rouge,none"] <= 1
    assert math.isnan(found["extraction_strength,none"])
    assert found["extraction_strength_unscored,none"] == found["probability_unscored,none"] == 4
    (line,) = [r.message for r in caplog.records if r.name == "unlearn_metrics.backends"]
    assert "LocalChatCompletion does not report" in line


# --- log-likelihoods and greedy flags alone -------------------------------------------------------------------------


class Strings(LM):
    """A backend that takes strings and gives sums and flags: the real model behind a narrower door."""

    def __init__(self, inner: HFLM) -> None:
        super().__init__()
        self.inner, self.calls = inner, []

    def loglikelihood(self, requests, disable_tqdm=False):
        self.calls.append([r.args for r in requests])
        return self.inner.loglikelihood(requests, disable_tqdm=True)

    loglikelihood_rolling = generate_until = None


class Tokens(TemplateLM):
    """The same with a tokenizer."""

    def __init__(self, inner: HFLM) -> None:
        super().__init__()
        self.inner, self.tokenizer, self.calls = inner, inner.tokenizer, []

    eot_token_id = property(lambda self: self.inner.eot_token_id)
    prefix_token_id = property(lambda self: self.inner.prefix_token_id)

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.inner.tok_encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(self, requests, **kwargs):
        self.calls.append([(tuple(c), tuple(r)) for _, c, r in requests])
        return self.inner._loglikelihood_tokens(requests, disable_tqdm=True)

    loglikelihood_rolling = generate_until = None


def test_bisection_by_tokens_is_exact(model, requests, caplog):
    lm = Tokens(model)
    with caplog.at_level(logging.WARNING, "unlearn_metrics"):
        found = scores(lm, requests)
    for f, w in zip(found, scores(model, requests), strict=True):
        assert isinstance(f, FlagScores)
        assert (f.units, f.unit) == (len(w), "token")
        assert extraction_strength(f) == extraction_strength(w)
        assert f.loss == pytest.approx(w.loss, abs=1e-5)
    longest = max(f.units for f in found)
    assert len(lm.calls) <= 2 + math.ceil(math.log2(longest)), "one call for the sums, one per round"
    assert all(len(set(call)) == len(call) for call in lm.calls), "equal pairs are asked once"
    (line,) = [r.message for r in caplog.records if r.name == "unlearn_metrics.backends"]
    names = "extraction_strength_similar, exact_memorization, min_k, min_k_plus_plus, "
    names += "leak_at, extracted_within, expected_prefix, sampled_extraction_strength"
    assert line == f"Tokens does not report what these need, unscored (NaN): {names} for 9 of 9 answers"


def test_bisection_by_words_finds_what_trying_every_cut_finds(model, requests, caplog):
    lm = Strings(model)
    with caplog.at_level(logging.WARNING, "unlearn_metrics"):
        found = scores(lm, requests)
    for f, request in zip(found, requests, strict=True):
        prompt, answer = request.args
        words = answer.split()
        space = " " if answer.startswith(" ") else ""
        for k in range(len(words) + 1):
            start, rest = space + " ".join(words[:k]) if k else "", " ".join(words[k:])
            rest = (" " if k else space) + rest
            if k == len(words) or model.loglikelihood([Instance("", {}, (prompt + start, rest), 0)])[0][1]:
                break
        assert (f.units, f.revealed, f.unit) == (len(words), k, "word")
        assert math.isnan(f.loss)
    assert sum(f.units - f.revealed for f in found) > 0
    (line,) = [r.message for r in caplog.records if r.name == "unlearn_metrics.backends"]
    assert line.endswith("; extraction_strength counts words, not tokens")


def test_a_run_by_greedy_flags(model, by_hf):
    """Without its generations: this backend has none."""
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata={"pretrained": "x"})
    tasks = manager.load(TASKS)["tasks"]
    for task in tasks.values():
        task.metrics = [m for m in task.metrics if "generation" not in METRICS[m].needs]
    found = lm_eval.evaluate(
        lm=Tokens(model),
        task_dict={"tasks": {task.task_name: task for task in tasks.values()}},
        limit=4,
        bootstrap_iters=0,
    )
    for task in TASKS:
        for key, got in found["results"][task].items():
            name = key.split(",")[0]
            if name in METRICS and name.split("_paraphrased")[0] in ("exact_memorization", "min_k", "min_k_plus_plus"):
                assert math.isnan(got)
                assert found["results"][task][f"{name}_unscored,none"] == 4
            elif name in METRICS:
                assert got == pytest.approx(by_hf["results"][task][key], abs=1e-5), key


def test_an_encoder_decoder_is_refused(model, requests):
    lm = Tokens(model)
    lm.backend = "seq2seq"
    with pytest.raises(InputError, match="token scores need a causal model; this one is Tokens"):
        token_scores(lm, requests)


# --- vLLM: lm-eval's own class and the shape of vLLM's objects; test_vllm.py runs the real one -----------------------

Logprob = namedtuple("Logprob", ["logprob", "rank", "decoded_token"])  # vllm.logprobs.Logprob is a dataclass of these


def test_prompt_logprobs_by_hand():
    output = types.SimpleNamespace(
        prompt_logprobs=[
            None,
            {5: Logprob(-0.2, 1, "a")},  # the prompt's token is the arg-max: one entry
            {6: Logprob(-3.0, 4, "b"), 9: Logprob(-0.1, 1, "z")},
            {7: Logprob(-0.7, 2, "c"), 4: Logprob(-0.7, 1, "y")},  # a tie that the other wins
            {1: Logprob(-0.5, 1, "</s>")},
        ]
    )
    found = returned.parse_prompt_logprobs([3, 5, 6, 7, 1], output, 2)
    assert found == [(-3.0, 9), (-0.7, 4), (-0.5, 1)]
    cut = returned.parse_prompt_logprobs([3, 5, 6, 7, 1], output, -1)  # the answer had six tokens, the prompt is gone
    np.testing.assert_equal(cut, [returned.NOTHING] * 2 + [(-0.2, 5), *found])
    assert returned.parse_prompt_logprobs([3, 5], types.SimpleNamespace(prompt_logprobs=[None, {5: -0.2}]), 1) == [
        (-0.2, 5)
    ]


def test_lm_evals_vllm_class_over_an_engine_of_transformers(model, requests, monkeypatch):
    """lm-eval's class really runs; the engine behind `_model_generate` is the demo's model, in vLLM's shape."""
    names = ("LLM", "SamplingParams", "TokensPrompt", "LoRARequest", "resolve_chat_template", "get_tokenizer")
    stub = types.ModuleType("vllm")
    for name in names:
        setattr(stub, name, object)
    for module in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.renderers", "vllm.renderers.hf", "vllm.tokenizers"):
        monkeypatch.setitem(sys.modules, module, stub)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.20.0" if name == "vllm" else real(name))
    from lm_eval.models import vllm_causallms

    def engine(requests, generate=False):
        outputs = []
        for ids in requests:
            with torch.no_grad():
                rows = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            given = [None]
            for row, token in zip(rows, ids[1:], strict=False):
                best = int(row.argmax())
                given.append({token: Logprob(float(row[token]), int((row >= row[token]).sum()), "?")})
                given[-1][best] = Logprob(float(row[best]), 1, "?")
            outputs.append(types.SimpleNamespace(prompt_logprobs=given))
        return outputs

    lm = object.__new__(vllm_causallms.VLLM)
    LM.__init__(lm)
    lm.tokenizer, lm.batch_size, lm._max_length, lm.data_parallel_size = model.tokenizer, "auto", 256, 1
    lm.add_bos_token, lm.custom_prefix_token_id, lm.enable_thinking, lm._model_generate = None, None, False, engine
    wanted = scores(model, requests)
    for f, w in zip(scores(lm, requests), wanted, strict=True):
        assert_close(f, w)
        np.testing.assert_array_equal(f.argmax, w.argmax)
    sums = lm.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in sums] == [bool(w.match.all()) for w in wanted], "its own parser is untouched"
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms")
