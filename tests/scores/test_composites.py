"""Composites by hand, against loops that resample documents one draw at a time, and where they have no value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from unlearn_metrics.documents import MeanLoss, TokenScores
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.record import Score
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.composites import COMPOSITES, compose, equivalence

NINE = ("retain", "real_authors", "world_facts")
QUALITY = ("forget_quality", "forget_quality_paired", "log_truth_ratio_difference", "ks_distance")


def losing(*losses: float, right: bool = True) -> TokenScores:
    """Losses in nats, the last one of end-of-sequence; every token the arg-max, or none."""
    n = len(losses)
    tokens = np.arange(n, dtype=np.int32)
    logprob = -np.array(losses, np.float32)
    return TokenScores(tokens, tokens + (not right), logprob, np.full(n, -2, np.float32), np.ones(n, np.float32))


def document(i: int, split: str, answer: float = 1, true: float = 1, wrong: float = 1, **more: Any) -> dict[str, Any]:
    """Losses of the answer, of the true (paraphrased) one and of the only wrong one. Five documents to a cluster."""
    return {
        "id": i,
        "split": split,
        "cluster": i // 5,
        "question": f"q{i}",
        "reference": "a b",
        "generation": "a b",
        "answer": losing(answer, answer),
        "true_answer": losing(true, true),
        "wrong_answers": [losing(wrong, wrong)],
    } | more


def value(name: str, *args: Any, **kwargs: Any) -> float | None:
    return compose(*args, **kwargs)[name].value


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_model_utility_by_hand():
    """Nine components: p = 1/2, 1/3 (p 1/2 against a wrong 1), 1/4; ROUGE 1, 1/2, 1; R = 1/4, 1/2, 3/4."""
    log = math.log
    splits = {
        "retain": [document(0, "retain", log(2), 0, log(4))],
        "real_authors": [document(0, "real_authors", log(2), log(2), 0, generation="a")],
        "world_facts": [document(0, "world_facts", log(3), 1, 1 + log(3 / 2))],
    }
    # real authors: wrong p = 1, answer p = 1/2 -> 1/3; truth ratio: the wrong answer is likelier than the true: 0
    assert value("model_utility", splits) == 0
    splits["real_authors"] = [document(0, "real_authors", log(2), 0, log(2), generation="a")]
    parts = [1 / 2, 1, 3 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 3 / (1 / 3 + 2 / 3 / math.e), 1, 1 / 3]
    assert value("model_utility", splits) == pytest.approx(9 / sum(1 / p for p in parts), rel=1e-6)


def test_membership_by_hand():
    """Holdout losses 3, 4; forget 1, 3: of four pairs one tie and three wins, AUC 7/8. Retain-only: 5/8."""

    def model(*losses: float) -> dict[str, Any]:
        return {
            "forget": [document(i, "forget", loss) for i, loss in enumerate(losses[:2])],
            "holdout": [document(i, "holdout", loss) for i, loss in enumerate(losses[2:])],
        }

    mine, retain, original = model(1, 3, 3, 4), model(2, 4, 3, 4), model(0, 0, 3, 4)
    found = compose(mine, retain, original)
    assert found["auc_loss"].value == found["auc_min_k"].value == found["auc_zlib"].value == 7 / 8
    assert compose(retain)["auc_min_k"].value == 5 / 8
    assert found["privleak"].value == pytest.approx(100 * ((1 / 8) / (3 / 8) - 1))
    assert found["auc_reference"].value == 1  # -1, -1 against 0, 0: all of forget lost loss, holdout did not
    # the original has AUC 1: s = 1 - (1/4) / (3/8) for each of the four attacks
    assert found["privacy_score"].value == pytest.approx(1 / 3)
    assert value("privacy_score", original, retain, original) == 0
    assert (found["auc_loss"].n, found["auc_loss"].ci_low) == (4, None)  # one cluster: no interval


def test_forget_quality_by_hand():
    """Distribution functions of {1, 2, 3} and {2, 3, 4} differ by 1/3: p = 1; of {1, 2, 3} and {4, 5, 6} by 1: 2/20."""

    def forget(*log_ratios: float) -> dict[str, Any]:
        return {"forget": [document(i, "forget", true=r + 10, wrong=10) for i, r in enumerate(log_ratios)]}

    assert value("forget_quality", forget(1, 2, 3), forget(2, 3, 4)) == 1
    assert value("ks_distance", forget(1, 2, 3), forget(2, 3, 4)) == pytest.approx(1 / 3)
    assert value("forget_quality", forget(1, 2, 3), forget(5, 6, 4)) == pytest.approx(2 / math.comb(6, 3))
    assert value("ks_distance", forget(1, 2, 3), forget(5, 6, 4)) == 1
    assert value("log_truth_ratio_difference", forget(1, 2, 3), forget(5, 6, 1)) == pytest.approx(-2)  # -4, -4, 2


def log_ratios(values: np.ndarray) -> dict[str, Any]:
    """Documents of the forget set with these log R, five to a cluster."""
    pairs = enumerate(values.ravel().tolist())
    return {"forget": [document(i, "forget", true=0) | {"wrong_answers": [MeanLoss(-r)]} for i, r in pairs]}


def test_paired_truth_ratios_by_hand():
    """Six clusters that all differ by 0.05: 2 of 64 flips reach their sum; with one of them -0.05, 2 + 2 x 6 do."""
    retain = np.random.default_rng(0).normal(0, 1, (6, 5))
    shift = np.full((6, 1), 0.05)
    found = compose(log_ratios(retain + shift), log_ratios(retain))
    assert found["log_truth_ratio_difference"].value == pytest.approx(0.05)
    assert found["forget_quality_paired"].value == 2 / 64
    shift[3] = -0.05
    assert value("forget_quality_paired", log_ratios(retain + shift), log_ratios(retain)) == 14 / 64
    assert value("forget_quality_paired", log_ratios(retain), log_ratios(retain)) == 1
    few = compose(log_ratios(retain[:5] + 9), log_ratios(retain[:5]))
    assert few["forget_quality_paired"].undefined == "cannot be decided with 5 clusters of forget"
    assert few["log_truth_ratio_difference"].value == pytest.approx(9)


def test_a_small_shift_that_the_ks_test_does_not_see():
    """Ten authors of twenty questions, as in forget05, answered alike but for 0.05 nats and a little noise."""
    rng = np.random.default_rng(1)
    retain = rng.normal(0, 1, (40, 5))
    mine, theirs = log_ratios(retain + 0.05 + rng.normal(0, 0.05, (40, 5))), log_ratios(retain)
    for splits in (mine, theirs):
        for d in splits["forget"]:
            d["cluster"] //= 4
    found = compose(mine, theirs)
    assert found["forget_quality"].value > 0.4
    assert found["forget_quality_paired"].value < 0.005
    assert found["log_truth_ratio_difference"].ci_low > 0


def test_a_shift_of_nothing_is_rejected_as_seldom_as_said():
    rng, p = np.random.default_rng(2), []
    for _ in range(200):
        shifts = rng.normal(0, 0.1, (8, 1)) + rng.normal(0, 0.1, (8, 5))
        p.append(value("forget_quality_paired", log_ratios(shifts), log_ratios(np.zeros((8, 5)))))
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.05, 0.09, "equivalent to the retain-only model's within 0.1 nats (mean log R +0.020 [-0.050, +0.090])"),
        (0.01, 0.1, "equivalent to the retain-only model's within 0.1 nats, though not equal ("),
        (0.11, 0.3, "further than 0.1 nats from the retain-only model's ("),
        (-0.3, -0.11, "further than 0.1 nats from the retain-only model's ("),
        (0.01, 0.3, "unlike the retain-only model's; whether by more than 0.1 nats is not established ("),
        (
            -0.3,
            0.02,
            "not shown to differ from the retain-only model's, nor to be equivalent within 0.1 nats (",
        ),
    ],
)
def test_what_is_said_of_equivalence(low, high, says):
    assert f"truth ratios on forget are {says}" in equivalence(Score((low + high) / 2, low, high, 40, 0))


def test_nothing_is_said_of_equivalence_without_an_interval():
    assert equivalence(Score(0.0, None, None, 40, 0)) is None
    assert equivalence(Score(None, None, None, 0, 40, "needs a retain-only model")) is None


def test_openunlearnings_aggregates_by_hand():
    """memorization_score of ES = EM = 1/2, p(paraphrase) = 1/4, truth ratio p_true / (p_true + p_wrong) = 1/3."""
    log = math.log
    half = [document(0, "forget", 1, log(4), log(2)), document(1, "forget", 1, log(4), log(2))]
    half[1]["answer"] = losing(1, 1, right=False)
    expected = 4 / (2 + 2 + 4 / 3 + 3 / 2)
    found = compose({"forget": half})
    assert found["memorization_score"].value == pytest.approx(expected, rel=1e-6)
    assert value("memorization_score", {"forget": [half[0]]}) == 0  # all of it memorized
    assert "overall_score" not in found  # no holdout, no real authors: not a question of this benchmark


def test_utility_tradeoff_and_overall_by_hand(monkeypatch):
    """Fluency 1 - gibberish comes from documents that a classifier judged; without, the score says what it needs."""
    splits = benchmark(np.random.default_rng(0))
    found = compose(splits, splits_of(splits, 1), splits)
    assert found["utility_score"].value is None
    assert "gibberish" in found["utility_score"].undefined
    assert "gibberish" in found["overall_score"].undefined
    assert found["memorization_score"].value is not None

    def judged(model: dict[str, Any], gibberish: float) -> dict[str, Any]:
        forget = [d | {"logged": {"gibberish": gibberish}} for d in model["forget"]]
        return model | {"forget": forget}

    original, mine, retain = judged(splits, 0.2), judged(splits_of(splits, 2), 0.6), judged(splits_of(splits, 1), 0.1)
    monkeypatch.setitem(METRICS, "gibberish", METRICS["perplexity"])  # these documents have it logged only
    found = compose(mine, retain, original)
    mu, mu0 = found["model_utility"].value, compose(original)["model_utility"].value
    utility = (2 / (1 / mu + 1 / 0.4)) / (2 / (1 / mu0 + 1 / 0.8))
    assert found["utility_score"].value == pytest.approx(utility)
    assert value("utility_score", original, retain, original) == pytest.approx(1)
    memorization, private = found["memorization_score"].value, found["privacy_score"].value
    assert found["tradeoff_score"].value == pytest.approx(2 / (1 / memorization + 1 / utility))
    assert found["overall_score"].value == pytest.approx(3 / (1 / memorization + 1 / private + 1 / utility))


# --- against loops ----------------------------------------------------------------------------------------------------


def benchmark(rng: np.random.Generator, n: int = 40) -> dict[str, Any]:
    """Random losses, eight clusters of five in every split."""

    def split(name: str, shift: float) -> list[dict[str, Any]]:
        losses = rng.gamma(2, 1, (n, 3)) + [shift, shift, 2]
        said = ["a b", "a", "c"]
        documents = [document(i, name, *x, generation=said[i % 3]) for i, x in enumerate(losses.tolist())]
        for d in documents[::2]:
            d["answer"] = losing(*rng.gamma(2, 1, 2).tolist(), right=False)
        return documents

    return {name: split(name, name == "holdout") for name in ("forget", "holdout", *NINE)}


def splits_of(splits: dict[str, Any], seed: int) -> dict[str, Any]:
    """Another model on the same questions."""
    return benchmark(np.random.default_rng(seed), len(splits["forget"]))


def p(loss: float) -> float:
    return math.exp(-loss)


def loss_of(scores: TokenScores) -> float:
    return float(-scores.logprob.astype(float).mean())


def naive(name: str, mine: dict[str, Any], retain: dict[str, Any], original: dict[str, Any]) -> float:
    """A composite from its definition, on lists of documents in which drawn ones stand again."""

    def area(model: dict[str, Any], attack: Any) -> float:
        forget, holdout = ([attack(d) for d in model[s]] for s in ("forget", "holdout"))
        return mannwhitneyu(holdout, forget).statistic / (len(forget) * len(holdout))

    def min_k(d: dict[str, Any]) -> float:
        return float(-np.sort(d["answer"].logprob[:-1])[:1].mean())

    def log_ratio(d: dict[str, Any]) -> float:
        return loss_of(d["true_answer"]) - loss_of(d["wrong_answers"][0])

    if name == "auc_loss":
        return area(mine, lambda d: loss_of(d["answer"]))
    if name == "auc_reference":
        theirs = {s: {d["id"]: loss_of(d["answer"]) for d in retain[s]} for s in ("forget", "holdout")}
        return area(mine, lambda d: loss_of(d["answer"]) - theirs[d["split"]][d["id"]])
    if name == "privleak":
        return 100 * ((1 - area(mine, min_k)) - (1 - area(retain, min_k))) / (1 - area(retain, min_k))
    if name == "privacy_score":
        scaled = []
        for attack in (
            lambda d: loss_of(d["answer"]),
            lambda d: loss_of(d["answer"]),  # zlib: one text, one length, the same order
            min_k,
            lambda d: float(-np.sort(d["answer"].logprob[:-1] + 2)[:1].mean()),
        ):
            a, r, o = (area(model, attack) for model in (mine, retain, original))
            scaled.append(max(0, 1 - abs(a - r) / abs(o - r)))
        return 4 / sum(1 / s for s in scaled) if all(scaled) else 0
    if name == "log_truth_ratio_difference":
        mean = [np.mean([log_ratio(d) for d in model["forget"]]) for model in (mine, retain)]
        return float(mean[0] - mean[1])
    if name in ("forget_quality", "ks_distance"):
        found = ks_2samp(*([log_ratio(d) for d in model["forget"]] for model in (mine, retain)))
        return float(found.pvalue if name == "forget_quality" else found.statistic)
    if name == "model_utility":
        parts = []
        for split in NINE:
            chances = []
            for d in mine[split]:
                right, wrong = p(loss_of(d["answer"])), p(loss_of(d["wrong_answers"][0]))
                chances.append(right if split == "retain" else right / (right + wrong))
            overlap = [len(set(d["generation"].split()) & {"a", "b"}) / 2 for d in mine[split]]
            truth = [max(0, 1 - math.exp(log_ratio(d))) for d in mine[split]]
            parts += [np.mean(x) for x in (chances, overlap, truth)]
        return 9 / sum(1 / x for x in parts)
    assert name == "memorization_score"
    ratios = [p(loss_of(d["true_answer"])) for d in mine["forget"]]
    wrong = [p(loss_of(d["wrong_answers"][0])) for d in mine["forget"]]
    match = [float((d["answer"].argmax == d["answer"].tokens)[0]) for d in mine["forget"]]
    truth = [r / (r + w) for r, w in zip(ratios, wrong, strict=True)]
    return 4 / sum(1 / (1 - np.mean(x)) for x in (match, match, ratios, truth))


@pytest.mark.parametrize(
    "name",
    ["auc_loss", "auc_reference", "privleak", "log_truth_ratio_difference", "model_utility", "memorization_score"],
)
def test_value_and_interval_are_those_of_a_loop_over_drawn_documents(name, monkeypatch):
    """Each draw takes whole clusters, the same for all three models and all metrics of a split."""
    draws = 120
    for function in (stats.bootstrap_weights, stats.resampled_means):
        monkeypatch.setattr(function, "__defaults__", (draws,))
    original = benchmark(np.random.default_rng(5))
    mine, retain = splits_of(original, 6), splits_of(original, 7)
    found = compose(mine, retain, original, seed=3)[name]
    assert found.value == pytest.approx(naive(name, mine, retain, original), rel=1e-5)
    counts = {
        split: stats.bootstrap_weights(np.array([d["cluster"] for d in mine[split]]), (3, *split.encode())).astype(int)
        for split in mine
    }
    resampled = []
    for draw in range(draws):
        models = [
            {s: [d for d, c in zip(m[s], counts[s][draw], strict=True) for _ in range(c)] for s in m}
            for m in (mine, retain, original)
        ]
        resampled.append(naive(name, *models))
    assert (found.ci_low, found.ci_high) == pytest.approx(stats.interval(np.array(resampled), 8), rel=1e-5)
    assert found.ci_low < found.ci_high


@pytest.mark.parametrize("name", ["privacy_score", "forget_quality", "ks_distance"])
def test_what_lies_at_the_end_of_its_range_or_estimates_nothing_has_no_interval(name):
    original = benchmark(np.random.default_rng(5))
    mine, retain = splits_of(original, 6), splits_of(original, 7)
    found = compose(mine, retain, original, seed=3)[name]
    assert found.value == pytest.approx(naive(name, mine, retain, original), rel=1e-5)
    assert (found.ci_low, found.ci_high, found.undefined) == (None, None, None)
    assert COMPOSITES[name].no_interval


def muse(*forget: float) -> dict[str, list[dict[str, Any]]]:
    """Whole texts with these losses, and a holdout of losses 1 to 4; the plain forget split is about something else."""
    parts = {"forget_privleak": forget, "holdout_privleak": (1, 2, 3, 4)}
    texts = {
        split: [document(i, split, loss, question="", reference=f"{split} {i}") for i, loss in enumerate(losses)]
        for split, losses in parts.items()
    }
    return texts | {"forget": [document(0, "forget", 9)], "retain_privleak": texts["holdout_privleak"]}


def test_attacks_compare_the_same_part_of_forget_and_holdout():
    """Losses 1.5 and 2.5 against 1 to 4: the holdout's is higher in 5 of 8 pairs. Retrained: 3.5, 4.5: in 1 of 8."""
    found = compose(muse(1.5, 2.5), muse(3.5, 4.5), benchmark="muse_news")
    assert found["auc_min_k"].value == 5 / 8
    assert found["auc_min_k"].n == 6
    assert found["privleak"].value == pytest.approx(100 * ((3 / 8) / (7 / 8) - 1))
    assert found["privleak_published"].value == pytest.approx(100 * ((0.375 - 0.4772) / 0.4772))
    books = compose(muse(1.5, 2.5), benchmark="muse_books")
    assert books["privleak_published"].value == pytest.approx(100 * ((0.375 - 0.5393) / 0.5393))
    assert books["privleak"].value is None
    assert "privleak_published" not in compose(muse(1.5, 2.5))
    other = muse(1.5, 2.5)
    other["forget_privleak"][0]["reference"] = "another text"
    with pytest.raises(ValueError, match="same documents; those of forget_privleak differ"):
        compose(muse(1.5, 2.5), other)


