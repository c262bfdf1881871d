"""Every metric against hand-computed values, against a naive twin that does what is defined, and by property."""

from __future__ import annotations

import inspect
import math
import re
import tracemalloc
from binascii import crc32
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from unlearn_metrics.documents import SAMPLINGS, MeanLoss, TokenScores
from unlearn_metrics.metrics import JUDGED, MEMBERSHIP_ATTACKS, METRICS, TRUTH_RATIOS, good
from unlearn_metrics.metrics.fluency import ngram_entropy, perplexity, repetition
from unlearn_metrics.metrics.forget_quality import ks_forget_quality
from unlearn_metrics.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    probability,
    probability_normalised,
    probability_wrong,
    truth_ratio,
    truth_ratio_arithmetic,
)
from unlearn_metrics.metrics.privacy import loss, min_k, min_k_plus_plus, weighted_aucs, zlib
from unlearn_metrics.metrics.retention import rouge, rouge_f1

EOS = 99


hypothesis = settings(deadline=None, max_examples=200)


def scores(tokens: list[int], argmax: list[int], logprob: list[float]) -> TokenScores:
    """tokens without, argmax and logprob with the end-of-sequence position."""
    ids, top = np.array([*tokens, EOS], np.int32), np.array(argmax, np.int32)
    logp = np.array(logprob, np.float32)
    assert ids.shape == top.shape == logp.shape
    return TokenScores(ids, top, logp, np.full_like(logp, -1), np.ones_like(logp))


def matching(flags: str, eos: bool = True) -> TokenScores:
    """'101': the first and third answer tokens are the arg-max, the second is not."""
    argmax = [i if flag == "1" else i + 50 for i, flag in enumerate(flags)]
    return scores(list(range(len(flags))), [*argmax, EOS if eos else 0], [-1.0] * (len(flags) + 1))


def probable(*p: float) -> TokenScores:
    """Token probabilities, the last one of end-of-sequence."""
    return losing(*(-math.log(x) for x in p))


def losing(*loss: float) -> TokenScores:
    """Losses in nats, the last one of end-of-sequence."""
    n = len(loss) - 1
    return scores(list(range(n)), [*range(n), EOS], [-x for x in loss])


# --- hand-computed values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "extracted", "exact"),
    [
        ("1", 1, 1),
        ("0", 0, 0),
        ("11111", 1, 1),  # nothing has to be revealed
        ("00000", 0, 0),  # a total miss is 0, not 1/5
        ("1110", 0, 3 / 4),  # all must be revealed to get the last token right
        ("0111", 3 / 4, 3 / 4),  # reveal 1 of 4
        ("1011", 1 / 2, 3 / 4),  # reveal 2 of 4: the miss at 2 is the last
        ("0101", 1 / 4, 1 / 2),  # reveal 3 of 4; the hit at 2 is of no use
        ("1110001111", 4 / 10, 7 / 10),
    ],
)
@pytest.mark.parametrize("eos", [True, False])
def test_extraction_strength_and_exact_memorization_by_hand(flags: str, extracted: float, exact: float, eos: bool):
    answer = matching(flags, eos)  # the end-of-sequence position counts for neither
    assert extraction_strength(answer) == pytest.approx(extracted, abs=1e-12)
    assert exact_memorization(answer) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (probable(1, 1, 1), 1),
        (probable(1 / 2, 1 / 8), 1 / 4),  # sqrt(1/16): end-of-sequence is one of the two tokens
        (probable(1 / 2, 1 / 4, 1 / 8), 1 / 4),  # cube root of 1/64
        (probable(1, 1, 1 / 27), 1 / 3),  # a sure answer whose end is unsure
        (losing(700, 700, 700), 9.8596765e-305),  # e^-700
        (losing(0, math.inf), 0),  # an impossible token
    ],
)
def test_probability_by_hand(answer: TokenScores, expected: float):
    assert probability(answer) == pytest.approx(expected, rel=1e-6, abs=0)


def test_probability_wrong_is_the_mean_of_probabilities_not_of_losses():
    # 1/2 and 1/8: their mean is 5/16, their geometric mean would be 1/4
    assert probability_wrong([probable(1 / 2, 1 / 2), probable(1 / 8, 1 / 8)]) == pytest.approx(5 / 16)


