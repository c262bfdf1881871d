"""Logs of other evaluators as records: small logs by hand, and the published ones where shared/ is there."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tests import SHARED
from tests.command import process, run
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import log as logs
from unlearn_metrics.imports import open_unlearning, tofu
from unlearn_metrics.imports import runs as imports
from unlearn_metrics.records import rescore, signature, store

needs_logs = pytest.mark.skipif(
    not (SHARED / "reference").is_dir() or not (SHARED / "logs").is_dir(),
    reason="needs shared/ (published logs and their values) beside the project",
)


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def by_row(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def tofu_log(n: int = 40, shift: float = 0.0) -> dict[str, Any]:
    """As the TOFU authors write it: every true answer has loss 1, wrong ones 2 and 4, but for `shift`."""

    def task(wrong: list[float]) -> dict[str, Any]:
        return {
            "avg_gt_loss": by_row([1.0 + shift] * n),
            "avg_paraphrased_loss": by_row([1.0 + shift + i / 1000 for i in range(n)]),
            "average_perturb_loss": by_row([wrong] * n),
            "generated_text": by_row([[f"[INST] Question {i}? [/INST]", "a cat sat", "the cat sat"] for i in range(n)]),
            "rougeL_recall": by_row([2 / 3] * n),
        }

    return {name: task([2.0, 4.0]) for name in tofu.SPLITS}


def scored(items: list[float]) -> dict[str, Any]:
    return {"agg_value": float(np.mean(items)), "value_by_index": by_row([{"score": item} for item in items])}


def muse_log(n: int = 6) -> dict[str, Any]:
    """As OpenUnlearning writes MUSE_EVAL.json (configs/eval/muse.yaml): texts, scores, attacks."""
    examples = "Question: Who?\nAnswer: She.\n\n"

    def texts(prompt: str) -> dict[str, Any]:
        rows = [
            {
                "rouge1_recall": 0.5,
                "rougeL_recall": 0.5,
                "rougeL_f1": 1 / 3,
                "input": prompt.format(i),
                "ground_truth": "running fast",
                "generation": "she runs so slow",
            }
            for i in range(n)
        ]
        return {"agg_value": 1 / 3, "value_by_index": by_row(rows)}

    def attack(forget: float, holdout: float) -> dict[str, Any]:
        both = {"forget": scored([forget + i for i in range(n)]), "holdout": scored([holdout + i for i in range(n)])}
        return both | {"auc": 0.5, "agg_value": 0.5}

    return {
        "forget_knowmem_ROUGE": texts(examples + "Question: What {}?\nAnswer: "),
        "retain_knowmem_ROUGE": texts(examples + "Question: Where {}?\nAnswer: "),
        "forget_verbmem_ROUGE": texts("It was a dark and stormy night, the {}th."),
        "extraction_strength": scored([0.25] * n),
        "exact_memorization": scored([0.5] * n),
        "mia_min_k": attack(0.0, 2.5),
        "mia_loss": attack(1.0, 1.0),
        "mia_gradnorm": attack(0.5, 2.0),
        "mia_tomorrow": attack(1.0, 1.0),
        "privleak": {"agg_value": -1.0},
    }


def test_tofu_log_by_hand(tmp_path):
    record, seen = imports.import_log("tofu", write(tmp_path / "ga-52" / "eval_log_aggregated.json", tofu_log()))
    scores = record.scores["unlearned"]
    assert (record.benchmark, record.name) == ("tofu_forget01", "ga-52")
    assert scores["forget"]["probability"].value == pytest.approx(math.exp(-1))
    assert scores["forget"]["rouge"].value == pytest.approx(2 / 3)
    # R = exp(1 + i/1000 - 3): below 1, so that min(R, 1/R) = R and max(0, 1 - R) = 1 - R
    ratio = np.mean([math.exp(i / 1000 - 2) for i in range(40)])
    assert scores["forget"]["truth_ratio"].value == pytest.approx(ratio)
    assert scores["retain"]["truth_ratio"].value == pytest.approx(1 - ratio)
    normalised = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4))
    assert scores["world_facts"]["probability_normalised"].value == pytest.approx(normalised)
    nine = [math.exp(-1), 2 / 3, 1 - ratio, *[normalised, 2 / 3, 1 - ratio] * 2]
    assert record.composites["unlearned"]["model_utility"].value == pytest.approx(9 / sum(1 / v for v in nine))
    assert seen["unlearned"]["forget"][3]["question"] == "Question 3?"
    assert [d["cluster"] for d in seen["unlearned"]["forget"]] == [0] * 20 + [1] * 20
    assert "probability_paraphrased_answer" not in scores["world_facts"]


def test_what_a_log_does_not_tell_stays_unknown(tmp_path):
    record, _ = imports.import_log("tofu", write(tmp_path / "log.json", tofu_log()), name="theirs")
    assert record.imported is not None
    assert (record.imported.format, record.imported.file, record.imported.as_logged) == ("tofu", "log.json", [])
    info = record.checkpoints["unlearned"]
    assert (info.path, info.weights_sha256, info.tokenizer_sha256, info.revision) == ("theirs", None, None, None)
    assert (record.software, record.git, record.wall_seconds, record.work, record.prompts) == ({}, None, None, {}, {})
    fields = signature.parse(record.signature)
    assert fields["src"] == "tofu-authors"
    assert not {"dtype", "tmpl", "n", "lm-eval"} & fields.keys()
    assert signature.differences(record.signature, record.signature.replace("|src:tofu-authors", "")) != []


def test_forget_quality_pairs_by_question(tmp_path):
    mine, theirs = tofu_log(), tofu_log(shift=0.1)
    # the retain-only log has the same questions in other rows, and one more
    order = [*range(20, 40), *range(20)]
    for column, values in theirs["eval_log_forget.json"].items():
        moved = by_row([values[str(i)] for i in order])
        theirs["eval_log_forget.json"][column] = moved | {"40": moved["0"]}
    theirs["eval_log_forget.json"]["generated_text"]["40"] = ["[INST] Another? [/INST]", "a", "a"]
    logs = write(tmp_path / "mine.json", mine), write(tmp_path / "theirs.json", theirs)
    record, seen = imports.import_log("tofu", *logs)
    expected = ks_2samp(np.arange(40) / 1000, np.arange(40) / 1000 + 0.1).pvalue
    assert record.composites["unlearned"]["forget_quality"].value == pytest.approx(expected)
    assert [d["question"] for d in seen["retain_only"]["forget"]] == [f"Question {i}?" for i in range(40)]
    assert any("1 questions" in note for note in record.imported.notes)
    theirs["eval_log_forget.json"]["generated_text"]["5"][0] = "[INST] A new one? [/INST]"
    with pytest.raises(InputError, match="another forget set: it lacks 1 of 40"):
        imports.import_log("tofu", logs[0], write(tmp_path / "theirs.json", theirs))


def test_a_logged_rouge_that_its_texts_do_not_give_stays_and_is_said(tmp_path):
    log = tofu_log()
    log["eval_log.json"]["rougeL_recall"]["7"] = 1.0
    record, _ = imports.import_log("tofu", write(tmp_path / "log.json", log))
    assert record.imported.as_logged == ["rouge"]
    assert any("rouge (unlearned, retain): 1 of 40" in note for note in record.imported.notes)
    assert record.scores["unlearned"]["retain"]["rouge"].value == pytest.approx((39 * 2 / 3 + 1) / 40)
    assert record.scores["unlearned"]["forget"]["rouge"].value == pytest.approx(2 / 3)


def test_missing_values_are_unscored(tmp_path):
    log = tofu_log()
    log["eval_log.json"]["avg_gt_loss"]["3"] = float("nan")
    del log["eval_log.json"]["avg_gt_loss"]["4"]
    score = imports.import_log("tofu", write(tmp_path / "log.json", log))[0].scores["unlearned"]["retain"]
    assert (score["probability"].n, score["probability"].unscored) == (38, 2)
    assert (score["rouge"].n, score["rouge"].unscored) == (40, 0)


def test_muse_log(tmp_path):
    """forget, retain: knowledge; forget_verbmem: passages; *_privleak: attacks. Only attacks by loss are computed."""
    log = write(tmp_path / "saves" / "npo" / "evals" / "MUSE_EVAL.json", muse_log())
    with pytest.raises(InputError, match="pass --benchmark"):
        imports.import_log("open-unlearning", log)
    record, seen = imports.import_log("open-unlearning", log, benchmark="muse_news")
    scores = record.scores["unlearned"]
    assert record.name == "npo"
    assert seen["unlearned"]["forget"][2]["question"] == "What 2?"
    assert scores["forget_verbmem"]["extraction_strength"].value == 0.25
    assert scores["forget"]["rouge"].value == 0.5  # recall: "run" of "run fast"; stemmed on both sides
    assert scores["forget_privleak"]["min_k"].value == 2.5
    assert scores["holdout_privleak"]["loss"].value == 3.5
    wins = sum((h + 2.5 > f) + 0.5 * (h + 2.5 == f) for f in range(6) for h in range(6))
    assert record.composites["unlearned"]["auc_min_k"].value == pytest.approx(wins / 36)
    assert scores["forget"]["rouge_f1"].value == pytest.approx(1 / 3)  # stemmed, as logged; unstemmed it is 0
    assert scores["holdout_privleak"]["gradnorm"].value == 4.5
    as_logged = {"extraction_strength", "exact_memorization", "rouge_f1", "min_k", "gradnorm"}
    assert as_logged <= set(record.imported.as_logged)
    assert not {"loss", "rouge"} & set(record.imported.as_logged)
    assert any("not imported: 'mia_tomorrow'" in note for note in record.imported.notes)
    assert open_unlearning.FLOOR in record.imported.notes


def test_a_log_of_another_benchmark_is_refused(tmp_path):
    muse, tofu = write(tmp_path / "muse.json", muse_log()), write(tmp_path / "tofu.json", tofu_log())
    asked = {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5, "avg_loss": 0.7}}}}
    other = write(tmp_path / "other.json", asked)
    for kind, log, benchmark, is_of in (
        ("open-unlearning", muse, "tofu_forget05", "MUSE"),
        ("open-unlearning", other, "muse_news", "TOFU"),
        ("tofu", tofu, "muse_books", "TOFU"),
    ):
        with pytest.raises(InputError, match=f"is a log of {is_of}, not of {benchmark}$"):
            imports.import_log(kind, log, None, None, benchmark)


def test_muse_privleak(tmp_path):
    mine, theirs = muse_log(), muse_log()
    theirs["mia_min_k"]["holdout"] = scored([0.5 + i for i in range(6)])
    logs = write(tmp_path / "mine.json", mine), write(tmp_path / "theirs.json", theirs)
    record, _ = imports.import_log("open-unlearning", *logs, benchmark="muse_books")
    # holdout + 2.5 beats forget in 30 of 36 pairs, holdout + 0.5 in 21
    assert record.composites["unlearned"]["privleak"].value == pytest.approx(100 * ((6 / 36) / (15 / 36) - 1))
    assert "privleak" not in record.composites["retain_only"]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda log: log["eval_log.json"]["avg_gt_loss"].update({"3": "x"}), "row 3 is no number"),
        (lambda log: log["eval_log.json"]["avg_gt_loss"].update({"3": -1}), "negative"),
        (lambda log: log["eval_log.json"]["avg_gt_loss"].update({"../x": 1}), "'../x' is no row number"),
        (lambda log: log["eval_log.json"]["generated_text"].update({"3": ["a"]}), "no list of prompt"),
        (lambda log: log.update({"eval_log.json": []}), "eval_log.json is no object"),
        (lambda log: log.clear(), "none of the metrics"),
    ],
)
def test_broken_logs_are_refused(tmp_path, break_it, says):
    log = tofu_log()
    break_it(log)
    with pytest.raises(InputError, match=says):
        imports.import_log("tofu", write(tmp_path / "log.json", log))


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("[INST] Who? [/INST]", "Who?"),
        ("Question: Who?\nAnswer:", "Who?"),
        ("Question: Who?\n", "Who?"),
        ("Question: A?\nAnswer: B\n\nQuestion: Who?\nAnswer: ", "Who?"),
        ("system\n\nToday Date: 10 Apr 2025\n\nYou are helpful.user\n\nWho?assistant\n\n", "Who?"),
        ("user\nWho?\nmodel\n", "Who?"),
        ("Who?", "Who?"),
    ],
)
def test_question_of_a_prompt(prompt: str, asked: str):
    assert logs.question(prompt) == asked


def test_command_line_and_rescoring(tmp_path):
    """Both commands write runs that rescore reproduces bit for bit."""
    mine, theirs = write(tmp_path / "a.json", tofu_log()), write(tmp_path / "b.json", tofu_log(shift=0.1))
    done = process("import", "tofu", mine, "--retain-log", theirs, "--out", tmp_path / "tofu")
    assert done.returncode == 0, done.stderr
    assert any(line.count("forget_quality") and "│" in line for line in done.stdout.splitlines())
    muse = write(tmp_path / "MUSE_EVAL.json", muse_log())
    done = run("import", "open-unlearning", muse, "--benchmark", "muse_news", "--out", tmp_path / "muse")
    assert done.returncode == 0, done.stderr
    assert "as logged" in done.stdout
    for folder in ("tofu", "muse"):
        record, again = store.load_record(tmp_path / folder), rescore.rescore(tmp_path / folder)
        count, differing, _ = rescore.changed(record, again)
        assert count > 15
        assert differing == []
        assert again == record
    done = run("import", "tofu", tmp_path / "none.json", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


# --- the published logs

FULL, RETAIN, PHI = (
    f"ft_epoch5_{name}_wd0.01" for name in ("lr1e-05_llama2-7b_full", "lr1e-05_llama2-7b_retain90", "lr2e-05_phi_full")
)
TASKS = {"Retain": "retain", "Real Authors": "real_authors", "Real World": "world_facts", "Forget": "forget"}


def published(name: str) -> Path:
    return SHARED / "logs" / f"{name}.eval_log_aggregated.json"


@needs_logs
@pytest.mark.parametrize("name", [FULL, RETAIN, PHI])
def test_published_tofu_logs(name):
    """Every component, and the utility, as the authors' own two aggregations have it; nothing is taken as logged."""
    reference = json.loads((SHARED / "reference" / "tofu_authors_logs.json").read_text())["checkpoints"][name]
    expected, utils = reference["agg"], reference["util"]
    record, _ = imports.import_log("tofu", published(name), benchmark="tofu_forget10")
    assert record.imported.as_logged == []
    assert record.name == name
    for title, split in TASKS.items():
        scores = record.scores["unlearned"][split]
        probability = "probability" if split in ("retain", "forget") else "probability_normalised"
        for short, metric in (("ROUGE", "rouge"), ("Prob", probability), ("TR", "truth_ratio")):
            assert scores[metric].value == pytest.approx(expected[f"{short} {title}"], abs=1e-6)
        assert scores["truth_ratio_arithmetic"].value == pytest.approx(utils[f"TR {title}"], abs=1e-6)
    composites = record.composites["unlearned"]
    assert composites["model_utility"].value == pytest.approx(expected["Model Utility"], abs=1e-6)
    assert composites["model_utility_arithmetic"].value == pytest.approx(utils["Model Utility"], abs=1e-6)