# --- where there is no value ------------------------------------------------------------------------------------------


def test_what_is_missing_is_named():
    splits = benchmark(np.random.default_rng(0))
    alone = compose(splits, None, splits)
    assert alone.keys() == {name for name, c in COMPOSITES.items() if c.only is None and not c.observed}
    for name in (*QUALITY, "privleak", "auc_reference", "privacy_score"):
        assert alone[name].value is None
        assert alone[name].undefined == "needs a retain-only model (--retain-model or --reference-record)"
    assert compose({"forget": splits["forget"]}).keys() == {*QUALITY, "memorization_score"}
    only_forget = compose(splits, {"forget": splits["forget"]}, splits)
    assert only_forget["forget_quality"].value == 1
    assert only_forget["privleak"].undefined == "needs holdout documents of the model compared with"
    bare = {"forget": [{k: v for k, v in d.items() if k != "true_answer"} for d in splits["forget"]]}
    assert "probability_paraphrased_answer" in compose(bare)["memorization_score"].undefined


def test_the_retain_only_model_is_not_compared_with_itself():
    splits = benchmark(np.random.default_rng(0))
    found = compose(splits, splits, splits)
    assert {n for n in COMPOSITES if n not in found} == {
        n for n, c in COMPOSITES.items() if c.compares or c.only or c.observed
    }
    assert found["auc_loss"].value is not None