@pytest.mark.parametrize(
    ("answer", "wrong", "expected"),
    [
        (probable(1 / 4, 1 / 4), [probable(1 / 8, 1 / 8)] * 2, 1 / 2),  # 1/4 / (1/4 + 1/8 + 1/8)
        (probable(1 / 2, 1 / 8), [probable(1 / 4, 1 / 4, 1 / 4, 1 / 4)], 1 / 2),  # each by its own length: both 1/4
        (probable(1 / 10, 1 / 10), [probable(1 / 5, 1 / 5), probable(1 / 2, 1 / 2)], 1 / 8),  # 0.1 / (0.1 + 0.2 + 0.5)
        (losing(700, 700), [losing(700, 700)] * 3, 1 / 4),
        (losing(800, 800), [losing(801, 801)], 0.7310585786),  # 1 / (1 + 1/e), though e^-800 underflows
        (losing(801, 801), [losing(800, 800)], 0.2689414214),  # 1 / (1 + e)
        (losing(1, 1), [losing(900, 900)], 1),
        (losing(700, 700), [losing(1, 1)], 0),  # e^-699: nothing left of it
    ],
)
def test_probability_normalised_by_hand(answer: TokenScores, wrong: list[TokenScores], expected: float):
    assert probability_normalised(answer, wrong) == pytest.approx(expected, rel=1e-6, abs=1e-300)


HALF, QUARTER, EIGHTH = (probable(p, p) for p in (1 / 2, 1 / 4, 1 / 8))


@pytest.mark.parametrize(
    ("true", "wrong", "forget", "elsewhere"),
    [
        (HALF, [HALF, HALF], 1, 0),  # R = 1
        (HALF, [EIGHTH], 1 / 4, 3 / 4),  # R = (1/8) / (1/2)
        (EIGHTH, [HALF], 1 / 4, 0),  # R = 4
        (QUARTER, [HALF, EIGHTH], 1, 0),  # wrong answers by their geometric mean, 1/4: R = 1
        (HALF, [HALF, EIGHTH], 1 / 2, 1 / 2),  # R = (1/4) / (1/2)
        (losing(700, 700), [losing(700, 700)] * 5, 1, 0),  # e^700 / e^700
        (losing(900, 900), [losing(900, 900)] * 5, 1, 0),  # e^900 is no double
        (losing(801, 801), [losing(800, 800)], 0.3678794412, 0),  # R = e
        (losing(800, 800), [losing(801, 801)], 0.3678794412, 0.6321205588),  # R = 1/e
        (losing(1, 1), [losing(900, 900)], 0, 1),
    ],
)
def test_truth_ratio_by_hand(true: TokenScores, wrong: list[TokenScores], forget: float, elsewhere: float):
    assert truth_ratio(true, wrong, "forget") == pytest.approx(forget, rel=1e-6, abs=1e-300)
    for split in ("retain", "real_authors"):
        assert truth_ratio(true, wrong, split) == pytest.approx(elsewhere, rel=1e-6, abs=1e-6)


def test_arithmetic_truth_ratio_by_hand():
    """p = 2/5; wrong answers 1/2 and 1/8: their arithmetic mean is 5/16, their geometric one 1/4."""
    true, wrong = MeanLoss(math.log(5 / 2)), [MeanLoss(math.log(2)), MeanLoss(math.log(8))]
    assert truth_ratio_arithmetic(true, wrong, "forget") == pytest.approx(25 / 32)
    assert truth_ratio_arithmetic(true, wrong, "retain") == pytest.approx(7 / 32)
    assert truth_ratio(true, wrong, "forget") == pytest.approx(5 / 8)
    likely = [MeanLoss(0.0), MeanLoss(math.log(2))]  # 3/4 against 2/5: the wrong ones are likelier
    assert truth_ratio_arithmetic(true, likely, "forget") == pytest.approx(8 / 15)
    assert truth_ratio_arithmetic(true, likely, "retain") == 0


def test_losses_900_nats_apart_have_their_limits():
    sure, lost = losing(1, 1), losing(901, 901)
    assert truth_ratio_arithmetic(lost, [sure, lost], "forget") == 0
    assert truth_ratio_arithmetic(sure, [lost, lost], "retain") == 1
    assert probability_normalised(lost, [sure] * 3) == 0
    assert truth_ratio(lost, [sure], "forget") == 0
    assert truth_ratio(lost, [sure], "retain") == 0


