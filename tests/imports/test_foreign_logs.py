"""Logs that other people's evaluators left, as public reports have them: read right, or refused with the reason."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs as imports

RATIO, SHARE = "wrong / true", "true / (true + wrong)"


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def by_row(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def losses(n: int = 40, seed: int = 0) -> tuple[list[float], list[list[float]]]:
    """Mean losses of true answers and of three wrong ones each; some wrong ones likelier than the true one."""
    draw = random.Random(seed)
    return [2 + draw.random() for _ in range(n)], [[2 + 2 * draw.random() for _ in range(3)] for _ in range(n)]


def ratios(n: int = 40, seed: int = 0) -> list[float]:
    """R = wrong / true of `losses`."""
    true, wrong = losses(n, seed)
    return [math.exp(a - sum(b) / 3) for a, b in zip(true, wrong, strict=True)]


def log(n: int = 40, seed: int = 0, texts: bool = True, of_losses: bool = True, share: bool = False) -> dict[str, Any]:
    """TOFU_EVAL.json. share: truth ratios as true / (true + wrong)."""
    true, wrong = losses(n, seed)
    found = [1 / (1 + x) if share else x for x in ratios(n, seed)]
    mean = np.mean(found) if share else np.mean([min(x, 1 / x) for x in found])
    result: dict[str, Any] = {
        "forget_truth_ratio": {"agg_value": float(mean), "value_by_index": by_row([{"score": x} for x in found])}
    }
    if of_losses:
        result["forget_Q_A_PARA_Prob"] = {
            "value_by_index": by_row([{"prob": math.exp(-a), "avg_loss": a} for a in true])
        }
        result["forget_Q_A_PERT_Prob"] = {
            "value_by_index": by_row([{"prob": [math.exp(-x) for x in b], "avg_loss": b} for b in wrong])
        }
    if texts:
        result["forget_Q_A_ROUGE"] = {
            "value_by_index": by_row(
                [
                    {"rougeL_recall": 0.0, "input": f"Question: Who is {i}?\nAnswer:", "ground_truth": "A fern."}
                    | {"generation": "Moss."}
                    for i in range(n)
                ]
            )
        }
    return result


def read(tmp_path: Path, value: dict[str, Any], retain: dict[str, Any] | None = None, **how: Any) -> Any:
    reference = None if retain is None else write(tmp_path / "retain.json", retain)
    return imports.import_log("open-unlearning", write(tmp_path / "TOFU_EVAL.json", value), reference, **how)


def truth_ratio(record: Any) -> Any:
    return record.scores["unlearned"]["forget"].get("truth_ratio")


def notes(record: Any) -> str:
    return "\n".join(record.imported.notes)


# --- which truth ratio it is


@pytest.mark.parametrize(("share", "of_losses"), [(False, True), (True, True), (False, False)])
def test_both_truth_ratios_are_told_apart(tmp_path, share, of_losses):
    """The same model, logged before and after December 2025, has the same truth ratio here; the note names which.

    Without losses some ratio above 1 tells that they are wrong / true.
    """
    record, _ = read(tmp_path, log(share=share, of_losses=of_losses))
    right = np.mean([min(x, 1 / x) for x in ratios()])
    assert truth_ratio(record).value == pytest.approx(right, rel=1e-6)
    assert f"truth_ratio (forget): the log has {SHARE if share else RATIO};" in notes(record)


def test_a_truth_ratio_that_could_be_either_is_left_out(tmp_path):
    """All at most 1: both values have the same mean on forget, and no number is better than one read wrong."""
    for mean in (None, 0.5):
        value = log(share=True, of_losses=False)
        if mean is not None:
            value["forget_truth_ratio"]["agg_value"] = mean
        record, _ = read(tmp_path, value)
        assert truth_ratio(record) is None
        assert f"does not tell whether its values are {RATIO} or {SHARE}" in notes(record)


def test_of_the_other_splits_too(tmp_path):
    """On retain a truth ratio is better when the truth stands out, max(0, 1 - R): there the logged mean tells."""
    small = [x / 3 for x in ratios()]  # none above 1
    for share in (True, False):
        found = [1 / (1 + x) if share else x for x in small]
        mean = np.mean(found) if share else np.mean([1 - x for x in small])
        part = {"agg_value": float(mean), "value_by_index": by_row([{"score": x} for x in found])}
        record, _ = read(tmp_path, {"retain_Truth_Ratio": part}, benchmark="tofu_forget05")
        score = record.scores["unlearned"]["retain"]["truth_ratio"]
        assert score.value == pytest.approx(np.mean([1 - x for x in small]))
        assert f"the log has {SHARE if share else RATIO};" in notes(record)


# --- rows


@pytest.mark.parametrize("row", ["{}.0", "{}.00"])
def test_row_numbers_of_floats(tmp_path, row):
    value = log()
    for part in value.values():
        part["value_by_index"] = {row.format(i): found for i, found in part["value_by_index"].items()}
    record, seen = read(tmp_path, value)
    assert record.scores == read(tmp_path, log())[0].scores
    assert [d["id"] for d in seen["unlearned"]["forget"]] == [*range(40)]


@pytest.mark.parametrize("key", ["0.5", "1e1", "-1", "1.", "01", "nan"])
def test_other_row_numbers_are_refused(tmp_path, key):
    value = log()
    value["forget_truth_ratio"]["value_by_index"][key] = {"score": 1.0}
    with pytest.raises(InputError, match="is no row number"):
        read(tmp_path, value)


def test_a_row_under_two_names_is_refused(tmp_path):
    value = log()
    value["forget_truth_ratio"]["value_by_index"]["3.0"] = {"score": 1.0}
    with pytest.raises(InputError, match="row 3 is there twice"):
        read(tmp_path, value)


@pytest.mark.parametrize("row", [0, 3, 39])
def test_a_document_without_a_result(tmp_path, row):
    """OpenUnlearning logs all later truth ratios one row too early: those with losses are computed, row by row."""
    value = log(seed=1)
    value["forget_Q_A_PARA_Prob"]["value_by_index"][str(row)] = None
    kept = [x for i, x in enumerate(ratios(seed=1)) if i != row]
    value["forget_truth_ratio"]["value_by_index"] = by_row([{"score": x} for x in kept])
    record, seen = read(tmp_path, value, log(seed=2))
    score = truth_ratio(record)
    assert (score.n, score.unscored) == (39, 1)
    assert score.value == pytest.approx(np.mean([min(x, 1 / x) for x in kept]))
    assert "truth_ratio" not in record.imported.as_logged
    assert not any("truth_ratio" in d.get("logged", ()) for d in seen["unlearned"]["forget"])
    assert record.composites["unlearned"]["forget_quality"].undefined == (
        "truth_ratio is not known for 1 of 40 documents of forget"
    )
    if row < 39:
        assert "have another value in the log" in notes(record)
        assert "truth_ratio (unlearned, forget): 1 of 39 documents have no losses: unscored" in notes(record)


def test_normalised_probabilities_after_such_a_document(tmp_path):
    """The same shift: a twin of the truth ratio."""
    true, wrong = losses()
    p = [math.exp(-a) / (math.exp(-a) + sum(math.exp(-x) for x in b)) for a, b in zip(true, wrong, strict=True)]
    value = {
        "wf_Q_A_Prob": {"value_by_index": by_row([{"prob": math.exp(-a), "avg_loss": a} for a in true])},
        "wf_Q_A_PERT_Prob": {
            "value_by_index": by_row([{"prob": [math.exp(-x) for x in b], "avg_loss": b} for b in wrong])
        },
    }
    value["wf_Q_A_Prob"]["value_by_index"]["3"] = None
    kept = [x for i, x in enumerate(p) if i != 3]
    value["wf_Q_A_Prob_normalised"] = {"value_by_index": by_row([{"prob": x} for x in kept])}
    record, _ = read(tmp_path, value, benchmark="tofu_forget05")
    score = record.scores["unlearned"]["world_facts"]["probability_normalised"]
    assert (score.n, score.unscored, score.value) == (39, 1, pytest.approx(np.mean(kept)))


# --- which benchmark, which forget set


def test_a_retain_log_of_another_forget_set_without_texts(tmp_path):
    """Rows that two logs share are no questions that they share."""
    right = read(tmp_path, log(seed=1, texts=False), log(seed=2, texts=False))[0].composites["unlearned"]
    assert right["forget_quality"].value == pytest.approx(ks_2samp(ratios(seed=1), ratios(seed=2)).pvalue)
    with pytest.raises(InputError, match="another forget set: 200 questions, where the other log has 40"):
        read(tmp_path, log(seed=1, texts=False), log(200, seed=2, texts=False))
    with pytest.raises(InputError, match="only one of them holds the texts"):
        read(tmp_path, log(seed=1), log(seed=2, texts=False))


@pytest.mark.parametrize("keep", ["forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_ROUGE", "model_utility"])
def test_a_tofu_log_of_some_metrics_is_not_of_muse(tmp_path, keep):
    """With the attacks beside, which both benchmarks have, it got a published constant of MUSE's models."""
    scores = {"value_by_index": by_row([{"score": i / 40} for i in range(40)])}
    value = {"mia_min_k": {"forget": scores, "holdout": scores}, keep: copy.deepcopy(log()).get(keep, {"agg_value": 1})}
    with pytest.raises(InputError, match="a log of TOFU, not of muse_news"):
        read(tmp_path, value, benchmark="muse_news")
    del value[keep]  # the attacks alone could be of either: the user says which
    record, _ = read(tmp_path, value, benchmark="muse_news")
    assert "privleak_published" in record.composites["unlearned"]


