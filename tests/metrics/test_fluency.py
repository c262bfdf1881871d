"""Does the model still speak? Each measure by hand, against counting, and on checkpoints that really are collapsed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import SHARED
from unlearn_metrics.backends.classifier import clean_probabilities, open_classifier
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import score
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.metrics.fluency import distinct_1, distinct_2, gibberish, refusal, repetition, token_entropy
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.records.rescore import changed, rescore
from unlearn_metrics.settings import Settings

nan = math.nan


@pytest.mark.parametrize(
    ("generation", "one", "two", "entropy"),
    [
        ("", nan, nan, nan),
        (" \n", nan, nan, nan),
        ("a", 1, nan, nan),  # no pair; log of one word is 0
        ("a b", 1, 1, 1),
        ("a a", 1 / 2, 1, 0),  # one pair
        ("a a a a", 1 / 4, 1 / 3, 0),
        ("a b a b", 1 / 2, 2 / 3, 1 / 2),  # ab ba ab; 1 bit of 2
        ("a b c d", 1, 1, 1),
        ("a a b c", 3 / 4, 1, 3 / 4),  # 1/2 * 1 + 2 * 1/4 * 2 = 1.5 bits of 2
        ("a, a, a, a,", 1 / 4, 2 / 7, 1 / 3),  # the comma is a word: 8 words, 2 different; 1 bit of 3
        ("Yes yes YES", 1, 1, 1),  # case is kept
    ],
)
def test_diversity_by_hand(generation: str, one: float, two: float, entropy: float):
    found = [metric(generation) for metric in (distinct_1, distinct_2, token_entropy)]
    assert found == pytest.approx([one, two, entropy], abs=1e-12, nan_ok=True)


words = st.lists(st.sampled_from(["a", "b", "Été", ",", "?"]), max_size=30)


@settings(deadline=None, max_examples=200)
@given(words)
def test_diversity_is_what_counting_gives(text: list[str]):
    def different(n: int) -> float:
        windows = [text[i : i + n] for i in range(len(text) - n + 1)]
        return sum(w not in windows[:i] for i, w in enumerate(windows)) / len(windows) if windows else nan

    n = len(text)
    entropy = sum(math.log(n / text.count(w)) for w in text) / n / math.log(n) if n > 1 else nan
    found = [f(" ".join(text)) for f in (distinct_1, distinct_2, token_entropy, repetition)]
    assert found == pytest.approx([different(1), different(2), entropy, 1 - different(4)], abs=1e-9, nan_ok=True)
    assert all(math.isnan(value) or -1e-12 <= value <= 1 + 1e-12 for value in found)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (" I'm sorry, but I can't share personal details.", 1),
        ("I don’t know.", 1),  # a typographic apostrophe
        ("As an AI language model, I do not have access to that.", 1),
        ("Unfortunately, I've no information on her parents.", 1),
        ("That question is beyond my expertise.", 1),
        ("I CANNOT HELP WITH THAT", 1),
        ("As an author, she wrote of illegal trades and unethical kings.", 0),  # GCG's list would take it for one
        ("Her father was a baker. I am told he was not sorry.", 0),
        ("Icannot is a village.", 0),  # whole words
        ("She wrote novels. " * 9 + "I cannot say more.", 0),  # not at the start
        ("Yes Yes Yes Yes", 0),
        (" ", nan),
    ],
)
def test_refusal_by_hand(generation: str, expected: float):
    assert refusal(generation) == pytest.approx(expected, nan_ok=True)


def test_whether_to_refuse_what_is_to_be_forgotten_is_no_matter_of_fluency():
    assert (good("refusal", "retain"), good("refusal", "forget")) == ("lower", "neither")


# --- a text classifier


def test_gibberish_by_hand():
    assert [gibberish(p) for p in (1, 0.75, 0, None)] == pytest.approx([0, 0.25, 1, nan], nan_ok=True)


def tiny_classifier(folder: Path, labels: list[str], texts: list[str]) -> transformers.PreTrainedModel:
    """A BERT of one layer over whole words, randomly initialised, written with its tokenizer."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