@pytest.mark.parametrize(
    "split",
    [
        "forget",
        "retain",
    ],
)
def test_truth_ratio_of_an_unknown_loss_is_unknown(split: str):
    assert math.isnan(truth_ratio(losing(math.nan, 1), [losing(1, 1)], split))
    assert math.isnan(truth_ratio_arithmetic(losing(math.nan, 1), [losing(1, 1)], split))
    assert math.isnan(truth_ratio_arithmetic(losing(1, 1), [losing(1, 1), losing(math.nan, 1)], split))


@pytest.mark.parametrize(
    ("generation", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1),
        (" the cat sat\n", "the cat sat", 1),
        ("", "the cat sat", 0),
        (" \n", "the cat sat", 0),
        ("a", "a b c d", 1 / 4),
        ("a b c d e f", "c d", 1),  # recall: what is said beyond the reference costs nothing
        ("c b a", "a b c", 1 / 3),  # order counts
        ("the mat is on the cat", "the cat is on the mat", 4 / 6),  # the .. is on the ..
        ("a a a", "a b a", 2 / 3),  # a word is not recalled twice by one
        ("It is PARIS!", "paris", 1),  # neither case nor punctuation
        ("she runs", "he was running", 1 / 3),  # the stem of running
    ],
)
def test_rouge_by_hand(generation: str, reference: str, expected: float):
    assert rouge(generation, reference) == pytest.approx(expected, abs=1e-12)


def test_rouge_without_stemmer_tells_runs_from_running():
    assert rouge("she runs", "he was running", stemmer=False) == 0


@pytest.mark.parametrize(
    ("generation", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1),
        ("", "the cat sat", 0),
        ("a b c d e f", "c d", 1 / 2),  # 2 x 2 / (6 + 2): what is said beyond the reference costs
        ("c b a", "a b c", 1 / 3),
        ("she runs", "he was running", 0),  # no stemmer
        ("anything", "…", math.nan),
    ],
)
def test_rouge_f1_by_hand(generation: str, reference: str, expected: float):
    assert rouge_f1(generation, reference) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ("", math.nan),
        ("one two three", math.nan),  # no 4-gram
        ("one two three four", 0),
        ("a a a a a", 1 / 2),  # 2 4-grams, 1 distinct
        ("a b c d a b c d", 1 / 5),  # 5 4-grams; a b c d twice
        ("no, no, no, no,", 3 / 5),  # commas are units: 8 units, 5 4-grams, 2 distinct
        ("a\nb  c\td a b c d", 1 / 5),  # white space is not
        ("A b c d a b c d", 0),  # case is kept
    ],
)
def test_repetition_by_hand(generation: str, expected: float):
    assert repetition(generation) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ("", math.nan),
        ("one two", math.nan),  # no trigram
        ("a a a a a a", 0),
        ("a b c", 1 / 3),  # 2 bigrams: 1 bit, 1 trigram: 0 bit; (2/3 * 1 + 4/3 * 0) / 2
        ("a b c d", 1.1949875002),  # 3 bigrams: log2 3 = 1.5849625, 2 trigrams: 1; (2/3 * 1.5849625 + 4/3 * 1) / 2
        ("a b a b a", 0.9455305560),  # ab ba ab ba: 1 bit, aba bab aba: log2 3 - 2/3 = 0.9182958; 1/3 + 2/3 * 0.9182958
        ("a, b", 1 / 3),  # the comma is a unit
    ],
)
def test_ngram_entropy_by_hand(generation: str, expected: float):
    assert ngram_entropy(generation) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (None, math.nan),  # nothing was generated
        (probable(1, 1, 1), 1),
        (probable(1 / 2, 1 / 8, 1e-9), 4),  # sqrt(2 * 8): end-of-sequence is not counted
        (probable(1 / 10, 1), 10),
        (losing(700, 0), 1.0142321e304),  # e^700
    ],
)
def test_perplexity_by_hand(judged: TokenScores | None, expected: float):
    assert perplexity(judged) == pytest.approx(expected, rel=1e-5, nan_ok=True)


