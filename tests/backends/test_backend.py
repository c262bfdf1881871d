"""The Hugging Face backend against lm-eval, against plain forward passes, and against model.generate.

Tests marked `bug` show what is known to be wrong; each turns red once it is put right, so that the mark goes.
"""

import json
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers as hft
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.models.huggingface import HFLM
from torch import Tensor

import unlearn_metrics.benchmarks.task  # noqa: F401  (gives every LM token_scores and greedy_until)
from unlearn_metrics import backends
from unlearn_metrics.backends import GenerateInstance, decoding, encoding, hf
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics.memorization import extraction_strength

CHECKPOINTS = ("original", "retain", "excessive", "moderate")
BATCH_SIZES = (1, 2, 3, 7, 64)
GREEDY: dict[str, Any] = {"until": [], "do_sample": False, "max_gen_toks": 40}
VOCABULARY = 1024

every_input = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


# --- what the tests compare with ----------------------------------------------------------------------------------


class Loaded(NamedTuple):
    lm: HFLM
    docs: list[dict[str, Any]]

    def prompt(self, i: int) -> str:
        return f"Question: {self.docs[i]['question']}\nAnswer:"

    def answers(self, i: int) -> list[str]:
        return [" " + a for a in (self.docs[i]["answer"], *self.docs[i]["perturbed_answer"])]


@pytest.fixture(scope="session")
def load(demo: Path, lm: HFLM) -> Callable[[str], Loaded]:
    lines = [
        (demo / "data" / f"{name}_perturbed.json").read_text("utf-8").splitlines() for name in ("forget", "retain")
    ]
    docs = [json.loads(line) for pair in zip(*lines, strict=False) for line in pair]  # forget and retain in turn
    known = {"original": lm}

    def load(name: str) -> Loaded:
        if name not in known:
            known[name] = HFLM(str(demo / "checkpoints" / name), device="cpu", dtype=torch.float32, batch_size=1)
        return Loaded(known[name], docs)

    return load


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, load: Callable[[str], Loaded]) -> Loaded:
    return load(request.param)


@pytest.fixture
def original(load: Callable[[str], Loaded]) -> Loaded:
    return load("original")


@pytest.fixture
def tiny(lm: HFLM) -> Callable[..., HFLM]:
    """A randomly initialised model of any kind, with the demo's tokenizer."""

    def tiny(config: hft.PreTrainedConfig, max_length: int = 256) -> HFLM:
        torch.manual_seed(0)
        model = hft.AutoModelForCausalLM.from_config(config).eval()
        return HFLM(model, tokenizer=lm.tokenizer, max_length=max_length, batch_size=1)

    return tiny


def ask(prompt: str, argument: Any, kind: str = "token_scores", **kwargs: Any) -> Instance:
    cls = GenerateInstance if kind == "greedy_until" else Instance
    return cls(kind, {}, (prompt, argument), 0, metadata=("mytask", 12, 1), **kwargs)


def encode(lm: HFLM, requests: Sequence[tuple[str, str]]) -> list[Pair]:
    return [encoding.encode(lm, *request) for request in requests]


def log_softmax(lm: HFLM, ids: Sequence[int]) -> Tensor:
    """[positions, vocabulary]: one unpadded sequence through the whole model, then float64."""
    with torch.no_grad():
        return lm.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def assert_scores(scores: TokenScores, pair: Pair, logp: Tensor, eos: int, tolerance: float = 5e-5) -> None:
    """scores equal what log p (float64, [n + 1, vocabulary]) gives; the arg-max up to near-ties."""
    tokens = torch.tensor([*pair.answer, eos])
    p = logp.exp()
    mean = (p * logp).sum(-1)
    assert len(scores) == len(pair.answer)
    assert scores.tokens.tolist() == tokens.tolist()
    best = logp.gather(-1, torch.from_numpy(scores.argmax).long()[:, None])[:, 0]
    assert (logp.max(-1).values - best).max() < tolerance
    for got, want in (
        (scores.logprob, logp.gather(-1, tokens[:, None])[:, 0]),
        (scores.mean, mean),
        (scores.variance, (p * (logp - mean[:, None]).square()).sum(-1)),
    ):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=tolerance)


def assert_right(lm: HFLM, pairs: Sequence[Pair], got: Sequence[TokenScores]) -> None:
    for pair, scores in zip(pairs, got, strict=True):
        logp = log_softmax(lm, pair.context + pair.answer)[len(pair.context) - 1 :]
        assert_scores(scores, pair, logp, lm.eot_token_id)


def assert_as_lm_eval(lm: HFLM, requests: Sequence[tuple[str, str]], got: Sequence[TokenScores]) -> list[bool]:
    want = lm.loglikelihood([ask(*r, kind="loglikelihood") for r in requests], disable_tqdm=True)
    for (total, all_greedy), scores in zip(want, got, strict=True):
        assert scores.logprob[:-1].sum(dtype=np.float64) == pytest.approx(total, abs=1e-4 * len(scores))
        assert scores.match.all() == all_greedy
    return [all_greedy for _, all_greedy in want]


def generate(lm: HFLM, prompt: Sequence[int], limit: int) -> list[int]:
    """Plain greedy decoding by transformers, one prompt at a time; end of sequence not kept."""
    ids = torch.tensor([list(prompt)])
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit)
    new = out[0, len(prompt) :].tolist()
    return new[: new.index(lm.eot_token_id)] if lm.eot_token_id in new else new