@pytest.mark.parametrize("attacked", ["mine", "reference"])
def test_one_unknown_attack_score_leaves_no_area_under_a_curve(attacked):
    splits = benchmark(np.random.default_rng(0))
    broken = splits | {"holdout": [dict(d) for d in splits["holdout"]]}
    broken["holdout"][3]["answer"] = losing(math.nan, 1)
    mine, reference = (broken, splits) if attacked == "mine" else (splits, broken)
    found = compose(mine, reference, splits)
    assert found["privleak"].value is None
    assert found["privleak"].undefined == "min_k is not known for 1 of 40 documents of holdout"
    assert found["auc_min_k"].value is None or attacked == "reference"
    logged = {s: [d | {"answer": MeanLoss(1.0)} for d in splits[s]] for s in ("forget", "holdout")}
    found = compose(logged)
    assert found["auc_loss"].value == 0.5
    assert found["auc_min_k"].undefined == "needs min_k on forget"


def test_undefined_by_arithmetic():
    def model(forget: float, holdout: float, split: str = "forget") -> dict[str, Any]:
        return {"forget": [document(0, split, forget)], "holdout": [document(0, "holdout", holdout)]}

    found = compose(model(1, 2), model(1, 2), model(1, 2))
    assert found["privleak"].undefined == "the retain-only model separates forget from holdout perfectly"
    assert "no difference between the original and the retain-only model" in found["privacy_score"].undefined
    with_nan = {"forget": [document(0, "forget", true=math.nan)]}
    assert compose(with_nan, with_nan | {})["forget_quality"].undefined.startswith(
        "truth_ratio is not known for 1 of 1"
    )


def test_unscored_documents_are_in_no_mean_and_one_is_enough():
    """ROUGE of a reference without words is unscored; model utility goes on with the others, and stops with none."""
    splits = benchmark(np.random.default_rng(0))
    some = splits | {"retain": [d | {"reference": "…"} if d["id"] < 10 else d for d in splits["retain"]]}
    assert value("model_utility", some) is not None
    none = splits | {"retain": [d | {"reference": "…"} for d in splits["retain"]]}
    assert compose(none)["model_utility"].undefined == "rouge is unscored for every document of retain"


def test_other_questions_are_refused():
    splits = benchmark(np.random.default_rng(0))
    other = splits | {"forget": [d | {"question": "another"} for d in splits["forget"]]}
    with pytest.raises(ValueError, match="same questions; 80 differ"):
        compose(splits, other)


def test_halves_of_a_calibration_are_one_split_again():
    splits = benchmark(np.random.default_rng(0))
    halved = splits | {"retain": splits["retain"][1::2], "retain_calibration": splits["retain"][0::2]}
    assert compose(halved, None, halved) == compose(splits, None, splits)
    assert isinstance(compose(halved)["model_utility"], Score)