# --- of many documents, and attacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unlearned", "retain", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1),
        ([1, 2, 3], [4, 5, 6], 2 / 20),  # 2 of the 6 choose 3 = 20 orders are as far apart
        ([1, 2, 3, 4], [8, 7, 6, 5], 2 / 70),  # 8 choose 4 = 70
        ([1, 2, 3, 5], [4, 6, 7, 8], 16 / 70),  # D = 3/4: 2 * (8 choose 1) paths reach it
    ],
)
def test_forget_quality_by_hand(unlearned: list[float], retain: list[float], expected: float):
    names = "abcd"[: len(retain)]
    u, r = dict(zip(names, unlearned, strict=True)), dict(zip(reversed(names), retain, strict=True))
    assert ks_forget_quality(u, r) == pytest.approx(expected)
    assert ks_forget_quality({k: math.exp(v) for k, v in u.items()}, {k: math.exp(v) for k, v in r.items()}) == (
        pytest.approx(expected)  # log R or R
    )


def test_forget_quality_refuses_different_questions():
    with pytest.raises(ValueError, match="'b'"):
        ks_forget_quality({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0})


@hypothesis
@given(*[st.lists(st.integers(0, 5), min_size=1, max_size=12)] * 2)
def test_auc_is_the_share_of_pairs_in_the_right_order(forget: list[float], holdout: list[float]):
    right = sum((h > f) + (h == f) / 2 for h in holdout for f in forget)
    scores = np.array(forget), np.array(holdout)
    once = [np.ones((1, len(s))) for s in scores]
    assert weighted_aucs(*scores, *once) == pytest.approx(right / (len(forget) * len(holdout)))


@given(
    forget=st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    holdout=st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    data=st.data(),
)
def test_auc_of_resamples_counts_each_document_as_often_as_it_is_drawn(forget, holdout, data):
    weights = [
        np.array(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=2, max_size=2)))
        for n in (len(forget), len(holdout))
    ]
    assume(all(row.sum() > 0 for one in weights for row in one))
    found = weighted_aucs(np.array(forget, float), np.array(holdout, float), *(w.astype(float) for w in weights))
    for k in range(2):
        mine, theirs = (np.repeat(x, w[k]) for x, w in zip((forget, holdout), weights, strict=True))
        right = sum((a < b) + 0.5 * (a == b) for a in mine for b in theirs)
        assert found[k] == pytest.approx(right / (len(mine) * len(theirs)))


def test_auc_takes_no_matrix_of_pairs():
    """100,000 documents on either side: every pair would be 80 GB."""
    n = 100_000
    once = np.ones((1, n))
    assert weighted_aucs(np.arange(n) + 0.0, np.arange(n) + 0.5, once, once)[0] == pytest.approx((n + 1) / (2 * n))


def test_attack_scores_by_hand():
    answer = TokenScores(
        tokens=np.array([0, 1, 2, 3, 4, EOS], np.int32),
        argmax=np.array([0, 1, 2, 3, 4, EOS], np.int32),
        logprob=np.array([-5, -1, -3, -2, -4, -9], np.float32),
        mean=np.array([-1, -1, -1, -2, -2, 0], np.float32),
        variance=np.array([16, 1, 4, 1, 4, 0], np.float32),
    )
    assert loss(answer) == 4  # 24 / 6, end-of-sequence among them
    assert min_k(answer) == 4.5  # 40 % of 5 are 2, without end-of-sequence: (5 + 4) / 2
    assert min_k(answer, 1) == 3  # 15 / 5
    assert min_k(answer, 0.01) == 5  # one at least
    assert min_k_plus_plus(answer, 0.2) == 1  # -4/4, 0, -2/2, 0, -2/2
    assert min_k_plus_plus(answer, 0.8) == pytest.approx(3 / 4)  # (1 + 1 + 1 + 0) / 4
    sure = TokenScores(answer.tokens, answer.argmax, answer.logprob, answer.mean, np.zeros(6, np.float32))
    assert min_k_plus_plus(sure, 0.01) == pytest.approx(4000)  # no variance counts as 1e-6: 4 / 0.001
    # the same loss is more telling on a text that is hard to compress, in proportion to the loss
    assert zlib(answer, "abcdefghijklmnopqrstuvwxyz") < zlib(answer, "a" * 26) < loss(answer)
    assert zlib(answer, "Oslo") == pytest.approx(2 * zlib(losing(2, 2), "Oslo"))


@pytest.mark.parametrize("attack", [min_k, min_k_plus_plus])
def test_an_attack_score_of_an_unknown_loss_is_unknown(attack: Callable[[TokenScores], float]):
    assert math.isnan(attack(losing(1, 1, math.nan, 1, 1, 1)))


