"""extraction_strength_similar against decoding with transformers alone, for every number of revealed tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import lm_eval
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import encoding, hf, similar_strength
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.backends.similar import fewest_similar
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.jobs import score
from unlearn_metrics.metrics.memorization import extraction_strength, extraction_strength_similar, similar
from unlearn_metrics.records import store
from unlearn_metrics.records.rescore import changed, rescore
from unlearn_metrics.settings import Settings


@pytest.mark.parametrize(
    ("said", "rest", "expected"),
    [
        ([], [], True),  # all is revealed
        ([1], [], True),
        ([], [1], False),
        ([1], [1, 2], True),  # half is enough
        ([1], [1, 2, 3], False),
        ([3, 1], [1, 2, 3], False),  # in order: one of three
        ([1, 3], [1, 2, 3], True),
        ([9, 1, 9, 2], [1, 2, 3, 4], True),  # what comes between does not matter
        ([2, 1], [1, 2], True),  # one of two
    ],
)
def test_similar_by_hand(said: list[int], rest: list[int], expected: bool):
    assert similar(said, rest) is expected


tokens = st.lists(st.integers(0, 3), max_size=8)


@settings(deadline=None, max_examples=200)
@given(tokens, tokens)
def test_similar_is_some_half_of_the_rest_said_in_order(said: list[int], rest: list[int]):
    def in_order(part: Sequence[int]) -> bool:
        left = iter(said)
        return all(token in left for token in part)

    assert similar(said, rest) == any(map(in_order, combinations(rest, (len(rest) + 1) // 2)))


# --- the search, on models


def generate(lm: HFLM, ids: Sequence[int], limit: int) -> list[int]:
    """Plain greedy decoding by transformers; end-of-sequence not kept."""
    if not limit:
        return []
    prompt = torch.tensor([list(ids)])
    out = lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=limit)
    new = out[0, len(ids) :].tolist()
    return new[: new.index(lm.eot_token_id)] if lm.eot_token_id in new else new


def holds(lm: HFLM, pair: Pair, k: int) -> bool:
    said = generate(lm, (*pair.context, *pair.answer[:k]), len(pair.answer) - k)
    return similar(said, pair.answer[k:])


def bisected(lm: HFLM, pair: Pair, exact: int) -> int:
    low, high = -1, exact
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(lm, pair, middle) else (middle, high)
    return high


def exact_k(strength: float, pair: Pair) -> int:
    return round((1 - strength) * len(pair.answer))


@pytest.fixture(scope="module")
def pairs(demo: Path, lm: HFLM) -> list[Pair]:
    files = [demo / "data" / f"{name}_perturbed.json" for name in ("forget", "retain")]
    docs = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()[:8]]
    return [encoding.encode(lm, f"Question: {d['question']}\nAnswer:", " " + d["answer"]) for d in docs]


@pytest.mark.parametrize("name", ["original", "moderate", "excessive"])
def test_the_search_is_that_of_transformers_and_misses_little(demo: Path, pairs: list[Pair], name: str):
    lm = HFLM(str(demo / "checkpoints" / name), device="cpu", dtype=torch.float32, batch_size=1)
    some = pairs if name == "moderate" else pairs[::4]
    scores = hf.token_scores(lm, some)
    before = hf.work(lm)["generated"]
    found = fewest_similar(lm, some, scores)
    gaps, lower = [], 0
    for pair, s, k in zip(some, scores, found, strict=True):
        exact = exact_k(extraction_strength(s), pair)
        assert k == bisected(lm, pair, exact)
        works = [i for i in range(len(pair.answer) + 1) if holds(lm, pair, i)]  # exhaustive
        assert k in works
        assert k == 0 or k - 1 not in works
        assert works[0] <= k <= exact
        assert extraction_strength_similar(s, k) == pytest.approx(1 - k / len(pair.answer))
        assert extraction_strength_similar(s, k) >= extraction_strength(s)
        gaps.append(k - works[0])
        lower += k < exact
    # bisection can pass over a smaller k; it must not do so as a rule
    assert sum(gap > 0 for gap in gaps) <= len(gaps) // 3
    if name == "original":  # known by heart: nothing to decode
        assert found == [0] * len(some)
        assert hf.work(lm)["generated"] == before
    if name == "moderate":
        assert lower > 3
        assert len(set(found)) > 3


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=1024, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, eos_token_id=1
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3, eos_token_id=1
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_architectures(lm: HFLM, pairs: list[Pair], name: str):
    """mamba keeps no keys and values: transformers decodes it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    other = HFLM(model.eval(), tokenizer=lm.tokenizer, batch_size=1, device="cpu", max_length=256)
    # answers that the model partly gives by itself, so that there is something to find
    given = []
    for pair in pairs[:3]:
        said = generate(other, pair.context, 12)
        given.append(Pair(pair.context, (*said[:4], 7, *said[5:9], 8)))
    scores = hf.token_scores(other, given)
    want = [bisected(other, pair, exact_k(extraction_strength(s), pair)) for pair, s in zip(given, scores, strict=True)]
    assert fewest_similar(other, given, scores) == want
    assert any(0 <= k < len(pair.answer) - 1 for k, pair in zip(want, given, strict=True))