@needs_logs
def test_published_forget_quality_and_interval():
    reference = json.loads((SHARED / "reference" / "tofu_authors_logs.json").read_text())
    record, _ = imports.import_log("tofu", published(FULL), published(RETAIN), benchmark="tofu_forget10")
    composites = record.composites["unlearned"]
    published_values = reference["published"]["llama2-7b full wd0.01"]
    assert composites["model_utility"].value == pytest.approx(published_values["model_utility"], abs=1e-6)
    quality = published_values["forget_quality_vs_retain90"]
    assert composites["forget_quality"].value == pytest.approx(quality, rel=1e-6, abs=0)
    distance = reference["forget_quality"]["llama2-7b wd0.01 full vs retain90"]["ks"]
    assert composites["ks_distance"].value == pytest.approx(distance)
    low, high = reference["bootstrap_model_utility_llama_full"]["result"]["author_clustered_retain"]["ci95"]
    assert composites["model_utility"].ci_low == pytest.approx(low, abs=0.01)
    assert composites["model_utility"].ci_high == pytest.approx(high, abs=0.01)
    # the Phi model was asked the same under another template
    record, _ = imports.import_log("tofu", published(FULL), published(PHI), benchmark="tofu_forget10")
    assert record.composites["unlearned"]["forget_quality"].n == 300