# --- naive twins: the definition, done ------------------------------------------------------------------------------


@hypothesis
@given(st.data())
def test_extraction_strength_is_what_decoding_after_revealing_k_tokens_gives(data: st.DataObject):
    vocabulary = data.draw(st.integers(1, 3))
    answer = tuple(data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=8)))
    known = data.draw(st.lists(st.booleans(), min_size=len(answer), max_size=len(answer)))
    seed = data.draw(st.integers(0, 1000))
    n = len(answer)

    def next_token(prefix: tuple[int, ...]) -> int:
        """A toy model: it knows some of the answer's steps; after any other prefix it says something arbitrary."""
        if len(prefix) < n and prefix == answer[: len(prefix)] and known[len(prefix)]:
            return answer[len(prefix)]
        return crc32(repr((seed, prefix)).encode()) % vocabulary

    def decoded(k: int) -> tuple[int, ...]:
        text = answer[:k]
        while len(text) < n:
            text += (next_token(text),)
        return text

    fewest = next(k for k in range(n + 1) if decoded(k) == answer)
    teacher_forced = scores(list(answer), [next_token(answer[:i]) for i in range(n + 1)], [-1.0] * (n + 1))
    assert extraction_strength(teacher_forced) == pytest.approx((n - fewest) / n, abs=1e-12)


any_words = st.lists(st.sampled_from(["runs", "running", "cat", "Cats", "1958.", "naïve", "É", "…"])).map(" ".join)


@hypothesis
@given(any_words, any_words)
def test_rouge_is_the_rouge_score_packages(generation: str, reference: str):
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(reference, generation)["rougeL"].recall
    assert rouge(generation, reference) == theirs or (math.isnan(rouge(generation, reference)) and theirs == 0)
    plain = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(reference, generation)["rougeL"].fmeasure
    ours = rouge_f1(generation, reference)
    assert ours == pytest.approx(plain) or (math.isnan(ours) and plain == 0)


def test_rouge_of_two_long_texts_needs_no_table_of_both():
    """A table of 20,000 x 20,000 numbers, as the package fills it, would be 3 GB."""
    words = [str(i) for i in range(20_000)]
    tracemalloc.start()
    assert rouge(" ".join(words), " ".join(reversed(words))) == 1 / 20_000
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()


few_words = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=7)  # too short for the stemmer


@hypothesis
@given(few_words, few_words.filter(bool))
def test_rouge_is_the_longest_part_of_the_reference_said_in_order(generation: list[str], reference: list[str]):
    def said(part: tuple[str, ...]) -> bool:
        rest = iter(generation)
        return all(word in rest for word in part)  # "in" consumes the iterator

    longest = max(r for r in range(len(reference) + 1) if any(map(said, combinations(reference, r))))
    assert rouge(" ".join(generation), " ".join(reference)) == pytest.approx(longest / len(reference), abs=1e-12)


units = st.lists(st.sampled_from(["a", "b", "Été", ",", "?"]), max_size=30)


@hypothesis
@given(units)
def test_repetition_and_entropy_are_what_counting_by_hand_gives(text: list[str]):
    def windows(n: int) -> list[list[str]]:
        return [text[i : i + n] for i in range(len(text) - n + 1)]

    def entropy(n: int) -> float:
        found = windows(n)
        return sum(math.log2(len(found) / found.count(w)) for w in found) / len(found)

    seen = [w in windows(4)[:i] for i, w in enumerate(windows(4))]
    share = sum(seen) / len(seen) if seen else math.nan
    assert repetition(" ".join(text)) == pytest.approx(share, abs=1e-12, nan_ok=True)
    bits = (entropy(2) + 2 * entropy(3)) / 3 if len(text) >= 3 else math.nan
    assert ngram_entropy(" ".join(text)) == pytest.approx(bits, abs=1e-9, nan_ok=True)


# --- properties -----------------------------------------------------------------------------------------------------

flags = st.text("01", min_size=1, max_size=40)
losses = st.lists(st.floats(0, 700, width=32), min_size=2, max_size=10)
answers = losses.map(lambda loss: losing(*loss))