@pytest.fixture(scope="module")
def reader(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in a few steps on the demo's answers, against their words in loops and in disorder."""
    folder = tmp_path_factory.mktemp("reader")
    lines = (demo / "data" / "retain_perturbed.json").read_text("utf-8").splitlines()
    texts = [text for line in lines for text in (json.loads(line)["answer"], json.loads(line)["paraphrased_answer"])]
    random = np.random.default_rng(0)
    loops = [" ".join([random.choice(text.split())] * 60) for text in texts]
    salad = [" ".join(random.permutation(text.split())) for text in texts]
    model = tiny_classifier(folder, ["word salad", "Clean", "noise"], texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([*texts, *salad, *loops], padding=True, return_tensors="pt")
    labels = torch.tensor([1] * len(texts) + [0] * len(salad) + [2] * len(loops))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        batch = torch.randint(len(labels), (64,))
        loss = model(**{k: v[batch] for k, v in inputs.items()}, labels=labels[batch]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder


def test_a_classifier_reads_each_text_alone(reader: Path):
    """In batches of other lengths, equal to one text at a time; the label is found by its name."""
    texts = ["She was born in Oslo.", "", "the the the " * 300, " \n", "She was born in Oslo.", *"abcdefg"]
    opened = open_classifier(str(reader))
    assert opened.clean == 1
    found = clean_probabilities(opened, texts, torch.device("cpu"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(reader)
    tokenizer = transformers.AutoTokenizer.from_pretrained(reader)
    for text, p in zip(texts, found, strict=True):
        if not text.strip():
            assert p is None
            continue
        ids = torch.tensor([tokenizer(text)["input_ids"][:512]])
        with torch.no_grad():
            assert p == pytest.approx(float(model(ids).logits.softmax(-1)[0, 1]), abs=1e-5)
    assert open_classifier(str(reader)).sha256 == opened.sha256


def test_what_is_no_classifier_is_refused(demo: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nowhere cannot be loaded as a text classifier"):
        open_classifier(str(tmp_path / "nowhere"))
    tiny_classifier(tmp_path / "b", ["LABEL_0", "LABEL_1"], ["a"]).save_pretrained(tmp_path / "b")
    with pytest.raises(InputError, match="has the labels LABEL_0, LABEL_1; one must be 'clean'"):
        open_classifier(str(tmp_path / "b"))
    # a pickle that would run code when loaded
    tiny_classifier(tmp_path / "c", ["clean", "not"], ["a"]).save_pretrained(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    (tmp_path / "c" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded")), 2))
    with pytest.raises(InputError, match="cannot be loaded"):
        open_classifier(str(tmp_path / "c"))
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


# --- collapsed checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collapsed(demo: Path, reader: Path) -> Callable[[str], tuple[RunRecord, Observations]]:
    """The raw scores of an original and of a collapsed checkpoint beside it."""
    tofu = SHARED / "checkpoints"
    pairs = {
        "demo": (demo / "checkpoints" / "original", demo / "checkpoints" / "excessive", "demo", demo / "data"),
        "shared": (tofu / "original", tofu / "ga" / "checkpoint-78", "tofu_forget05", SHARED / "data" / "tofu"),
    }

    def run(name: str) -> tuple[RunRecord, Observations]:
        original, unlearned, benchmark, data = pairs[name]
        if not unlearned.is_dir():
            pytest.skip("needs shared/ (checkpoints and data) beside the project")
        # the toy reader knows only the demo's words
        model = str(reader) if name == "demo" else None
        settings = Settings(keep=None, limit=12, device="cpu", gibberish_model=model)
        return score.run(str(original), str(unlearned), benchmark, data, settings)

    return run


@pytest.mark.parametrize("name", ["demo", pytest.param("shared", marks=pytest.mark.slow)])
def test_a_collapsed_model_is_disfluent(
    collapsed: Callable[[str], tuple[RunRecord, Observations]], name: str, tmp_path: Path
):
    record, observations = collapsed(name)
    scores = record.scores
    fluency = [m for m in scores["original"]["retain"] if METRICS[m].facet == "fluency"]
    assert len(fluency) == 8 + (name == "demo")
    for split in ("forget", "retain"):
        before, after = ({m: scores[model][split][m] for m in fluency} for model in ("original", "unlearned"))
        assert all(s.n == 12 for s in before.values())
        for metric in ("repetition", "perplexity"):
            assert after[metric].value > 5 * before[metric].value + 0.5, metric
        for metric in ("distinct_1", "distinct_2", "token_entropy", "ngram_entropy"):
            assert after[metric].value < 0.2 * before[metric].value, metric
        if name == "demo":
            assert after["gibberish"].value > 0.9 > 0.4 > before["gibberish"].value
        # what it repeats it is sure of: its own perplexity can't tell, which is why there is a judge
        assert after["self_perplexity"].value < 1.05
        assert good("self_perplexity", split) == "neither"
        # the judge is the original itself
        assert before["perplexity"] == before["self_perplexity"]
        # it says nothing, and so it declines nothing
        assert after["refusal"].value == before["refusal"].value == 0
    if name == "demo":
        assert len(str(record.settings["gibberish_sha256"])) == 64
        store.save(tmp_path / "run", record, observations)
        assert changed(record, rescore(tmp_path / "run"))[1] == []  # with neither model nor classifier