# OpenUnlearning's metric -> (split, our metric); values of documents: the part of its log
PEER = {
    "extraction_strength": ("forget", "extraction_strength"),
    "exact_memorization": ("forget", "exact_memorization"),
    **{
        f"{short}_{theirs}": (split, ours)
        for short, split in open_unlearning.SPLITS.items()
        for theirs, ours in (
            ("Q_A_Prob", "probability"),
            ("Q_A_PARA_Prob", "probability_paraphrased_answer"),
            ("Q_A_PERT_Prob", "probability_wrong"),
            ("Q_A_ROUGE", "rouge"),
            ("Truth_Ratio", "truth_ratio"),
            ("truth_ratio", "truth_ratio"),
            ("Q_A_Prob_normalised", "probability_normalised"),
        )
    },
}


def with_epsilon(key: str, logs: dict[str, Any]) -> float:
    """A ratio by OpenUnlearning's formula, 1e-10 and all, from the losses that the log holds of each document."""
    short = key.split("_")[0]
    wrong = [d["avg_loss"] for d in logs[f"{short}_Q_A_PERT_Prob"]["value_by_index"].values()]
    if key.endswith("normalised"):
        p = np.exp([-d["avg_loss"] for d in logs[f"{short}_Q_A_Prob"]["value_by_index"].values()])
        return float(np.mean(p / (p + np.exp(-np.array(wrong)).sum(1) + 1e-10)))
    true = logs[f"{short}_Q_A_PARA_Prob" if short in ("forget", "retain") else f"{short}_Q_A_Prob"]["value_by_index"]
    ratio = np.exp(-np.mean(wrong, axis=1)) / (np.exp([-d["avg_loss"] for d in true.values()]) + 1e-10)
    return float(np.mean(np.minimum(ratio, 1 / (ratio + 1e-10)) if short == "forget" else np.maximum(0, 1 - ratio)))