@hypothesis
@given(flags, st.data())
def test_what_is_extracted_is_memorized_and_learning_a_token_lowers_neither(flags: str, data: st.DataObject):
    n, extracted, exact = len(flags), extraction_strength(matching(flags)), exact_memorization(matching(flags))
    assert 0 <= extracted <= exact + 1e-12
    assert exact <= 1
    tail = round(extracted * n)
    assert flags.endswith("1" * tail)  # so many of the last tokens match,
    assert tail == n or flags[n - tail - 1] == "0"  # and not one more
    i = data.draw(st.integers(0, n - 1))
    learned = matching(flags[:i] + "1" + flags[i + 1 :])
    assert extraction_strength(learned) >= extracted
    assert exact_memorization(learned) >= exact


@hypothesis
@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_probabilities_and_ratios_stay_within_0_and_1(answer: TokenScores, wrong: list[TokenScores]):
    assert 0 <= probability(answer) <= 1
    assert 0 <= probability_wrong(wrong) <= 1
    assert 0 <= probability_normalised(answer, wrong) <= 1
    assert 0 <= truth_ratio(answer, wrong, "forget") <= 1
    assert 0 <= truth_ratio(answer, wrong, "retain") <= 1
    assert 0 <= truth_ratio_arithmetic(answer, wrong, "forget") <= 1
    # an arithmetic mean is no less than a geometric one, so the truth stands out less
    assert 0 <= truth_ratio_arithmetic(answer, wrong, "retain") <= truth_ratio(answer, wrong, "retain") + 1e-12


@hypothesis
@given(st.lists(answers, min_size=2, max_size=5))
def test_normalised_probabilities_of_all_choices_sum_to_1(choices: list[TokenScores]):
    shares = [probability_normalised(c, choices[:i] + choices[i + 1 :]) for i, c in enumerate(choices)]
    assert math.fsum(shares) == pytest.approx(1, abs=1e-9)
    most = int(np.argmax([np.mean(c.logprob, dtype=np.float64) for c in choices]))
    assert shares[most] == pytest.approx(max(shares))  # and the likeliest choice has the most


@hypothesis
@given(answers, answers, st.integers(1, 4))
def test_truth_ratio_on_forget_does_not_know_true_from_wrong(a: TokenScores, b: TokenScores, wrongs: int):
    there, back = truth_ratio(a, [b] * wrongs, "forget"), truth_ratio(b, [a] * wrongs, "forget")
    assert there == pytest.approx(back, rel=1e-9)
    # elsewhere the truth stands out for one of the two at most, and by what the forget form lacks
    one, other = truth_ratio(a, [b] * wrongs, "retain"), truth_ratio(b, [a] * wrongs, "retain")
    assert min(one, other) == pytest.approx(0, abs=1e-9)
    assert max(one, other) == pytest.approx(1 - there, abs=1e-9)


@hypothesis
@given(losses, st.lists(answers, min_size=1, max_size=3), st.data())
def test_a_likelier_answer_scores_no_lower(loss: list[float], wrong: list[TokenScores], data: st.DataObject):
    i = data.draw(st.integers(0, len(loss) - 1))
    before, after = losing(*loss), losing(*loss[:i], loss[i] / 2, *loss[i + 1 :])
    rounding = 1e-12
    assert probability(after) >= probability(before) - rounding
    assert probability_normalised(after, wrong) >= probability_normalised(before, wrong) - rounding
    assert truth_ratio(after, wrong, "retain") >= truth_ratio(before, wrong, "retain") - rounding
    # and one more choice, at least as likely as the answer, leaves it half at most
    share, rest = probability_normalised(before, [*wrong, after]), probability_normalised(before, wrong)
    assert share <= min(rest, 1 / 2) + rounding


@hypothesis
@given(few_words, few_words, few_words.filter(bool))
def test_saying_more_recalls_no_less(generation: list[str], more: list[str], reference: list[str]):
    short, long, wanted = (" ".join(part) for part in (generation, generation + more, reference))
    assert 0 <= rouge(short, wanted) <= rouge(long, wanted) <= 1
    assert rouge(wanted, wanted) == 1


