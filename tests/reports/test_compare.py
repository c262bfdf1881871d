"""compare: its statistics against hand, brute force and what they promise; runs through it whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import CHECKPOINTS, DATA
from tests.command import process, run
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import SCHEMA, CheckpointInfo, Control, Headline, MeasuredPath, RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.reports import comparison_words as words
from unlearn_metrics.reports import paired_tests
from unlearn_metrics.reports.compare import Comparison, compare
from unlearn_metrics.reports.paired_tests import corrected
from unlearn_metrics.scores import equal_retention, stats
from unlearn_metrics.scores.scoring import score_all

SIGNATURE = "demo|n:all|tmpl:none|ctl:mix.es.keep0.95|data:0|seed:0|v:0.1.0"


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sums", "p"),
    [
        ([1, 2, 3], 2 / 8),  # only all signs alike reach 6
        ([-1, -2, -3], 2 / 8),
        ([3, 1, -1], 6 / 8),  # of 5, 3, 3, 1 and their negatives, all but 1 and -1
        ([1, 2, 3, 0], 2 / 8),  # a cluster without a document says nothing
        ([0, 0, 0], 1),
        ([5], 1),
    ],
)
def test_sign_flip_by_hand(sums: list[float], p: float):
    assert stats.sign_flip(np.array([sums], float), seed=0) == pytest.approx([p])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_sign_flip_by_brute_force(sums: list[int]):
    flips = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    p = np.mean([flip >= abs(sum(sums)) for flip in flips])
    assert stats.sign_flip(np.array([sums], float), seed=0)[0] == pytest.approx(p)


def test_sign_flip_of_many_clusters_is_drawn_close_to_all_of_them():
    rng = np.random.default_rng(5)
    sums = rng.normal(0.4, 1, (6, 15))
    signs = np.array(list(itertools.product((1, -1), repeat=15)))
    exact = (np.abs(signs @ sums.T) >= np.abs(sums.sum(1)) - 1e-12).mean(0)
    assert 0.001 < exact.min() < 0.2 < exact.max()  # not all of them trivial
    assert stats.sign_flip(sums, seed=0) == pytest.approx(exact, abs=4 * np.sqrt(0.25 / stats.PERMUTATIONS))
    assert stats.sign_flip(sums, seed=0).tolist() == stats.sign_flip(sums, seed=0).tolist()
    # never 0: the observed flip is one of those counted
    assert stats.sign_flip(np.ones((1, 60)), seed=0)[0] == stats.smallest_p(60) == 2 / (stats.PERMUTATIONS + 1)
    assert stats.sign_flip(np.ones((1, 10)), seed=0)[0] == stats.smallest_p(10) == 2 / 2**10


def no_difference(rng: np.random.Generator, datasets: int, authors: int, questions: int) -> np.ndarray:
    """Two models that differ by author and by question, but not on the whole. [datasets, authors, questions]."""
    return rng.normal(0, 1, (datasets, authors, 1)) + rng.normal(0, 0.5, (datasets, authors, questions))


@pytest.mark.parametrize("authors", [10, 20])
def test_false_positives_are_as_rare_as_said_and_only_because_of_the_clusters(authors: int):
    rng = np.random.default_rng(authors)
    differences = no_difference(rng, 2000, authors, 5)
    p = stats.sign_flip(differences.sum(2), seed=0)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / 2000))
    # the same documents, each for itself: design effect 4.2, so 0.05 becomes about a third
    naive = stats.sign_flip(differences[:100].reshape(100, -1), seed=0)
    assert (naive <= 0.05).mean() > 0.2


def test_a_difference_is_found_as_often_as_a_t_test_finds_it():
    """Ten authors, d_z = 1: the paired t-test has a power of 0.80 (Cohen 1988, table 2.3); flips lose little."""
    differences = no_difference(np.random.default_rng(1), 2000, 10, 5).sum(2)
    found = stats.sign_flip(differences + differences.std(), seed=0) <= 0.05
    assert 0.72 <= found.mean() <= 0.84


def test_holm():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and never below the one before
    assert stats.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm(np.array([0.6, 0.5])) == pytest.approx([1, 1])
    assert stats.holm(np.array([0.02])) == pytest.approx([0.02])
    assert len(stats.holm(np.array([]))) == 0


def test_holm_holds_the_chance_of_any_false_positive_with_true_differences_beside():
    rng, false, uncorrected, found = np.random.default_rng(0), 0, 0, 0
    for _ in range(4000):
        null, real = rng.random(12), rng.random(8) * 1e-3
        adjusted = stats.holm(np.concatenate([null, real]))
        false += adjusted[:12].min() <= 0.05
        uncorrected += null.min() <= 0.05
        found += (adjusted[12:] <= 0.05).sum()
    assert false / 4000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert false / 4000 >= 0.02  # and is not bought by finding nothing
    assert found / 32000 > 0.99
    assert uncorrected / 4000 > 0.4


def test_effect_size():
    assert stats.effect_size(np.array([1.0, 2, 3])) == pytest.approx(2)
    assert stats.effect_size(np.array([-1.0, 1])) == pytest.approx(0)
    assert stats.effect_size(np.array([2.0, 2])) is None
    assert stats.effect_size(np.array([2.0])) is None


# --- runs whose numbers are chosen ------------------------------------------------------------------------------------


def save(
    folder: Path,
    values: dict[str, dict[str, list[float]]],
    questions: int = 2,
    name: str = "",
    signature: str = SIGNATURE,
    reference: str = "answer {} of {}",
    model: str = "controlled",
    ids: list[int] | dict[str, range] | None = None,
    path: MeasuredPath | None = None,
    texts: bool = True,
    **more: Any,
) -> Path:
    """A run with these values of its documents: split -> metric -> values; NaN = none. `questions` to a cluster.

    path: of its control. more: of the record.
    """
    splits = {}
    found = ids if isinstance(ids, dict) else {} if ids is None else dict.fromkeys(values, ids)
    for split, metrics in values.items():
        n = len(next(iter(metrics.values())))
        splits[split] = [
            {
                "id": place,
                "split": split,
                "cluster": (place if isinstance(ids, dict) else i) // questions,
                "logged": {m: x[i] for m, x in metrics.items() if not np.isnan(x[i])},
            }
            for i, place in enumerate(found.get(split, range(n)))
        ]
        for i, document in enumerate(splits[split] if texts else ()):
            which = document["id"] if isinstance(ids, dict) else i
            document |= {"prompt": f"question {i}", "reference": reference.format(which, split.split("_calib")[0])}
    scores, composites = score_all({model: splits}, {model: values}, 0)
    unknown = {key: {} for key in ("data", "task_versions", "prompts", "settings", "software", "work")}
    record = RunRecord(
        schema=SCHEMA,
        signature=signature,
        name=name or folder.name,
        benchmark=signature.split("|")[0],
        verdict="",
        control=Control("mix", 0.5, keep=float(signature.partition("keep")[2].split("|")[0])),
        scores=scores,
        composites=composites,
        checkpoints={"original": CheckpointInfo("o", None, None, None, None)},
        git=None,
        imported=None,
        wall_seconds=None,
        created="2026-01-01",
        path=path,
        residual={} if path is None else equal_retention.residuals(path, 0.95, 0),
        **unknown | more,
    )
    store.save(folder, record, {model: splits})
    return folder


def made(**fields: Any) -> paired_tests.Test:
    """A test as it is before p-values are corrected."""
    interval, about = (None, None), (100, 0, 20, None, None)
    plain = paired_tests.Test(
        "a", "b", "Forget quality", "forget", "rouge", "lower", "linear", 0.5, 0.4, -0.1, *interval, *about
    )
    return dataclasses.replace(plain, **fields)


def only(result: Comparison):
    (test,) = result.tests
    return test


def test_by_hand(tmp_path):
    """Six authors of two questions. B - A by document: 1 1 | 1 1 | 2 2 | 0 2 | 1 - | -1 -1, `-` = unscored in B."""
    a = save(tmp_path / "a", {"forget": {"extraction_strength": [0.0] * 12}})
    b = save(tmp_path / "b", {"forget": {"extraction_strength": [1, 1, 1, 1, 2, 2, 0, 2, 1, np.nan, -1, -1]}})
    test = only(compare([a, b]))
    assert (test.baseline, test.run, test.split, test.metric, test.scale) == (
        "a",
        "b",
        "forget",
        "extraction_strength",
        "linear",
    )
    assert (test.n, test.unscored, test.clusters) == (11, 1, 6)
    assert (test.value_baseline, test.value_run, test.difference) == pytest.approx((0, 9 / 11, 9 / 11))
    means = np.array([1, 1, 2, 1, 1, -1])
    assert test.effect_size == pytest.approx(means.mean() / np.sqrt(((means - means.mean()) ** 2).sum() / 5))
    # sums by author 2 2 4 2 1 -2: of 64 flips, 9 is reached by all alike (13), by that but a 1 (11) and by that but
    # one of the four 2s (9), each with its negative: 2 x (1 + 1 + 4)
    assert test.p == test.p_corrected == pytest.approx(12 / 64)
    assert test.ci_low < 9 / 11 < test.ci_high
    assert compare([b, a]).tests[0].difference == pytest.approx(-9 / 11)
    assert compare([b, a]).tests[0].p == test.p


def test_perplexities_are_compared_as_ratios(tmp_path):
    rng = np.random.default_rng(0)
    first = np.exp(rng.normal(3, 1, 40))
    a = save(tmp_path / "a", {"retain": {"perplexity": first.tolist()}})
    b = save(tmp_path / "b", {"retain": {"perplexity": (first * np.exp(rng.normal(0.7, 0.1, 40))).tolist()}})
    test = only(compare([a, b]))
    assert test.scale == "log"
    assert test.difference == pytest.approx(np.log(test.value_run / test.value_baseline))
    assert test.value_baseline == pytest.approx(np.exp(np.log(first).mean()))
    assert test.ci_low < 0.7 < test.ci_high < 0.8
    assert test.decided
    assert not test.better  # lower perplexity is
    shown = process("compare", a, b).stdout
    assert "×2." in shown
    assert "Fluency: b is worse than a by perplexity (retain)" in shown


def test_pairing_finds_what_two_intervals_hide(tmp_path):
    """Authors differ far more than the two models do: the models' own intervals overlap, that of the difference is
    clear of 0."""
    rng = np.random.default_rng(2)
    easy = np.repeat(rng.random(20) * 0.8, 5)
    a = save(tmp_path / "a", {"forget": {"rouge": (easy + rng.normal(0.1, 0.02, 100)).tolist()}}, 5)
    b = save(tmp_path / "b", {"forget": {"rouge": (easy + rng.normal(0.07, 0.02, 100)).tolist()}}, 5)
    one, two = (store.load_record(f).scores["controlled"]["forget"]["rouge"] for f in (a, b))
    assert one.ci_low < two.ci_high
    test = only(compare([a, b]))
    assert test.ci_high < 0
    assert test.decided
    assert test.better


def test_sentences_say_what_is_established_and_what_is_not(tmp_path):
    rng = np.random.default_rng(4)
    first = {s: {"probability": rng.random(60), "rouge": rng.random(60)} for s in ("forget", "retain")}
    first["retain"]["repetition"] = rng.random(60)
    second = {s: dict(m) for s, m in first.items()}
    second["forget"]["probability"] = first["forget"]["probability"] - rng.normal(0.3, 0.1, 60)
    second["forget"]["rouge"] = first["forget"]["rouge"] + rng.normal(0.3, 0.1, 60)
    second["retain"]["probability"] = first["retain"]["probability"] + rng.normal(0, 0.3, 60)
    lists = [{s: {m: list(v) for m, v in x.items()} for s, x in y.items()} for y in (first, second)]
    a, b = (save(tmp_path / name, values, 3) for name, values in zip("ab", lists, strict=True))
    fluency, retention, quality = compare([a, b]).sentences
    assert fluency == "Fluency: b is as good as a, by the same repetition (retain)."
    assert retention.startswith("Knowledge retention: no difference between b and a is established (smallest p ")
    assert "that does not make them alike: probability on retain may differ by -0." in retention
    assert quality.startswith(
        "Forget quality: b is better than a by probability (forget) and worse than a by rouge (forget) (p ≤ 0.0"
    )


def test_few_clusters_that_cannot_show_anything_are_named(tmp_path):
    """Five authors: no p below 2/32, so not below 0.05 either, however large the difference."""
    a = save(tmp_path / "a", {"forget": {"rouge": [1.0] * 10}})
    b = save(tmp_path / "b", {"forget": {"rouge": [0.1 * i / 9 for i in range(10)]}})
    result = compare([a, b])
    assert only(result).p == 2 / 32
    assert result.sentences == ["Forget quality: a difference between b and a cannot be decided with 5 clusters."]
    # six authors, but so many tests: 2/64 x 2 is above 0.05
    more = {"rouge": [1.0] * 12, "probability": [0.5] * 12}
    a = save(tmp_path / "c", {"forget": more})
    b = save(tmp_path / "d", {"forget": {m: [0.1 * i / 11 for i in range(12)] for m in more}})
    result = compare([a, b])
    assert result.sentences == [
        "Forget quality: a difference between d and c cannot be decided with 6 clusters and so many tests."
    ]
    assert "--metrics, chosen before looking, tests fewer." in result.notes
    assert compare([a, b], metrics=["rouge"]).sentences == [
        "Forget quality: d is better than c by rouge (forget) (p ≤ 0.031)."
    ]


def test_what_is_not_established_is_not_said_to_differ():
    """Two tests whose intervals leave 0 out, but whose p is not below 0.05 once corrected."""
    tests = [made(p=0.03, difference=-0.6, ci_low=-0.762, ci_high=-0.454, metric=m) for m in ("rouge", "probability")]
    assert words.sentence("Forget quality", corrected(tests)) == (
        "Forget quality: no difference between b and a is established (smallest p 0.06)."
    )
    wide = made(p=0.3, difference=-0.1, ci_low=-0.3, ci_high=0.1)
    assert words.sentence("Forget quality", corrected([*tests, wide])).endswith(
        "(smallest p 0.09); that does not make them alike: rouge on forget may differ by -0.300 to +0.100."
    )


def test_every_test_of_the_command_is_corrected_for(tmp_path):
    rng = np.random.default_rng(7)
    folders = [
        save(tmp_path / n, {"forget": {"rouge": rng.random(40).tolist(), "zlib": rng.random(40).tolist()}})
        for n in "abcd"
    ]
    assert {(t.baseline, t.run) for t in compare(folders).tests} == {("a", "b"), ("a", "c"), ("a", "d")}
    every = compare(folders, metrics=["all"], all_pairs=True)
    assert len(every.tests) == 12
    assert "Each of the 6 pairs gets an equal share of the 5 %." in every.notes
    for pair in (every.tests[i : i + 2] for i in range(0, 12, 2)):  # Holm within the pair, times the number of pairs
        holm = stats.holm(np.array([t.p for t in pair]))
        assert [t.p_corrected for t in pair] == pytest.approx(np.minimum(6 * holm, 1))
    assert {t.metric for t in compare(folders, metrics=["zlib"]).tests} == {"zlib"}


def test_documents_are_paired_by_id_and_must_be_the_same(tmp_path):
    values = {"forget": {"rouge": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}
    a = save(tmp_path / "a", values)
    reversed_ = save(
        tmp_path / "reversed", {"forget": {"rouge": values["forget"]["rouge"][::-1]}}, ids=[5, 4, 3, 2, 1, 0]
    )
    with pytest.raises(
        InputError, match=r"different documents: 6 of 6 on forget have another text in each.*document 0"
    ):
        compare([a, reversed_])
    fewer = save(tmp_path / "fewer", {"forget": {"rouge": [0.1, 0.2]}, "retain": {"rouge": [0.5]}})
    result = compare([a, fewer])
    assert result.paired == {"fewer": {"forget": 2}}
    assert (only(result).difference, only(result).p) == (0, 1)
    with pytest.raises(InputError, match="no document in common"):
        compare([a, save(tmp_path / "others", values, ids=[10, 11, 12, 13, 14, 15])])


def test_signatures_that_differ_in_what_matters_are_refused(tmp_path):
    values = {"forget": {"rouge": [0.1] * 12}}
    a, other = save(tmp_path / "a", values), SIGNATURE.replace("keep0.95", "keep0.5")
    b = save(tmp_path / "b", values, signature=other)
    done = run("compare", a, b)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ctl is mix.es.keep0.95 in one, mix.es.keep0.5 in the other; --anyway compares them" in done.stderr
    assert "ctl is mix.es.keep0.95 in one" in compare([a, b], anyway=True).notes[0]
    # the control is nothing to the model without it, and the seed to no value
    raw = [save(tmp_path / n, values, model="unlearned", signature=s) for n, s in (("c", SIGNATURE), ("d", other))]
    assert compare(raw).model == "unlearned"
    assert any("Without control" in note for note in compare(raw).notes)
    compare([a, save(tmp_path / "e", values, signature=SIGNATURE.replace("seed:0", "seed:1"))])


def test_of_which_documents_is_said(tmp_path):
    """So many drawn ones are no others than so many first ones by name; of all documents there is nothing to say."""
    values = {"forget": {"rouge": [0.1] * 12}}
    all_, drawn, again, first = (
        save(tmp_path / name, values, signature=SIGNATURE.replace("n:all", f"n:{n}"))
        for name, n in (("a", "all"), ("b", "1-drawn"), ("c", "1-drawn"), ("d", "1200"))
    )
    at_random = "1 document of each split, drawn at random"
    assert f"All are measured on {at_random}." in compare([drawn, again]).notes
    assert not any("measured on" in note for note in compare([all_, save(tmp_path / "e", values)]).notes)
    differ = f"n is {at_random} in one, the first 1,200 documents of each split in the other"
    assert differ in compare([drawn, first], anyway=True).notes[0]


def test_bad_arguments(tmp_path):
    a, b = (save(tmp_path / name, {"forget": {"rouge": [0.1] * 12}}) for name in "ab")
    for arguments, says in (
        (([a],), "at least two runs"),
        (([a, a],), "given twice"),
        (([a, b], "original"), "has no original model; it has controlled"),
        (([a, b], None, ["bleu"]), "unknown metric 'bleu'"),
        (([a, b], None, ["probability"]), "no metric in common among probability"),
        (([a, tmp_path / "nowhere"],), "holds no run"),
    ):
        with pytest.raises(InputError, match=says):
            compare(*arguments)


def test_same_names_are_told_apart_and_strange_ones_are_text(tmp_path):
    values = {"forget": {"rouge": [0.1] * 12}}
    a, b = (save(tmp_path / folder, values, name="org/[red]x") for folder in ("one", "two"))
    assert list(compare([a, b]).signatures) == ["one", "two"]
    done = run("compare", a, save(tmp_path / "three", values, name="other/[/]"))
    assert done.returncode == 0, done.stderr
    assert "[red]x" in done.stdout


def test_composites_are_compared_by_the_same_draws(tmp_path):
    """Model utility of two models that find the same authors hard, one of them halved for calibration: the interval of
    the difference is that of resamples in which both answer the same authors, and clear of 0 where their own overlap.
    """
    rng = np.random.default_rng(3)
    nine = {"retain": "probability", "real_authors": "probability_normalised", "world_facts": "probability_normalised"}
    first, second = {}, {}
    for split, probability in nine.items():
        easy = np.repeat(rng.uniform(0.2, 0.8, 10), 4)
        for values, gain in ((first, 0), (second, 0.05)):
            names = (probability, "rouge", "truth_ratio")
            values[split] = {name: np.clip(easy + gain + rng.normal(0, 0.02, 40), 0, 1).tolist() for name in names}
    a, b = (save(tmp_path / name, values, 4) for name, values in zip("ab", (first, second), strict=True))
    one, two = (store.load_record(f).composites["controlled"]["model_utility"] for f in (a, b))
    assert two.ci_low < one.ci_high
    test = next(t for t in compare([a, b], seed=5).tests if t.metric == "model_utility")
    assert (test.value_baseline, test.value_run) == (one.value, two.value)
    assert (test.n, test.clusters, test.p, test.p_corrected, test.decided) == (120, 10, None, None, False)
    drawn = {s: stats.bootstrap_weights(np.arange(40) // 4, (5, *s.encode())) for s in nine}
    by_hand = [
        9 / sum(1 / (drawn[s] @ np.array(v) / 40) for s, names in values.items() for v in names.values())
        for values in (first, second)
    ]
    assert (test.ci_low, test.ci_high) == pytest.approx(stats.interval(by_hand[1] - by_hand[0], 10))
    assert 0 < test.ci_low < test.difference == pytest.approx(two.value - one.value)
    halved = {s: {m: v if s != "retain" else v[1::2] for m, v in names.items()} for s, names in first.items()}
    halved["retain_calibration"] = {m: v[0::2] for m, v in first["retain"].items()}
    c = save(tmp_path / "c", halved, 4, ids={"retain": range(1, 40, 2), "retain_calibration": range(0, 40, 2)})
    (same,) = compare([a, c], metrics=["model_utility"]).tests
    assert (same.difference, same.ci_low, same.ci_high, same.n) == (0, 0, 0, 120)
    assert "model_utility ↑" in run("compare", a, b).stdout


# --- lm-eval's own tasks ----------------------------------------------------------------------------------------------


def asked(folder: Path, right: list[float], data: str = "1", **more: Any) -> Path:
    """A run of WMDP and MMLU as it is stored: answers right or wrong, without texts."""
    values = {"forget_wmdp_bio": {"wmdp_bio.acc": right}, "mmlu": {"mmlu.acc": right}}
    ability = {"wmdp_bio.acc": "lower", "mmlu.acc": "higher"}
    hashes = {"wmdp_bio": "0", "mmlu": data}
    return save(
        folder, values, 1, texts=False, ability=ability, data=hashes, headline=Headline(["wmdp_bio.acc"]), **more
    )


def test_metrics_of_other_tasks_are_compared(tmp_path):
    a, b = asked(tmp_path / "a", [1.0] * 40), asked(tmp_path / "b", [1.0, 0.0] * 20)
    result = compare([a, b])
    assert {(t.facet, t.split, t.metric, t.good): t.difference for t in result.tests} == {
        ("General ability", "mmlu", "mmlu.acc", "higher"): -0.5,
        ("Forget quality", "forget_wmdp_bio", "wmdp_bio.acc", "lower"): -0.5,
    }
    ability, quality = result.sentences
    assert ability.startswith("General ability: b is worse than a by mmlu.acc (mmlu)")
    assert quality.startswith("Forget quality: b is better than a by wmdp_bio.acc (forget_wmdp_bio)")
    assert [t.metric for t in compare([a, b], metrics=["mmlu.acc"]).tests] == ["mmlu.acc"]
    with pytest.raises(InputError, match=r"unknown metric 'mmlu.ac'; .*mmlu.acc"):
        compare([a, b], metrics=["mmlu.ac"])


def test_other_questions_of_a_task_are_no_pairs(tmp_path):
    """They have no text that could tell: another number of them, or other data, is another set."""
    a = asked(tmp_path / "a", [1.0] * 40)
    result = compare([a, asked(tmp_path / "b", [0.0] * 40, data="2")])
    assert [t.metric for t in result.tests] == ["wmdp_bio.acc"]
    assert "a and b were asked other questions of mmlu, which is left out." in result.notes
    with pytest.raises(InputError, match="no document in common"):
        compare([a, asked(tmp_path / "c", [0.0] * 39)])


# --- through the command line, on real runs -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_collapsed_model_beside_the_moderate_one(tmp_path):
    """Raw, the collapsed model has less of the forget set and of everything else; both are found, with their notes."""
    for name in ("excessive", "moderate"):
        given = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / name)
        more = (
            "--benchmark",
            "demo",
            "--data",
            DATA,
            "--control",
            "none",
            "--limit",
            60,
            "--out",
            tmp_path / name,
        )
        done = run("score", *given, *more)
        assert done.returncode == 0, done.stderr
    done = run("compare", tmp_path / "excessive", tmp_path / "moderate", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == "unlearned"
    assert result["paired"] == {"moderate": {"forget": 60, "retain": 60}}
    fluency, retention, quality = result["sentences"]
    assert fluency.startswith(
        "Fluency: moderate is better than excessive by perplexity (retain), repetition (retain, forget)"
    )
    assert retention.startswith(
        "Knowledge retention: moderate is better than excessive by extraction_strength (retain)"
    )
    assert quality.startswith("Forget quality: moderate is worse than excessive by extraction_strength (forget)")
    assert any("read forget quality together with retention" in note for note in result["notes"])
    record = store.load_record(tmp_path / "moderate")
    stored = {**record.scores["unlearned"], "": record.composites["unlearned"]}
    for test in result["tests"]:
        if test["unscored"] == 0:
            assert test["value_run"] == pytest.approx(stored[test["split"]][test["metric"]].value)
    assert {f.name for f in dataclasses.fields(Comparison)} == result.keys()
    help_ = run("compare", "--help").stdout
    assert "Examples" in help_