def test_a_muse_log_of_some_metrics_is_not_of_tofu(tmp_path):
    value = {"retain_knowmem_ROUGE": log()["forget_Q_A_ROUGE"]}
    with pytest.raises(InputError, match="a log of MUSE, not of tofu_forget05"):
        read(tmp_path, value, benchmark="tofu_forget05")
    with pytest.raises(InputError, match="metrics of TOFU and of MUSE"):
        read(tmp_path, value | log())


def test_more_questions_than_the_benchmark_has(tmp_path):
    with pytest.raises(InputError, match="has 200 forget questions; tofu_forget01 has 40"):
        read(tmp_path, log(200), benchmark="tofu_forget01")


# --- the files beside, and their names


@pytest.mark.parametrize("value", [{"forget_Q_A_Prob": 0.9, "forget_quality": 0.01}, {"model_utility": None}])
def test_a_summary_is_told_from_the_log(tmp_path, value):
    with pytest.raises(InputError, match=r"holds only aggregates; give TOFU_EVAL\.json, which lies beside it"):
        read(tmp_path, value)
    with pytest.raises(InputError, match=r"give MUSE_EVAL\.json"):
        read(tmp_path, {"forget_verbmem_ROUGE": 0.1})


def authors_part(extra: list[Any], n: int = 40) -> dict[str, Any]:
    texts = [[f"[INST] Where is {i}? [/INST]", "To the mill.", "To the lake.", *extra] for i in range(n)]
    return {
        "avg_gt_loss": by_row([1.5] * n),
        "rougeL_recall": by_row([2 / 3] * n),
        "avg_paraphrased_loss": by_row([1.6] * n),
        "average_perturb_loss": by_row([[2.0, 2.1]] * n),
        "generated_text": by_row(texts),
    }