@needs_logs
@pytest.mark.parametrize("name", ["original", "retain", "ga39", "ga78"])
def test_open_unlearning_summaries(tmp_path, name):
    """Every value of the summary within 1e-6, or apart by the 1e-10 that OpenUnlearning adds, and by that alone."""
    reference = json.loads((SHARED / "reference" / f"open_unlearning_{name}.json").read_text())
    logs, summary = reference["logs"], reference["summary"]
    retain = json.loads((SHARED / "reference" / "open_unlearning_retain.json").read_text())["logs"]
    record, seen = imports.import_log(
        "open-unlearning", write(tmp_path / "TOFU_EVAL.json", logs), write(tmp_path / "retain.json", retain)
    )
    assert record.benchmark == "tofu_forget05"
    assert set(record.imported.as_logged) == {
        *("extraction_strength", "exact_memorization", "zlib", "min_k", "min_k_plus_plus")
    }
    compared = 0
    for key, value in summary.items():
        if key not in PEER:
            continue
        split, metric = PEER[key]
        ours = record.scores["unlearned"][split].get(metric)
        if ours is None:
            continue
        compared += 1
        if abs(ours.value - value) > 1e-6:
            assert metric in ("truth_ratio", "probability_normalised"), key
            assert with_epsilon(key, logs) == pytest.approx(value, abs=1e-6), key
            assert any(note.startswith(f"{metric} (unlearned, {split})") for note in record.imported.notes)
    assert compared >= 20
    composites = record.composites["unlearned"]
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert composites[f"auc_{attack}"].value == pytest.approx(summary[f"mia_{attack}"], abs=1e-9)
    if name != "retain":  # it is its own reference here; the summary's was missing
        # the p-value itself is far below any absolute bound, and ga78's is what the epsilon makes of it
        if name == "ga78":
            assert any(note.startswith("forget_quality:") for note in record.imported.notes)
        else:
            quality = composites["forget_quality"].value
            assert quality == pytest.approx(summary["forget_quality"], rel=1e-6, abs=0)
        assert composites["privleak"].value == pytest.approx(summary["privleak"], abs=1e-4)
    assert composites["model_utility"].value == pytest.approx(summary["model_utility"], abs=1e-6)
    # zlib: computed from loss and text as for a run of ours, and kept as logged only because the holdout has no texts
    for document in seen["unlearned"]["forget"][:20]:
        logged = logs["mia_zlib"]["forget"]["value_by_index"][str(document["id"])]["score"]
        size = len(zlib.compress(f" {document['reference']}".encode()))
        assert document["answer"].loss / size == pytest.approx(logged, rel=1e-6)