def done_by(lm: HFLM, call: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """The result of a call and the work that it took."""
    before = hf.work(lm).copy()
    result = call()
    return result, hf.work(lm) - before


def requests_of_every_kind(model: Loaded) -> list[tuple[str, str]]:
    shared = [(model.prompt(i), answer) for i in range(4) for answer in model.answers(i)[:3]]
    return [
        *shared,
        *shared[:4],  # duplicates
        (model.prompt(4), model.answers(4)[0]),  # alone with its prompt
        (model.prompt(5) + "   ", model.docs[5]["answer"]),
        (model.prompt(0) + " ", model.docs[0]["answer"]),
        (model.prompt(0) + "\n", model.docs[0]["answer"]),
        ("", model.docs[0]["answer"]),
        ("", model.docs[1]["answer"]),
        ("", "<|bos|> Aldous"),
        (model.prompt(6), " x"),
        ("Où est né Łukasz 李?\nRéponse :", " 北京 🦉 naïve — Ω"),
        (model.prompt(7), "\n\n" + model.docs[7]["answer"] + "<|eos|>"),
    ]


# --- token scores -------------------------------------------------------------------------------------------------


def test_sum_and_greedy_flag_are_those_of_lm_eval(checkpoint: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = checkpoint.lm
    requests = requests_of_every_kind(checkpoint)
    pairs = encode(lm, requests)
    flags: list[bool] = []
    for size in BATCH_SIZES:
        for share in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(lm, "batch_size_per_gpu", size)
                got = hf.token_scores(lm, pairs, share_prompts=share)
            flags = assert_as_lm_eval(lm, requests, got)
    if lm.model.name_or_path.endswith("original"):
        assert True in flags  # otherwise the flag was never put to the test
        assert False in flags


@every_input
@given(requests=st.lists(st.tuples(text, text.filter(str.strip)), min_size=1, max_size=5))
@example(requests=[("", "<|bos|>a"), ("a<|eos|>", "<|eos|>"), ("<|bos|>a", " a")])
def test_any_text_scores_as_in_lm_eval(original: Loaded, requests: list[tuple[str, str]]) -> None:
    lm = original.lm
    fit = []
    for prompt, answer in requests:
        assume(not prompt or prompt.strip())  # see test_a_blank_prompt_is_refused
        try:
            fit.append((encoding.encode(lm, prompt, answer), (prompt, answer)))
        except InputError:  # the tokenizer merged all of the answer into the prompt: lm-eval can't either
            with pytest.raises((AssertionError, IndexError)):
                lm.loglikelihood([ask(prompt, answer, kind="loglikelihood")], disable_tqdm=True)
    assert_as_lm_eval(lm, [request for _, request in fit], hf.token_scores(lm, [pair for pair, _ in fit]))


def test_every_field_equals_a_plain_forward_pass(checkpoint: Loaded) -> None:
    pairs = encode(checkpoint.lm, requests_of_every_kind(checkpoint))
    for share in (True, False):
        assert_right(checkpoint.lm, pairs, hf.token_scores(checkpoint.lm, pairs, share_prompts=share))


@pytest.fixture(scope="session")
def pool(load: Callable[[str], Loaded]) -> list[tuple[Pair, Tensor]]:
    model = load("moderate")
    pairs = list(dict.fromkeys(encode(model.lm, requests_of_every_kind(model))))
    return [(pair, log_softmax(model.lm, pair.context + pair.answer)[len(pair.context) - 1 :]) for pair in pairs]


@every_input
@given(data=st.data())
def test_results_do_not_depend_on_what_is_beside(
    load: Callable[[str], Loaded], pool: list[tuple[Pair, Tensor]], data: st.DataObject
) -> None:
    lm = load("moderate").lm
    chosen = data.draw(st.lists(st.sampled_from(range(len(pool))), max_size=20), label="requests")
    size = data.draw(st.sampled_from(BATCH_SIZES), label="batch size")
    share = data.draw(st.booleans(), label="share prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "batch_size_per_gpu", size)
        got = hf.token_scores(lm, [pool[i][0] for i in chosen], share_prompts=share)
    assert len(got) == len(chosen)
    for scores, i in zip(got, chosen, strict=True):
        assert_scores(scores, *pool[i], lm.eot_token_id)


@every_input
@given(
    logits=st.lists(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    target=st.integers(0, 3),
)
def test_reduction_of_any_logits(logits: list[list[float]], target: int) -> None:
    x = torch.tensor(logits)
    argmax, logprob, mean, variance, *_ = hf.reduce(x.clone(), torch.full((len(x),), target))
    logp = x.double().log_softmax(-1)
    p = logp.exp()
    want = (p * logp).sum(-1)
    torch.testing.assert_close(x.gather(-1, argmax[:, None])[:, 0], x.max(-1).values)
    torch.testing.assert_close(logprob.double(), logp[:, target], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), (p * (logp - want[:, None]) ** 2).sum(-1), rtol=1e-4, atol=1e-4)


@every_input
@given(seed=st.integers(0, 1 << 30), vocabulary=st.sampled_from([1, 63, 64, 65, 128, 4096]), values=st.integers(1, 9))
def test_the_largest_logit_and_the_first_of_equals(seed: int, vocabulary: int, values: int) -> None:
    x = torch.randint(values, (5, vocabulary), generator=torch.Generator().manual_seed(seed)).float()
    argmax, largest = hf.largest(x)
    assert argmax.tolist() == x.argmax(-1).tolist()
    assert largest[:, 0].tolist() == x.amax(-1).tolist()


def test_tokens_that_a_model_rules_out() -> None:
    _, logprob, mean, variance, *_ = hf.reduce(torch.tensor([[0.0, 0.0, float("-inf")]]), torch.tensor([2]))
    assert logprob.item() == float("-inf")
    assert mean.item() == pytest.approx(-np.log(2))
    assert variance.item() == pytest.approx(0, abs=1e-6)


# --- truncation and refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer_length", "excess"),  # tokens of context + answer over the model's 256
    [*((n, excess) for n in (1, 20) for excess in (0, 1, 2, 300)), (256, 1), (256, 300)],
)
def test_long_prompts_are_cut_as_in_lm_eval(
    original: Loaded, caplog: pytest.LogCaptureFixture, answer_length: int, excess: int
) -> None:
    lm = original.lm
    stream = lm.tok_encode("\n".join(original.prompt(i) + original.answers(i)[0] for i in range(30)))
    context = tuple(stream[: lm.max_length + excess - answer_length])
    pair = Pair(context, tuple(stream[-answer_length:]))
    beside = Pair(tuple(stream[:9]), tuple(stream[9:20]))  # must not be disturbed, nor counted
    caplog.set_level(logging.WARNING)
    (scores, other), did = done_by(lm, lambda: hf.token_scores(lm, [pair, beside]))

    ((total, greedy),) = lm._loglikelihood_tokens([(("", ""), list(context), list(pair.answer))], disable_tqdm=True)
    assert scores.logprob[:-1].sum(dtype=np.float64) == pytest.approx(total, abs=1e-4 * len(scores))
    assert scores.match.all() == greedy
    ids = context + pair.answer
    logp = torch.cat(
        [
            log_softmax(lm, ids[-lm.max_length - 1 : -1])[-answer_length:],
            log_softmax(lm, ids[-lm.max_length :])[-1:],  # end of sequence, from a full window
        ]
    )
    assert_scores(scores, pair, logp, lm.eot_token_id)
    assert_right(lm, [beside], [other])
    assert did["truncated"] == (excess > 0)
    assert any("1 prompts did not fit" in r.message for r in caplog.records) == (excess > 0)


def test_long_text_is_cut_as_in_lm_eval(checkpoint: Loaded) -> None:
    lm = checkpoint.lm
    many = "\n".join(checkpoint.prompt(i) + checkpoint.answers(i)[0] for i in range(12)) + "\n"
    requests = [(many + checkpoint.prompt(i), answer) for i in (12, 13) for answer in checkpoint.answers(i)[:2]]
    requests += [(checkpoint.prompt(i), checkpoint.answers(i)[0]) for i in (12, 13)]
    got, did = done_by(lm, lambda: hf.token_scores(lm, encode(lm, requests)))
    assert did["truncated"] == 4
    assert_as_lm_eval(lm, requests, got)


def test_an_answer_longer_than_the_context_is_refused(original: Loaded) -> None:
    with pytest.raises(InputError, match=r"mytask, document 12: the answer has \d+ tokens, more than the model's 256"):
        backends.token_scores(original.lm, [ask("Question:", " owl" * 300)])


@pytest.mark.parametrize("answer", ["", " ", "\n\t"])
@pytest.mark.parametrize("prompt", ["Question:", ""])
def test_an_empty_answer_is_refused(original: Loaded, prompt: str, answer: str) -> None:
    fine = ask("Question:", " owl")
    with pytest.raises(InputError, match="mytask, document 12: the answer is empty"):
        backends.token_scores(original.lm, [fine, ask(prompt, answer)])


def test_a_blank_prompt_is_refused(original: Loaded) -> None:
    with pytest.raises(AssertionError):  # what lm-eval does
        original.lm.loglikelihood([ask(" ", " owl", kind="loglikelihood")], disable_tqdm=True)
    with pytest.raises(InputError, match="mytask, document 12"):
        backends.token_scores(original.lm, [ask(" ", " owl")])


class OtherLM(LM):
    def loglikelihood(self, requests: Any) -> Any: ...

    def loglikelihood_rolling(self, requests: Any) -> Any: ...

    def generate_until(self, requests: Any) -> list[str]:
        return [request.args[0].upper() for request in requests]


def test_other_backends_write_text_and_encoder_decoders_are_refused(lm: HFLM) -> None:
    assert backends.greedy_until(OtherLM(), [ask("a", GREEDY, "greedy_until")]) == ["A"]  # needs no logits
    config = hft.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    seq2seq = HFLM(hft.T5ForConditionalGeneration(config), backend="seq2seq", tokenizer=lm.tokenizer)
    with pytest.raises(InputError, match=r"HFLM \(seq2seq\)"):
        backends.token_scores(seq2seq, [ask("a", " b")])


def test_nothing_to_do(lm: HFLM) -> None:
    assert backends.token_scores(lm, []) == []
    assert backends.greedy_until(lm, []) == []


# --- cost ---------------------------------------------------------------------------------------------------------


def test_duplicates_are_forwarded_once_and_padding_is_counted(original: Loaded) -> None:
    lm = original.lm
    long, short = Pair(tuple(range(10, 40)), tuple(range(50, 60))), Pair(tuple(range(20, 27)), tuple(range(60, 64)))
    got, did = done_by(lm, lambda: hf.token_scores(lm, [short, long, short, long, long]))
    assert did == {"forward_passes": 1, "positions": 2 * 40, "padding": 40 - 11, "scored": 11 + 5}
    assert got[0] is got[2]
    assert got[1] is got[3]


def test_a_shared_prompt_is_forwarded_once(original: Loaded) -> None:
    lm = original.lm
    context = tuple(range(10, 110))
    pairs = [Pair(context, tuple(range(200, 200 + n))) for n in (4, 5, 7)]
    shared, did = done_by(lm, lambda: hf.token_scores(lm, pairs))
    assert did == {"forward_passes": 2, "positions": 100 + 3 * 7, "padding": 3 + 2, "scored": 5 + 6 + 8}
    _, did = done_by(lm, lambda: hf.token_scores(lm, pairs, share_prompts=False))
    assert did["positions"] == 3 * 107
    assert_right(lm, pairs, shared)


def test_only_scored_positions_meet_the_vocabulary_and_in_chunks(
    original: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = original.lm
    pairs = encode(lm, requests_of_every_kind(original))
    rows: list[int] = []
    head = lm.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _args, out: rows.append(out.numel() // VOCABULARY))
    try:
        _, did = done_by(lm, lambda: hf.token_scores(lm, pairs))
        assert max(rows) <= max(hf.CHUNK_POSITIONS, hf.CHUNK_LOGITS // VOCABULARY)
        # a pass projects one position inside the model
        assert sum(rows) == did["scored"] + did["forward_passes"]
        rows.clear()
        monkeypatch.setattr(hf, "CHUNK_POSITIONS", 5)
        monkeypatch.setattr(hf, "CHUNK_LOGITS", 7 * VOCABULARY)
        chunked, did = done_by(lm, lambda: hf.token_scores(lm, pairs))
        assert max(rows) == 7
        assert sum(rows) == did["scored"] + did["forward_passes"]
    finally:
        hook.remove()
    assert_right(lm, pairs, chunked)


# --- out of memory ------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


def fail_above(rows: int, error: Exception, patch: pytest.MonkeyPatch, lm: HFLM, cached_only: bool = False) -> None:
    forward = lm.model.forward

    def limited(**kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > rows and ("past_key_values" in kwargs or not cached_only):
            raise error
        return forward(**kwargs)

    patch.setattr(lm.model, "forward", limited)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu"])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("share", [False, True])
def test_out_of_memory_halves_the_batch(
    original: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    rows: int,
    share: bool,
) -> None:
    lm = original.lm
    pairs = encode(lm, requests_of_every_kind(original))
    with monkeypatch.context() as patch:
        fail_above(rows, error, patch, lm, cached_only=share)
        got, did = done_by(lm, lambda: hf.token_scores(lm, pairs, share_prompts=share))
    assert "halving the batch" in caplog.text
    assert_right(lm, pairs, got)
    if not share:
        assert did["scored"] == sum(len(pair.answer) + 1 for pair in set(pairs))


def test_other_errors_and_too_large_a_row_are_raised(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encode(original.lm, requests_of_every_kind(original))
    for rows, error in ((0, OUT_OF_MEMORY[0]), (3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))):
        with monkeypatch.context() as patch:
            fail_above(rows, error, patch, original.lm)
            with pytest.raises(RuntimeError, match=str(error)[:10]):
                hf.token_scores(original.lm, pairs, share_prompts=False)


def test_out_of_memory_in_the_prompts(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encode(original.lm, requests_of_every_kind(original))
    with monkeypatch.context() as patch:
        fail_above(2, OUT_OF_MEMORY[0], patch, original.lm)
        got = hf.token_scores(original.lm, pairs)
    assert_right(original.lm, pairs, got)


def test_out_of_memory_in_generation(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(original.prompt(i), {**GREEDY, "max_gen_toks": 3}) for i in range(4)]
    with monkeypatch.context() as patch:
        fail_above(2, OUT_OF_MEMORY[0], patch, original.lm)
        assert len(decoding.greedy(original.lm, requests, [None] * 4)) == 4


def test_a_failed_pass_is_freed_before_the_next(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = original.lm
    forward = lm.model.forward
    failed: list[weakref.ref[Tensor]] = []
    still_there: list[int] = []

    def limited(**kwargs: Any) -> Any:
        still_there.append(sum(ref() is not None for ref in failed))
        activations = torch.zeros(8)
        if len(kwargs["input_ids"]) > 2:
            failed.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(lm.model, "forward", limited)
        hf.token_scores(lm, encode(lm, mixed_lengths(original)), share_prompts=False)
    assert failed
    assert max(still_there) == 0


# --- other architectures ------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # so that logits are far from uniform
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
GPT2 = {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4}
NEO = {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 4, "hidden_size": 32}

ARCHITECTURES = {  # name: (config, whether the bare head is all there is after the last layer)
    "llama": (lambda: hft.LlamaConfig(**SIZES), True),
    "gpt2": (lambda: hft.GPT2Config(**GPT2, n_positions=256), True),
    "mistral, sliding": (lambda: hft.MistralConfig(**SIZES, sliding_window=12), True),
    "gemma2, sliding and capped": (
        lambda: hft.Gemma2Config(**SIZES, head_dim=8, sliding_window=12, final_logit_softcapping=5.0),
        False,
    ),
    "granite": (lambda: hft.GraniteConfig(**SIZES, logits_scaling=4.0), False),
    "cohere": (lambda: hft.CohereConfig(**SIZES, logit_scale=0.25), False),
    "bloom": (lambda: hft.BloomConfig(**SMALL, hidden_size=32, n_layer=3, n_head=4), True),
}


def mixed_lengths(model: Loaded) -> list[tuple[str, str]]:
    """Prompts of unequal lengths, with several answers each, longer than a window of 12."""
    prompts = [model.prompt(0), model.prompt(1).replace("Question:", "Question: " * 6), "Answer:"]
    return [(prompt, answer) for prompt in prompts for answer in model.answers(0)[:3]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(original: Loaded, tiny: Callable[..., HFLM], name: str) -> None:
    config, bare = ARCHITECTURES[name]
    lm = tiny(config())
    pairs = encode(lm, mixed_lengths(original))
    for share in (True, False):
        assert_right(lm, pairs, hf.token_scores(lm, pairs, share_prompts=share))
    assert lm.__dict__.get("unlearn_bare_head", True) == bare
    prompts = list(dict.fromkeys(pair.context for pair in pairs))
    want = [lm.tok_decode(generate(lm, prompt, 24)) for prompt in prompts]
    kwargs = {**GREEDY, "max_gen_toks": 24}
    texts = [prompt for prompt, _ in mixed_lengths(original)][::3]
    assert decoding.greedy(lm, [(prompt, kwargs) for prompt in texts], [None] * 3) == want


@pytest.mark.parametrize(
    "config",
    [
        lambda: hft.GPTNeoConfig(**SMALL, **NEO, window_size=12, max_position_embeddings=256),
        lambda: hft.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4, initializer_range=0.3),
    ],
    ids=["gpt-neo", "mpt"],
)
def test_attention_by_cache_index(original: Loaded, tiny: Callable[..., HFLM], config: Callable[[], Any]) -> None:
    lm = tiny(config())
    pairs = encode(lm, mixed_lengths(original))
    assert_right(lm, pairs, hf.token_scores(lm, pairs, share_prompts=False))
    assert_right(lm, pairs, hf.token_scores(lm, pairs))


def test_learned_positions_end_at_the_table(tiny: Callable[..., HFLM]) -> None:
    lm = tiny(hft.GPT2Config(**GPT2, n_positions=64), max_length=64)
    long, short = tuple(range(10, 60)), tuple(range(10, 15))
    pairs = [Pair(long, (5, 6)), Pair(long, (7, 8)), Pair(short, tuple(range(100, 140))), Pair(short, (9,))]
    assert_right(lm, pairs, hf.token_scores(lm, pairs, share_prompts=False))
    assert_right(lm, pairs, hf.token_scores(lm, pairs))


MAMBA = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


def test_recurrent_models_are_scored(original: Loaded, tiny: Callable[..., HFLM]) -> None:
    lm = tiny(hft.MambaConfig(**MAMBA))
    pairs = encode(lm, mixed_lengths(original))
    assert_right(lm, pairs, hf.token_scores(lm, pairs, share_prompts=False))
    assert_right(lm, pairs, hf.token_scores(lm, pairs))


@pytest.mark.parametrize(
    "config",
    [lambda: hft.Lfm2Config(**SIZES, full_attn_idxs=[1, 3]), lambda: hft.MambaConfig(**MAMBA)],
    ids=["lfm2", "mamba"],  # mamba takes no past_key_values at all: its state would be lost without a word
)
def test_recurrent_models_generate(original: Loaded, tiny: Callable[..., HFLM], config: Callable[[], Any]) -> None:
    lm = tiny(config())
    prompts = list(dict.fromkeys(prompt for prompt, _ in mixed_lengths(original)))
    kwargs = {**GREEDY, "max_gen_toks": 12}
    want = [lm.tok_decode(generate(lm, lm.tok_encode(prompt), 12)) for prompt in prompts]
    assert not decoding.can_decode(lm)
    requests = [Instance("greedy_until", {}, (prompt, kwargs), 0) for prompt in prompts]
    assert backends.greedy_until(lm, requests) == want


def test_nan_is_an_error_and_leaves_no_trace(tiny: Callable[..., HFLM]) -> None:
    """Half precision may overflow for some answers only: no number comes of it, and others are scored as before."""
    lm = tiny(hft.LlamaConfig(**SIZES, tie_word_embeddings=False))
    lm.model.get_input_embeddings().weight.data[500] = float("nan")
    broken, fine = Pair((5, 6, 7), (500, 8)), Pair((5, 6, 7), (9, 10))
    with pytest.raises(InputError, match="NaN log-probabilities in float32"):
        hf.token_scores(lm, [broken, fine])
    assert_right(lm, [fine], hf.token_scores(lm, [fine]))


def test_mixed_precision(original: Loaded, demo: Path) -> None:
    path = str(demo / "checkpoints" / "original")
    lm = HFLM(path, device="cpu", dtype=torch.float32, mixed_precision_dtype="bfloat16")
    requests = [(original.prompt(i), original.answers(i)[1]) for i in range(2)]
    pairs = encode(lm, requests)
    for pair, scores in zip(pairs, hf.token_scores(lm, pairs, share_prompts=False), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            logp = log_softmax(lm, pair.context + pair.answer)[len(pair.context) - 1 :]
        p = logp.exp()
        mean = (p * logp).sum(-1)
        variance = (p * (logp - mean[:, None]).square()).sum(-1)
        np.testing.assert_allclose(scores.mean, mean, rtol=0.1, atol=0.05)
        np.testing.assert_allclose(scores.variance, variance, rtol=0.1, atol=0.2)


# --- greedy text --------------------------------------------------------------------------------------------------


def draft(lm: HFLM, prompt: str, answer: str) -> Instance:
    request = ask(prompt, answer)
    request.resps = backends.token_scores(lm, [request])
    return request


@pytest.mark.parametrize("room", [0, 16, 1000])
def test_greedy_text_is_that_of_generate(checkpoint: Loaded, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no draft, the reference, a wrong answer, one wrong from the first token, and the text itself.

    room: no proposals, proposals when few lines are left, proposals at every step.
    """
    lm = checkpoint.lm
    monkeypatch.setitem(decoding.FREE_POSITIONS, "cpu", room)
    numbers = range(8)
    prompts = [*map(checkpoint.prompt, numbers), "Tell me about", "", "Où est né Łukasz 李"]
    tokens = [generate(lm, lm.tok_encode(p) or [lm.prefix_token_id], 40) for p in prompts]
    answers = {
        "none": [None] * len(prompts),
        "reference": [*(checkpoint.answers(i)[0] for i in numbers), " a", " b", " c"],
        "wrong": [*(checkpoint.answers(i)[1] for i in numbers), " of the", "!", "?"],
        "wrong from the first": [f"Ω {i} zzz" for i in range(len(prompts))],
        "right to the end": [lm.tok_decode(t) for t in tokens],
    }
    for kind, texts in answers.items():
        drafts = [
            None if answer is None or not answer.strip() else draft(lm, prompt, answer)
            for prompt, answer in zip(prompts, texts, strict=True)
        ]
        for size, limit in ((1, 40), (5, 7), (3, 40), (64, 1)):
            monkeypatch.setattr(lm, "batch_size_per_gpu", size)
            kwargs = {**GREEDY, "max_gen_toks": limit}
            requests = [
                ask(prompt, kwargs, "greedy_until", draft=known) for prompt, known in zip(prompts, drafts, strict=True)
            ]
            got = backends.greedy_until(lm, requests)
            assert got == [lm.tok_decode(t[:limit]) for t in tokens], (kind, size, limit)
    monkeypatch.undo()


def test_a_right_draft_leaves_nothing_to_generate(original: Loaded) -> None:
    lm = original.lm
    known = [i for i in range(8) if extraction_strength(TokenScores.from_lists(scores(original, i))) == 1]
    assert len(known) >= 4
    requests = [
        ask(original.prompt(i), GREEDY, "greedy_until", draft=draft(lm, original.prompt(i), original.answers(i)[0]))
        for i in known
    ]
    texts, did = done_by(lm, lambda: backends.greedy_until(lm, requests))
    assert texts == [original.answers(i)[0] for i in known]
    assert not did
    plain, did = done_by(lm, lambda: backends.greedy_until(lm, [ask(*r.args, kind="greedy_until") for r in requests]))
    assert plain == texts
    assert did["generated"] == sum(len(lm.tok_encode(t)) + 1 for t in texts)


def test_proposals_save_steps(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference with one wrong token near its start: the text takes it up again, and few steps are left."""
    lm = original.lm
    for room, most in ((0, None), (1000, 8)):
        monkeypatch.setitem(decoding.FREE_POSITIONS, "cpu", room)
        for i in range(4):
            answer = lm.tok_encode(original.answers(i)[0])
            answer[1] = 700 if answer[1] != 700 else 701
            known = draft(lm, original.prompt(i), lm.tok_decode(answer))
            request = ask(original.prompt(i), GREEDY, "greedy_until", draft=known)
            (text,), did = done_by(lm, lambda request=request: backends.greedy_until(lm, [request]))
            assert text == original.answers(i)[0]
            if most is None:
                assert did["forward_passes"] == did["generated"] == len(answer) - 1  # one token is known, and the end
            else:
                assert did["forward_passes"] <= most
                assert did["accepted"] >= len(answer) - 2 - most


@pytest.mark.parametrize("limit", [12, 100])
def test_a_text_that_repeats_itself_is_drafted_from_itself(
    load: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Packed at every step or never, the texts are those of `generate`, in a fraction of the steps."""
    model = load("excessive")
    lm = model.lm
    prompts = [model.prompt(i) for i in range(12)]
    want = [lm.tok_decode(generate(lm, lm.tok_encode(prompt), limit)) for prompt in prompts]
    kwargs = {**GREEDY, "max_gen_toks": limit}
    for full in (0.0, 100.0):
        monkeypatch.setattr(decoding, "FULL", full)
        texts, did = done_by(lm, lambda: decoding.greedy(lm, [(prompt, kwargs) for prompt in prompts], [None] * 12))
        assert texts == want
        assert did["accepted"] <= did["proposed"]
        if limit == 100:
            assert did["forward_passes"] < 50
            assert did["accepted"] > 0.5 * did["generated"]


def test_wrong_drafts_cost_little(original: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """References that are the text with every third token replaced: counted in positions, and what a step costs."""
    lm = original.lm
    prompts = [original.prompt(i) for i in range(8)]
    texts = [generate(lm, lm.tok_encode(prompt), 40) for prompt in prompts]
    cost = {}
    for room in (0, 16):
        monkeypatch.setitem(decoding.FREE_POSITIONS, "cpu", room)
        lines = [decoding._Line(lm.tok_encode(p), 40, reference=[t + (i % 3 == 0) for i, t in enumerate(text)])
                 for p, text in zip(prompts, texts, strict=True)]  # fmt: skip
        _, did = done_by(lm, lambda lines=lines: decoding._run(lm, lines, {lm.eot_token_id}))
        assert [line.text for line in lines] == texts
        cost[room] = did["positions"] + 16 * did["forward_passes"]
    assert cost[16] <= 1.05 * cost[0]


@pytest.mark.parametrize("room", [0, 16])
def test_scores_of_texts_are_those_of_teacher_forcing(
    checkpoint: Loaded, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts that end, are cut, repeat the reference to its end or beyond, or start with it."""
    lm = checkpoint.lm
    monkeypatch.setitem(decoding.FREE_POSITIONS, "cpu", room)
    prompts = [*map(checkpoint.prompt, range(10)), "Tell me about"]
    tokens = [generate(lm, lm.tok_encode(p), 40) for p in prompts]
    references = [
        None if i % 3 == 2 else draft(lm, p, (checkpoint.answers(i)[0], lm.tok_decode(t))[i % 3] or " a")
        for i, (p, t) in enumerate(zip(prompts[:10], tokens, strict=False))
    ]
    for limit in (6, 40):
        said: dict[Pair, TokenScores] = {}
        kwargs = {**GREEDY, "max_gen_toks": limit}
        requests = [
            ask(p, kwargs, "greedy_until", draft=known, said=said)
            for p, known in zip(prompts, [*references, None], strict=True)
        ]
        assert backends.greedy_until(lm, requests) == [lm.tok_decode(t[:limit]) for t in tokens]
        cut = [(tuple(lm.tok_encode(p)), tuple(t[:limit])) for p, t in zip(prompts, tokens, strict=True)]
        assert said.keys() == {Pair(*pair) for pair in cut if pair[1]}
        assert_right(lm, list(said), list(said.values()))
    monkeypatch.undo()


def test_no_scores_of_what_a_stop_word_cuts(original: Loaded) -> None:
    said: dict[Pair, TokenScores] = {}
    kwargs = {"until": [" the"], "max_gen_toks": 40, "do_sample": False}
    prompts = [original.prompt(i) for i in range(4)]
    texts = backends.greedy_until(original.lm, [ask(p, kwargs, "greedy_until", said=said) for p in prompts])
    whole = {original.lm.tok_decode(list(pair.answer)) for pair in said}
    assert whole <= {*texts}
    assert_right(original.lm, list(said), list(said.values()))


def scores(model: Loaded, i: int) -> dict[str, list[float]]:
    return backends.token_scores(model.lm, [ask(model.prompt(i), model.answers(i)[0])])[0]


@every_input
@given(prompt=text.filter(str.strip), answer=text.filter(str.strip), limit=st.sampled_from([1, 3, 12]))
def test_any_draft_leaves_the_text_unchanged(original: Loaded, prompt: str, answer: str, limit: int) -> None:
    lm = original.lm
    assume(prompt == prompt.rstrip() or prompt.endswith(" "))  # see test_a_draft_after_other_white_space
    try:
        known = draft(lm, prompt, answer)
    except InputError:
        known = None
    kwargs = {**GREEDY, "max_gen_toks": limit}
    want = lm.tok_decode(generate(lm, lm.tok_encode(prompt), limit))
    assert backends.greedy_until(lm, [ask(prompt, kwargs, "greedy_until", draft=known)]) == [want]
    assert backends.greedy_until(lm, [ask(prompt, kwargs, "greedy_until")]) == [want]


@pytest.mark.parametrize(
    "until", [["."], ["\n"], "ith", ["no such thing"], [" the", ","], ["<|eos|>"], ["e in"]], ids=str
)
@pytest.mark.parametrize("limit", [2, 30])
def test_stop_words_act_as_in_lm_eval(
    load: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch, until: Any, limit: int
) -> None:
    model = load("moderate")
    lm = model.lm
    kwargs = {"until": until, "max_gen_toks": limit, "do_sample": False}
    prompts = [model.prompt(i) for i in range(6)]
    stock = [ask(prompt, json.loads(json.dumps(kwargs)), "generate_until") for prompt in prompts]
    want = lm.generate_until(stock, disable_tqdm=True)
    for size in (1, 4):
        monkeypatch.setattr(lm, "batch_size_per_gpu", size)
        assert backends.greedy_until(lm, [ask(prompt, kwargs, "greedy_until") for prompt in prompts]) == want
        drafts = [draft(lm, model.prompt(i), model.answers(i)[0]) for i in range(6)]
        requests = [ask(p, kwargs, "greedy_until", draft=d) for p, d in zip(prompts, drafts, strict=True)]
        assert backends.greedy_until(lm, requests) == want


def test_a_prompt_too_long_to_generate_from_is_cut_as_in_lm_eval(original: Loaded) -> None:
    lm = original.lm
    many = "\n".join(original.prompt(i) + original.answers(i)[0] for i in range(12)) + "\n"
    kwargs = {**GREEDY, "max_gen_toks": 30}
    prompts = [many + original.prompt(12), original.prompt(13), many + original.prompt(14)]
    want = lm.generate_until([ask(p, dict(kwargs), "generate_until") for p in prompts], disable_tqdm=True)
    drafts = [draft(lm, p, original.answers(12 + i)[0]) for i, p in enumerate(prompts)]
    for known in ([None] * 3, drafts):
        got = [ask(p, kwargs, "greedy_until", draft=d) for p, d in zip(prompts, known, strict=True)]
        assert backends.greedy_until(lm, got) == want
    with pytest.raises(InputError, match="max_gen_toks=256 leaves no room"):
        backends.greedy_until(lm, [ask("a", {**GREEDY, "max_gen_toks": 256}, "greedy_until")])


@pytest.mark.parametrize("white", ["\n", "\n\n", "\t", "\u00a0"], ids=repr)
def test_a_draft_after_other_white_space(original: Loaded, white: str) -> None:
    lm = original.lm
    prompts = [original.prompt(i) + white for i in range(4)]
    kwargs = {**GREEDY, "max_gen_toks": 12}
    want = [lm.tok_decode(generate(lm, lm.tok_encode(prompt), 12)) for prompt in prompts]
    drafts = [draft(lm, prompt, original.docs[i]["answer"]) for i, prompt in enumerate(prompts)]
    requests = [ask(p, kwargs, "greedy_until", draft=d) for p, d in zip(prompts, drafts, strict=True)]
    assert backends.greedy_until(lm, requests) == want


def test_a_draft_of_a_cut_prompt(tiny: Callable[..., HFLM], original: Loaded) -> None:
    lm = tiny(hft.LlamaConfig(**SIZES), max_length=64)
    answer = " ".join(original.answers(0))[:120]
    kwargs = {**GREEDY, "max_gen_toks": 8}
    for i in range(8):
        prompt = original.prompt(i) + original.answers(i)[0]
        prompt = lm.tok_decode(lm.tok_encode(prompt)[:50]).rstrip()
        assert len(lm.tok_encode(prompt)) <= 56
        want = lm.tok_decode(generate(lm, lm.tok_encode(prompt), 8))
        request = ask(prompt, kwargs, "greedy_until", draft=draft(lm, prompt, answer))
        assert backends.greedy_until(lm, [request]) == [want]


def test_a_special_token_as_stop_word(original: Loaded, demo: Path) -> None:
    lm = HFLM(str(demo / "checkpoints" / "original"), device="cpu", dtype=torch.float32)
    prompt = original.prompt(0)
    emitted = generate(lm, lm.tok_encode(prompt), 40)[5]
    weight = lm.model.get_input_embeddings().weight.data
    weight[[2, emitted]] = weight[[emitted, 2]].clone()  # now the model says <|pad|> there
    kwargs = {"until": ["<|pad|>"], "max_gen_toks": 20, "do_sample": False}
    want = lm.generate_until([ask(prompt, dict(kwargs), "generate_until")], disable_tqdm=True)
    assert backends.greedy_until(lm, [ask(prompt, kwargs, "greedy_until")]) == want


def test_other_generation_kwargs_count(original: Loaded) -> None:
    kwargs = {**GREEDY, "repetition_penalty": 3.0}
    prompts = [original.prompt(i) for i in range(3)]
    want = original.lm.generate_until([ask(p, dict(kwargs), "generate_until") for p in prompts], disable_tqdm=True)
    assert backends.greedy_until(original.lm, [ask(p, kwargs, "greedy_until") for p in prompts]) == want


def test_extraction_strength_is_that_of_really_decoding(load: Callable[[str], Loaded]) -> None:
    """Reveal k answer tokens, decode greedily, for every k: the fewest that give the rest exactly."""
    model = load("moderate")
    lm = model.lm
    values = []
    for i in range(6):
        pair = encoding.encode(lm, model.prompt(i), model.answers(i)[0])
        n = len(pair.answer)
        works = [k for k in range(n) if generate(lm, pair.context + pair.answer[:k], n - k) == list(pair.answer[k:])]
        fewest = min(works, default=n)
        assert works == list(range(fewest, n))
        values.append(extraction_strength(TokenScores.from_lists(scores(model, i))))
        assert values[-1] == pytest.approx(1 - fewest / n)
    assert any(0 < value < 1 for value in values)


# --- lm-eval's response cache -------------------------------------------------------------------------------------


@pytest.fixture
def caching(demo: Path, tmp_path: Path) -> Any:
    lm = HFLM(str(demo / "checkpoints" / "original"), device="cpu", dtype=torch.float32)
    wrapped = CachingLM(lm, str(tmp_path / "cache.db"))
    yield wrapped
    wrapped.dbdict.close()


def test_the_response_cache_saves_every_forward_pass(original: Loaded, caching: Any) -> None:
    lm = caching.lm
    requests = [ask(*request) for request in requests_of_every_kind(original)]  # with duplicates
    plain = original.lm.token_scores(requests)
    part = caching.token_scores(requests[2:4])
    first, did = done_by(lm, lambda: caching.token_scores(requests))
    assert did["forward_passes"] > 0
    assert first[2:4] == part
    again, did = done_by(lm, lambda: caching.token_scores(requests))
    assert not did
    assert again == first
    for a, b in zip(first, plain, strict=True):
        for mine, theirs in zip(a, b, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=5e-5)
    mixed = [requests[0], ask(original.prompt(9), " new"), requests[1], ask(original.prompt(9), " new")]
    (old, new, _, duplicate), did = done_by(lm, lambda: caching.token_scores(mixed))
    assert did["scored"] == len(new[0])
    assert (old, new) == (first[0], duplicate)


def test_the_response_cache_serves_greedy_text(original: Loaded, caching: Any) -> None:
    lm = caching.lm
    prompts = [original.prompt(i) for i in (0, 1, 0, 2)]
    requests = [ask(prompt, {**GREEDY, "max_gen_toks": 6}, "greedy_until") for prompt in prompts]
    first = caching.greedy_until(requests)
    assert first == original.lm.greedy_until(requests)
    again, did = done_by(lm, lambda: caching.greedy_until(requests))
    assert not did
    assert again == first


def test_the_response_cache_leaves_sampling_alone(original: Loaded, caching: Any) -> None:
    kwargs = {"until": [], "do_sample": True, "temperature": 5.0, "max_gen_toks": 12}
    requests = [ask(original.prompt(0), kwargs, "greedy_until")]
    assert len({caching.greedy_until(requests)[0] for _ in range(4)}) > 1