def test_one_task_of_the_authors_log_is_told_from_all(tmp_path):
    with pytest.raises(InputError, match=r"give eval_log_aggregated\.json, which lies beside it"):
        imports.import_log("tofu", write(tmp_path / "eval_log_forget.json", authors_part([])))


@pytest.mark.parametrize("extra", [[0.97], ["a", {"b": 1}]])
def test_texts_with_further_parts(tmp_path, extra):
    """As in logs with a score beside each text: the first three are what they always are."""
    plain = {"eval_log.json": authors_part([]), "eval_log_forget.json": authors_part([])}
    more = plain | {"eval_log_forget.json": authors_part(extra)}
    found = [imports.import_log("tofu", write(tmp_path / "a.json", value))[0] for value in (plain, more)]
    assert found[0].scores == found[1].scores
    assert "eval_log_forget.json: 40 of 40 texts have more parts" in notes(found[1])
    assert "more parts" not in notes(found[0])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("saves/unlearn/tofu_1B_NPO/checkpoint-25/evals/TOFU_EVAL.json", "tofu_1B_NPO/checkpoint-25"),
        ("saves/unlearn/tofu_1B_NPO/evals/TOFU_EVAL.json", "tofu_1B_NPO"),
        ("saves/eval/retain90/evals_forget10/TOFU_EVAL.json", "retain90"),
        ("data/ft_epoch5_phi/eval_results/ds_size300/eval_log_aggregated.json", "ft_epoch5_phi"),
        ("phi/checkpoint-30/eval_results-forget01_perturbed/eval_log_aggregated.json", "phi/checkpoint-30"),
        ("ga-52/eval_log_aggregated.json", "ga-52"),
        ("theirs.eval_log_aggregated.json", "theirs"),
    ],
)
def test_names_tell_rows_apart(tmp_path, path, name):
    assert imports._names([tmp_path / path]) == [name]


def test_logs_of_a_folder_are_told_apart(tmp_path):
    """As the TOFU authors' repository has them: data/MODEL/eval_results/ds_size300/eval_log_aggregated.json."""
    places = ["data/phi_wd0/eval_results/ds_size300", "data/phi_wd0.01/eval_results/ds_size300", "data/a/x", "data/b/x"]
    for i, place in enumerate(places):
        write(tmp_path / place / "TOFU_EVAL.json", log(seed=i))
    names = [record.name for record, _ in imports.import_logs("open-unlearning", tmp_path / "data")]
    assert names == ["a/x", "b/x", "phi_wd0", "phi_wd0.01"]
    with pytest.raises(InputError, match="cannot all be called 'x'"):
        imports.import_logs("open-unlearning", tmp_path / "data", name="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \*TOFU_EVAL.json and no \*MUSE_EVAL.json"):
        imports.import_logs("open-unlearning", tmp_path / "empty")


def test_the_log_of_the_original_stands_beside(tmp_path):
    mine, start = log(), log()
    for i, (a, b) in enumerate(((0.2, 0.4), (0.3, 0.5))):
        for one, value in ((mine, a), (start, b)):
            one[f"{('forget', 'retain')[i]}_Q_A_Prob"] = {
                "value_by_index": by_row([{"avg_loss": -math.log(value)}] * 40)
            }
    files = [write(tmp_path / f"{name}.json", value) for name, value in (("mine", mine), ("start", start))]
    record, _ = imports.import_log("open-unlearning", files[0], original_log=files[1])
    assert record.checkpoints["original"].path == "start"
    assert "keeps 50% of the original's probability on the forget set and 60% on the retain set" in record.verdict
    assert any(note.startswith("original: start.json, sha256 ") for note in record.imported.notes)