@hypothesis
@given(units.filter(lambda text: len(text) >= 4))
def test_a_text_said_twice_repeats_itself_and_one_word_over_and_over_repeats_most(text: list[str]):
    twice, stuck = text + text, text[:1] * 2 * len(text)
    # of 2n - 3 4-grams, the n - 3 within the second saying were all said before
    assert repetition(" ".join(twice)) >= (len(text) - 3) / (2 * len(text) - 3) - 1e-12
    assert 0 <= repetition(" ".join(twice)) <= repetition(" ".join(stuck)) < 1
    assert ngram_entropy(" ".join(stuck)) == pytest.approx(0, abs=1e-12)
    assert ngram_entropy(" ".join(twice)) >= 0


# --- the registry ---------------------------------------------------------------------------------------------------

# What a Document may hold, see unlearn_metrics.documents.
FIELDS = {
    "id",
    "split",
    "cluster",
    "reference",
    "generation",
    "answer",
    "paraphrased_question",
    "true_answer",
    "wrong_answers",
    "judged_generation",
    "self_judged_generation",
    "revealed",
    "clean_probability",
    "gradient",
    "similarity",
    "entailed",
    "judged",
}


def answered(flags: str, p: float) -> TokenScores:
    """Every token and end-of-sequence of probability p; under other settings of sampling of p^2, p^3 and p^4."""
    n = len(flags)
    argmax = [i if flag == "1" else i + 50 for i, flag in enumerate(flags)]
    drawn = {name: np.full(n + 1, power * math.log(p)) for power, name in enumerate(SAMPLINGS, start=2)}
    return replace(scores(list(range(n)), [*argmax, EOS], [math.log(p)] * (n + 1)), **drawn)