def test_a_prompt_too_long_is_cut_to_the_window_of_teacher_forcing(lm: HFLM, pairs: list[Pair]):
    long = Pair(pairs[0].context * 12, pairs[0].answer[::-1])
    full = Pair(pairs[0].context, (pairs[0].answer[::-1] * 99)[: lm.max_length])  # the answer alone fills the model
    for pair in (long, full):
        cut = Pair(pair.context[-(lm.max_length + 1 - len(pair.answer)) :], pair.answer)
        assert len(cut.context) < len(pair.context)
        found = [fewest_similar(lm, [p], hf.token_scores(lm, [p])) for p in (pair, cut)]
        assert found[0] == found[1]


# --- through lm-eval and in a record


@pytest.fixture(scope="module")
def paper_data(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tofu")
    for name, source in (("forget05_perturbed", "forget_perturbed"), ("retain_perturbed", "retain_perturbed")):
        lines = (demo / "data" / f"{source}.json").read_text("utf-8").splitlines()[:6]
        (folder / f"{name}.json").write_text("\n".join(lines), "utf-8")
    return folder


def test_as_an_lm_eval_metric(demo: Path, paper_data: Path, tmp_path: Path):
    lm = HFLM(str(demo / "checkpoints" / "moderate"), device="cpu", dtype=torch.float32, batch_size=1)
    manager = suites.OurTaskManager(include_defaults=False, metadata={"data_dir": str(paper_data)})
    run = {"tasks": ["tofu_forget05_paper", "tofu_retain_paper"], "task_manager": manager, "bootstrap_iters": 0}
    cached = run | {"use_cache": str(tmp_path / "cache")}
    hook = lm.cache_hook
    try:
        first = lm_eval.simple_evaluate(model=lm, **cached)
        work = dict(hf.work(lm))
        again = lm_eval.simple_evaluate(model=lm, **cached)
        assert dict(hf.work(lm)) == work  # the response cache answers it all
    finally:
        lm.set_cache_hook(hook)
    assert again["results"] == first["results"]
    higher = 0
    for task in run["tasks"]:
        for sample in first["samples"][task]:
            prompt, answer = sample["arguments"][-1]
            assert (prompt, answer) == sample["arguments"][0]
            pair = encoding.encode(lm, prompt, answer)
            k = bisected(lm, pair, exact_k(sample["extraction_strength"], pair))
            assert sample["resps"][-1] == [k]
            assert sample["extraction_strength_similar"] == pytest.approx(1 - k / len(pair.answer))
            higher += sample["extraction_strength_similar"] > sample["extraction_strength"]
        direction = first["higher_is_better"][task]["extraction_strength_similar"]
        assert direction == (task == "tofu_retain_paper")
    assert higher


def test_in_a_record(demo: Path, paper_data: Path, tmp_path: Path):
    folder = demo / "checkpoints"
    settings = Settings(keep=None, device="cpu")
    args = (str(folder / "original"), str(folder / "moderate"), "tofu_forget05_paper", paper_data, settings)
    record, observations = score.run(*args)
    assert record.scores["original"]["retain"]["extraction_strength_similar"].value is not None
    store.save(tmp_path / "run", record, observations)
    assert (
        store.load_documents(tmp_path / "run")["unlearned"]["forget"][0]["revealed"]
        == (observations["unlearned"]["forget"][0]["revealed"])
    )
    count, differing, _ = changed(record, rescore(tmp_path / "run"))
    assert (count > 0, differing) == (True, [])


def test_without_a_draft(lm: HFLM):
    request = Instance("similar_strength", {}, ("Question: Who?\nAnswer:", " Nobody at all."), 0, metadata=("t", 0, 1))
    pair = encoding.encode(lm, *request.args)
    (scores,) = hf.token_scores(lm, [pair])
    assert similar_strength(lm, [request]) == [bisected(lm, pair, exact_k(extraction_strength(scores), pair))]
