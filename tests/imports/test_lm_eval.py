"""What lm-eval itself wrote: real runs of the demo's models, the same run as `score` measures, and broken files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker

from tests import CHECKPOINTS
from tests.command import run
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.documents import FlagScores, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs, samples
from unlearn_metrics.records import rescore, store

LIMIT = 10


def evaluated(out: Path, checkpoint: str, tasks: list[str]) -> Path:
    """As `lm_eval run --log_samples --output_path out` writes it."""
    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        "hf",
        model_args={"pretrained": str(CHECKPOINTS / checkpoint), "dtype": "float32"},
        device="cpu",
        tasks=tasks,
        limit=LIMIT,
        task_manager=suites.OurTaskManager(include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    found = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=found)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=found[task])
    return out


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> dict[str, Path]:
    """Three models. The original's tasks were run one by one, the others' as a suite."""
    root = tmp_path_factory.mktemp("lm_eval")
    for task in ("demo_forget", "demo_retain"):
        evaluated(root / "original", "original", [task])
    return {
        "original": root / "original",
        "moderate": evaluated(root / "moderate", "moderate", ["demo_forget", "demo_retain"]),
        "retain": evaluated(root / "retain", "retain", ["demo_forget", "demo_retain"]),
    }


def test_it_is_what_score_measures(written, tmp_path):
    """Values, texts and clusters, but for the rounding of other batches; with both other models beside."""
    log, retain_log, original_log = (written[name] for name in ("moderate", "retain", "original"))
    record, seen = runs.import_log("lm-eval", log, retain_log, original_log=original_log)
    unlearned, original = (str(CHECKPOINTS / name) for name in ("moderate", "original"))
    done = run(
        *("score", "--benchmark", "demo", "--original", original, "--unlearned", unlearned),
        *("--retain-model", CHECKPOINTS / "retain", "--limit", LIMIT, "--control", "none", "--out", tmp_path / "run"),
        *("--dtype", "float32"),
    )
    assert done.returncode == 0, done.stderr
    measured, theirs = store.load_record(tmp_path / "run"), store.load_documents(tmp_path / "run")
    compared = 0
    for model, splits in measured.scores.items():
        for split, scores in splits.items():
            if split not in record.scores[model]:  # retain is halved by score
                continue
            for metric, score in scores.items():
                if metric in record.scores[model][split]:
                    mine = record.scores[model][split][metric]
                    assert (mine.n, mine.unscored) == (score.n, score.unscored)
                    assert mine.value == pytest.approx(score.value, rel=1e-5), (model, split, metric)
                    compared += 1
    assert compared > 40
    for one, other in zip(seen["unlearned"]["forget"], theirs["unlearned"]["forget"], strict=True):
        for name in ("id", "cluster", "prompt", "question", "reference", "generation"):
            assert one[name] == other[name]
        tokens, argmax, *numbers = zip(one["answer"].to_lists(), other["answer"].to_lists(), strict=True)
        assert all(a == b for a, b in (tokens, argmax))
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in numbers)
    quality = measured.composites["unlearned"]["forget_quality"].value
    assert record.composites["unlearned"]["forget_quality"].value == pytest.approx(quality, rel=1e-6)
    assert "keeps" in record.verdict and "without a control" in record.verdict  # noqa: PT018
    assert (record.benchmark, record.imported.as_logged) == ("demo", [])
    assert "|n:10|tmpl:none|" in record.signature and "|dtype:float32|" in record.signature  # noqa: PT018


def test_it_can_be_rescored_compared_and_listed(written, tmp_path):
    for name in ("moderate", "retain"):
        done = run("import", "lm-eval", written[name], "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        record = store.load_record(tmp_path / name)
        again = rescore.rescore(tmp_path / name)
        assert rescore.changed(record, again)[1] == []
        assert again == record
    assert "leak_at_100" in rescore.rescore(tmp_path / "moderate", ["all"]).scores["unlearned"]["forget"]
    done = run("compare", tmp_path / "moderate", tmp_path / "retain")
    assert done.returncode == 0, done.stderr
    done = run("leaderboard", tmp_path / "moderate", tmp_path / "retain", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    board = json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    assert [len(group["rows"]) for group in board["groups"]] == [2]  # comparable, so in one table
    done = run("import", "lm-eval", written["moderate"].parent, "--out", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "all").iterdir()]) == 3


# --- other tasks, by hand


def foreign(root: Path, group: int = 0, **change: Any) -> Path:
    """Two tasks of two documents each; with more tasks, a group. `acc` is a mean, `f1` is not."""
    names = [f"quiz_{i}" for i in range(group or 2)]
    stamp = "2026-01-02T03-04-05.000001"
    results: dict[str, Any] = {
        "results": {name: {"acc,none": 0.5, "f1,none": 0.9} for name in names} | {"quiz": {"acc,none": 0.5}},
        "configs": {
            name: {"task": name, "metadata": {"version": 1}, "metric_list": [{"metric": "acc"}]} for name in names
        },
        "higher_is_better": {name: {"acc": True, "f1": True} for name in names},
        "versions": dict.fromkeys(names, 2),
        "n-shot": dict.fromkeys(names, 0),
        "group_subtasks": {"quiz": names} if group else {},
        "config": {"model_args": {"pretrained": "org/model"}, "limit": None, "model_dtype": "torch.bfloat16"},
        "lm_eval_version": "0.4.13",
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / f"results_{stamp}.json").write_text(json.dumps(results | change))
    for name in names:
        lines = [
            {
                "doc_id": i,
                "doc": {},
                "filter": "none",
                "metrics": ["acc", "f1"],
                "acc": float(i),
                "f1": 0.1,
                "doc_hash": "x",
            }
            for i in range(2)
        ]
        (root / f"samples_{name}_{stamp}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def test_other_tasks(tmp_path):
    with pytest.raises(InputError, match="name it with --benchmark"):
        runs.import_log("lm-eval", foreign(tmp_path / "a"))
    record, seen = runs.import_log("lm-eval", tmp_path / "a", benchmark="ours")
    assert (record.name, record.benchmark) == ("org/model", "ours")
    assert record.scores["unlearned"]["quiz_0"]["quiz_0.acc"].value == 0.5
    assert record.ability == {"quiz_0.acc": "higher", "quiz_1.acc": "higher"}
    assert "not imported: quiz_0.f1, which is no mean over all documents" in record.imported.notes
    assert [d["cluster"] for d in seen["unlearned"]["quiz_1"]] == [0, 1]
    store.save(tmp_path / "run", record, seen)
    assert rescore.rescore(tmp_path / "run") == record


def test_a_group_is_one_and_its_tasks_are_clusters(tmp_path):
    record, seen = runs.import_log("lm-eval", foreign(tmp_path, group=12), benchmark="ours")
    assert record.scores["unlearned"].keys() == {"quiz"}
    score = record.scores["unlearned"]["quiz"]["quiz.acc"]
    assert (score.value, score.n) == (0.5, 24)
    assert len({d["cluster"] for d in seen["unlearned"]["quiz"]}) == 12


def test_wmdp_is_found_by_its_tasks_and_what_is_to_be_forgotten_counts_downwards(tmp_path):
    foreign(tmp_path)
    for file in [*tmp_path.iterdir()]:
        file.write_text(file.read_text().replace("quiz_0", "wmdp_bio").replace("quiz_1", "mmlu"))
        file.rename(file.with_name(file.name.replace("quiz_0", "wmdp_bio").replace("quiz_1", "mmlu")))
    record, _ = runs.import_log("lm-eval", tmp_path)
    assert record.benchmark == "wmdp"
    assert record.scores["unlearned"]["forget_wmdp_bio"]["wmdp_bio.acc"].value == 0.5
    assert record.ability == {"wmdp_bio.acc": "lower", "mmlu.acc": "higher"}


# --- what is broken


def line(file: Path, change: dict[str, Any]) -> None:
    lines = [json.loads(one) for one in file.read_text().splitlines()]
    lines[1] |= change
    file.write_text("\n".join(map(json.dumps, lines)))


def scores(**change: Any) -> list[Any]:
    """resps of one answer of one token."""
    lists = {"tokens": ["1", "2"], "argmax": ["1", "2"], "logprob": ["-1", "-2"], "mean": ["-3", "-3"]} | change
    return [[*lists.values(), ["1", "1"]]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"doc_id": -1}, "line 2: doc_id is no number"),
        ({"doc_id": 0}, "document 0 is there twice"),
        ({"doc": []}, "doc is no object"),
        ({"resps": [["x"]]}, "has not the"),
        ({"probability": "x"}, "probability is no number"),
        ({"doc": {"question": "\ud800"}}, "half a character"),
    ],
)
def test_broken_samples_are_refused(written, tmp_path, change, says):
    shutil.copytree(written["moderate"], tmp_path / "log")
    line(next((tmp_path / "log").rglob("samples_demo_forget*")), change)
    with pytest.raises(InputError, match=says):
        runs.import_log("lm-eval", tmp_path / "log")


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (["text"], "no list of token scores"),
        ([], "no list of one"),
        (scores(tokens=["1"]), "5 or 8 lists of the same length"),
        (scores(tokens=["1.5", "2"]), "whole number"),
        (scores(logprob=["0.5", "-1"]), "above 0"),
        (scores(mean=["inf", "-1"]), "infinite"),
        (scores(logprob=["1e999999", "-1"]), "above 0"),
        (scores(logprob=[["-1"], "-1"]), "no number"),
        (scores(logprob=["-" * 50, "-1"]), "no number"),
        ([[["1"], ["2"], ["3"], ["token"]]], "none of a backend's"),
    ],
)
def test_responses_of_no_backend_are_refused(response, says):
    with pytest.raises(InputError, match=says):
        samples._response(response, TokenScores, "here")


def test_responses_of_backends():
    (found,) = samples.observed([("answer", 1)], [samples._response(scores(), TokenScores, "here")]).values()
    assert isinstance(found, TokenScores) and found.loss == 1.5  # noqa: PT018
    flags = samples._response([[["0.5"], ["4"], ["nan"], ["word"]]], TokenScores, "here")
    (found,) = samples.observed([("answer", 1)], [flags]).values()
    assert isinstance(found, FlagScores) and math.isnan(found.revealed)  # noqa: PT018
    assert samples._response(["7"], int, "here") == 7
    assert samples._response(["a text"], str, "here") == "a text"


def test_more_than_memory_may_hold_is_refused_before_it_is_read(written, tmp_path):
    shutil.copytree(written["moderate"], tmp_path / "log")
    with next((tmp_path / "log").rglob("samples_demo_forget*")).open("r+b") as file:
        file.truncate(3 << 30)
    with pytest.raises(InputError, match="more than 2 GiB; import parts of them"):
        runs.import_log("lm-eval", tmp_path / "log")


def test_results_without_samples_are_told(written, tmp_path):
    shutil.copytree(written["moderate"], tmp_path / "log")
    for file in (tmp_path / "log").rglob("samples_*"):
        file.unlink()
    with pytest.raises(InputError, match="run lm_eval with --log_samples"):
        runs.import_log("lm-eval", tmp_path / "log")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no results_"):
        runs.import_log("lm-eval", tmp_path / "empty")