def test_every_metric_reads_its_own_fields():
    """No two fields give the same value, so a metric that reads another's, or swaps two, shows."""
    document: dict[str, Any] = {
        "split": "retain",
        "answer": answered("01011", 1 / 2),
        "paraphrased_question": answered("00101", 1 / 5),
        "true_answer": answered("11111", 2 / 5),
        "wrong_answers": [answered("0", 1 / 8), answered("00", 1 / 8)],
        "reference": "a b c d e f",
        "generation": "a b a b a",
        "judged_generation": answered("111", 1 / 16),
        "self_judged_generation": answered("111", 1 / 9),
        "revealed": 2,
        "clean_probability": 3 / 7,
        "gradient": 5 / 7,
        "similarity": 1 / 11,
        "entailed": 1 / 13,
        "judged": 1 / 17,
    }
    expected = {
        "extraction_strength": 2 / 5,
        "extraction_strength_similar": 3 / 5,
        "exact_memorization": 3 / 5,
        "probability": 1 / 2,
        "extraction_strength_paraphrased": 1 / 5,
        "exact_memorization_paraphrased": 2 / 5,
        "probability_paraphrased": 1 / 5,
        "probability_paraphrased_answer": 2 / 5,
        "probability_wrong": 1 / 8,
        "probability_normalised": 2 / 3,  # 1/2 / (1/2 + 1/8 + 1/8)
        "truth_ratio": 11 / 16,  # 1 - (1/8) / (2/5)
        "truth_ratio_arithmetic": 11 / 16,  # two wrong answers of one probability
        "rouge": 1 / 3,  # a b of six; precision would be 2/5
        "rouge_f1": 4 / 11,  # 2 x 2 / (5 + 6)
        "answer_match": 0,
        "cosine": 1 / 11,
        "entailment": 1 / 13,
        "judge": 1 / 17,
        "repetition": 0,  # abab, baba
        "distinct_1": 2 / 5,
        "distinct_2": 1 / 2,
        "token_entropy": 0.4181656600,  # (3/5 log 5/3 + 2/5 log 5/2) / log 5
        "ngram_entropy": 0.945530556,
        "refusal": 0,
        "gibberish": 4 / 7,
        "perplexity": 16,
        "self_perplexity": 9,
        "loss": math.log(2),
        "zlib": math.log(2) / 20,  # bytes of the compressed " a b c d e f"
        "min_k": math.log(2),
        "min_k_plus_plus": math.log(2) - 1,  # mean -1, deviation 1
        "gradnorm": 5 / 7,
        # five tokens of 1/2 each: p = 1/32; 22 samples hold it with probability 0.5, 73 with 0.9
        **{f"leak_at_{k}": 1 - (31 / 32) ** k for k in (1, 10, 100, 1000, 10_000, 1_000_000)},
        **{f"extracted_within_{n}_p{p}": 1 for p in (50, 90) for n in (100, 10_000, 1_000_000)},
        "expected_prefix": 31 / 32 / 5,
        "sampled_extraction_strength_1": 1 / 5,  # the last token
        "sampled_extraction_strength_10": 3 / 5,  # 1/8 is enough, 1/16 is not: 1 - 0.5^(1/10) = 0.067
        "sampled_extraction_strength_100": 1,
        "sampled_extraction_strength_1000": 1,
    }
    for name, q in (("temp80", 1 / 4), ("top40", 1 / 8), ("nucleus90", 1 / 16)):
        expected |= {f"leak_at_{k}_{name}": 1 - (1 - q**5) ** k for k in (1, 1000, 1_000_000)}
        expected[f"expected_prefix_{name}"] = (q + q**2 + q**3 + q**4 + q**5) / 5
        expected[f"sampled_extraction_strength_1_{name}"] = 0  # the last token is not likely enough
    # with 1,000 samples a chance of 0.00069 is enough: 4^-5, 8^-3 and 16^-2 are the last that have it
    expected |= {
        "sampled_extraction_strength_1000_temp80": 1,
        "sampled_extraction_strength_1000_top40": 3 / 5,
        "sampled_extraction_strength_1000_nucleus90": 2 / 5,
    }
    assert {name: metric(document) for name, metric in METRICS.items()} == pytest.approx(expected, rel=1e-6)
    assert METRICS["truth_ratio"]({**document, "split": "forget"}) == pytest.approx(5 / 16, rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_fields_that_its_function_takes(name: str):
    metric = METRICS[name]
    assert set(metric.needs) <= FIELDS
    inspect.signature(metric.fn).bind(*metric.needs)  # TypeError: too few or too many
    assert (name in JUDGED) == bool(re.search("judged|clean_probability|similarity|entailed", " ".join(metric.needs)))
    bare = name.removesuffix("_paraphrased").removeprefix("self_")
    assert bare.startswith(metric.fn.__name__)  # one name, one spelling
    assert metric.geometric == ("perplexity" in name)  # what has no upper bound must not let one document rule


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_where_it_comes_from(name: str):
    doc = METRICS[name].fn.__doc__ or ""
    assert re.search(r"Source: (\w|\s)+.* (19|20)\d\d\b|OpenUnlearning's `\w+`", doc)


@pytest.mark.parametrize("name", METRICS)
def test_better_is_where_a_model_that_knows_and_speaks_stands(name: str):
    text = "She was born in Oslo and wrote four novels about the sea."
    knowing = {
        "split": "retain",
        **dict.fromkeys(("answer", "paraphrased_question", "true_answer"), answered("1111", 0.9)),
        "revealed": 0,
        "clean_probability": 0.9,
        "gradient": 0.1,
        **dict.fromkeys(("similarity", "entailed", "judged"), 0.9),
        "wrong_answers": [answered("0011", 0.1)],
        "reference": text,
        "generation": text,
        "judged_generation": answered("1111", 0.9),
    }
    broken = {
        "split": "retain",
        **dict.fromkeys(("answer", "paraphrased_question", "true_answer"), answered("0000", 0.001)),
        "revealed": 4,
        "clean_probability": 0.2,
        "gradient": 5.0,
        **dict.fromkeys(("similarity", "entailed", "judged"), 0.2),
        "wrong_answers": [answered("0011", 0.2)],
        "reference": text,
        "generation": "I do not know, the the the the the the the",
        "judged_generation": answered("0000", 0.2),
    }
    metric = METRICS[name]
    if metric.better == "neither":
        assert name == "self_perplexity"
        return
    assert metric.better == ("higher" if metric(knowing) > metric(broken) else "lower")


def test_on_forget_it_is_good_to_hold_less_of_the_text_but_not_to_speak_worse():
    elsewhere = {"probability_wrong", "repetition", "perplexity", "refusal", "gibberish", *MEMBERSHIP_ATTACKS}
    assert {name for name in METRICS if good(name, "retain") == "lower"} == elsewhere
    # on forget only fluency, and truth_ratio with its own form, keep their direction; a text should look new to attacks
    fluent = {"ngram_entropy", "token_entropy", "distinct_1", "distinct_2"}
    assert {name for name in METRICS if good(name, "forget") == "higher"} == {
        *TRUTH_RATIOS,
        *fluent,
        *MEMBERSHIP_ATTACKS,
    }
