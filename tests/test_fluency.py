"""Does the model still speak? Each measure by hand, against counting, and on checkpoints that really are collapsed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_metrics import score
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.metrics.fluency import distinct_1, distinct_2, refusal, repetition, token_entropy
from unlearn_metrics.types import RunRecord, Settings

SHARED = Path(os.environ.get("UNLEARN_SHARED", Path(__file__).parent.parent.parent / "shared"))
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
    found = [distinct_1(generation), distinct_2(generation), token_entropy(generation)]
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


# --- collapsed checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collapsed(demo: Path) -> Callable[[str], RunRecord]:
    """The raw scores of an original and of a collapsed checkpoint beside it."""
    tofu = SHARED / "checkpoints"
    pairs = {
        "demo": (demo / "checkpoints" / "original", demo / "checkpoints" / "excessive", "demo", demo / "data"),
        "shared": (tofu / "original", tofu / "ga" / "checkpoint-78", "tofu_forget05", SHARED / "data" / "tofu"),
    }

    def run(name: str) -> RunRecord:
        original, unlearned, benchmark, data = pairs[name]
        if not unlearned.is_dir():
            pytest.skip("needs shared/ (checkpoints and data) beside the project")
        return score.run(str(original), str(unlearned), benchmark, data, Settings(keep=None, limit=12, device="cpu"))[0]

    return run


@pytest.mark.parametrize("name", ["demo", "shared"])
def test_a_collapsed_model_is_disfluent(collapsed: Callable[[str], RunRecord], name: str):
    scores = collapsed(name).scores
    fluency = [m for m in scores["original"]["retain"] if METRICS[m].facet == "fluency"]
    assert len(fluency) == 8
    for split in ("forget", "retain"):
        before, after = ({m: scores[model][split][m] for m in fluency} for model in ("original", "uncontrolled"))
        assert all(s.n == 12 for s in before.values())
        for metric in ("repetition", "perplexity"):
            assert after[metric].value > 5 * before[metric].value + 0.5, metric
        for metric in ("distinct_1", "distinct_2", "token_entropy", "ngram_entropy"):
            assert after[metric].value < 0.2 * before[metric].value, metric
        # what it repeats it is sure of: its own perplexity can't tell, which is why there is a judge
        assert after["self_perplexity"].value < 1.05
        assert good("self_perplexity", split) == "neither"
        # the judge is the original itself
        assert before["perplexity"] == before["self_perplexity"]
        # it says nothing, and so it declines nothing
        assert after["refusal"].value == before["refusal"].value == 0
