"""General ability: tasks of lm-eval's own kinds, from local files, in the same run and record as the benchmark."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import CHECKPOINTS, DATA
from tests.command import lm_eval_run, refused, run, score
from unlearn_metrics.benchmarks import other_tasks
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import score as main_job
from unlearn_metrics.record import RECORD_TYPE, RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.settings import Settings

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
SAYING = """
task: tiny_saying
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 30, do_sample: false}}
filter_list:
  - name: first-word
    filter:
      - {{function: regex, regex_pattern: "(\\\\w+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
CORPUS = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: word_perplexity}}
metadata: {{version: 1.0}}
"""
GROUP = """
group: {name}
task: [tiny_a, tiny_b]
aggregate_metric_list:
  - {{metric: acc, aggregation: mean, weight_by_size: {weighted}}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, demo) -> Path:
    """Two multiple-choice tasks of 12 and 6 documents that the demo's original knows by heart, groups, and others."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, file, n in (("tiny_a", "retain", 12), ("tiny_b", "forget", 6)):
        lines = (demo / "data" / f"{file}_perturbed.json").read_text().splitlines()
        part = [json.loads(line) for line in lines[:n]]
        answers = [row["answer"] for row in part]
        documents = [  # the answers to the next two questions are wrong
            {"question": row["question"], "choices": [answers[(i + k) % n] for k in (0, 1, 2)], "label": 0}
            for i, row in enumerate(part)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, data=folder / f"{name}.jsonl"))
    for name, text in (("tiny_saying", SAYING), ("tiny_text", CORPUS)):
        (folder / f"{name}.yaml").write_text(text.format(data=folder / "tiny_a.jsonl"))
    (folder / "tiny.yaml").write_text(GROUP.format(name="tiny", weighted="true"))
    (folder / "tiny_unweighted.yaml").write_text(GROUP.format(name="tiny_unweighted", weighted="false"))
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tasks):
    out = tmp_path_factory.mktemp("utility") / "run"
    given = ("--limit", 10, "--alpha", 0.25, "--utility-tasks", "tiny,tiny_saying", "--include-path", tasks)
    done = score(out, *given, "--retain-model", CHECKPOINTS / "retain")
    assert done.returncode == 0, done.stderr
    return out, done


def test_every_model_has_them_with_intervals_in_record_and_table(scored):
    out, done = scored
    record = store.load_record(out)
    assert record.ability == {
        "tiny.acc": "higher",  # of a group, what it aggregates
        "tiny_saying.exact_match,first-word": "higher",
    }
    assert set(record.scores) == {"original", "unlearned", "controlled", "retain_only"}
    for model, splits in record.scores.items():
        assert splits["tiny"].keys() == {"tiny.acc"}, model
        assert splits["tiny"]["tiny.acc"].n == 18
        assert splits["tiny_saying"]["tiny_saying.exact_match,first-word"].n == 12
    acc = {model: splits["tiny"]["tiny.acc"] for model, splits in record.scores.items()}
    assert acc["original"].value == 1  # the answers are those that it knows by heart
    assert acc["unlearned"].value < 0.8
    assert acc["unlearned"].ci_low < acc["unlearned"].value < acc["unlearned"].ci_high
    assert "General ability" in done.stdout
    assert "tiny.acc ↑" in done.stdout
    assert "|util:" in record.signature
    assert {"tiny_a", "tiny_b", "tiny_saying"} <= record.task_versions.keys()
    assert {"tiny", "tiny_saying"} <= record.data.keys()


@pytest.mark.parametrize(("subjects", "clusters"), [(9, [*range(18)]), (10, [i // 2 for i in range(20)])])
def test_subjects_of_a_large_group_are_its_clusters(monkeypatch, subjects, clusters):
    names = [f"task_{i}" for i in range(subjects)]
    monkeypatch.setattr(other_tasks, "_means", lambda name, tasks: {"acc"})
    sample = {"filter": "none", "metrics": ["acc"], "acc": 1}
    results = {"samples": {name: [sample | {"doc_id": i} for i in (1, 0)] for name in reversed(names)}}
    documents = other_tasks._documents("all", {"tasks": dict.fromkeys(names)}, results)
    assert [d["cluster"] for d in documents] == clusters
    # of some documents alone, each keeps its subject
    results["samples"] = {names[-1]: [sample | {"doc_id": 0}]}
    (document,) = other_tasks._documents("all", {"tasks": dict.fromkeys(names)}, results)
    assert document["cluster"] == (9 if subjects == 10 else 0)


def test_figures_are_those_of_the_stock_command(scored, tasks, tmp_path):
    stock = lm_eval_run(
        *("run", "--model", "hf", "--tasks", "tiny,tiny_saying", "--device", "cpu"),
        *("--model_args", f"pretrained={CHECKPOINTS / 'excessive'},dtype=float32"),
        *("--include_path", tasks, "--output_path", tmp_path),
    )
    assert stock.returncode == 0, stock.stderr[-2000:]
    theirs = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    mine = store.load_record(scored[0]).scores["unlearned"]
    assert mine["tiny"]["tiny.acc"].value == pytest.approx(theirs["tiny"]["acc,none"])
    found = mine["tiny_saying"]["tiny_saying.exact_match,first-word"].value
    assert found == pytest.approx(theirs["tiny_saying"]["exact_match,first-word"])


def test_values_are_in_the_parquet_file_and_rescored_from_there(scored):
    out, _ = scored
    again = run("rescore", out)
    assert again.returncode == 0, again.stderr
    rows = pq.read_table(out / store.TEXTS).to_pylist()
    acc = [row["logged_tiny.acc"] for row in rows if (row["model"], row["split"]) == ("unlearned", "tiny")]
    assert len(acc) == 18
    assert np.mean(acc) == store.load_record(out).scores["unlearned"]["tiny"]["tiny.acc"].value


@pytest.mark.parametrize("name", ["probability", "acc", "a.b|c", "<b>.acc", "a." + "x" * 101])
def test_a_record_with_a_metric_of_another_name_is_refused(scored, tmp_path, name):
    """Only TASK.METRIC may be declared; what is not declared is unknown."""
    folder = Path(shutil.copytree(scored[0], tmp_path / "run"))
    record = store.load_record(folder)
    raw = RECORD_TYPE.dump_json(replace(record, ability=record.ability | {name: "higher"}))
    (folder / store.RECORD).write_bytes(raw)
    with pytest.raises(InputError, match=r"is no TASK\.METRIC"):
        store.load_record(folder)
    (folder / store.RECORD).write_bytes(RECORD_TYPE.dump_json(replace(record, ability={})))
    with pytest.raises(InputError, match=r"unknown metric 'tiny\.acc'"):
        store.load_record(folder)


def test_what_is_no_mean_over_documents_is_left_out(lm, tasks):
    """lm-eval's bleu is of the corpus, word_perplexity of all words, an unweighted group of two means."""
    loaded = other_tasks.load(["tiny_saying", "tiny_a"], tasks)
    documents = other_tasks.evaluate(lm, loaded, limit=3)
    assert [len(d) for d in documents.values()] == [3, 3]
    assert documents["tiny_saying"][0]["logged"].keys() == {"tiny_saying.exact_match,first-word"}
    for name in ("tiny_text", "tiny_unweighted"):
        with pytest.raises(InputError, match=f"no metric of {name} is a mean"):
            other_tasks.load([name], tasks)


def test_bad_names_are_refused_in_one_line(tmp_path, tasks):
    out = tmp_path / "out"
    refused(score(out, "--utility-tasks", "hellaswagg"), "did you mean hellaswag", out)
    (tasks / "retain.yaml").write_text((tasks / "tiny_a.yaml").read_text().replace("tiny_a", "retain", 1))
    given = ("--utility-tasks", "retain", "--include-path", tasks)
    refused(score(out, *given), "the task retain has the name of a split of demo", out)


# --- calibration on another metric than extraction_strength


def calibrated(record: RunRecord, documents: Observations) -> RunRecord:
    """The record, its control checked against its documents, which other evaluations than the calibration's gave."""
    control = record.control
    split = "tiny" if control.metric == "tiny.acc" else "retain"
    half, other = (
        {model: splits[name][control.metric].value for model, splits in record.scores.items()}
        for name in (f"{split}_calibration", split)
    )
    assert control.target == pytest.approx(control.keep * half["original"])
    assert control.achieved == pytest.approx(half["controlled"], abs=1e-6)
    assert control.achieved >= control.target
    assert (control.original_held_out, control.achieved_held_out) == pytest.approx(
        (other["original"], other["controlled"])
    )
    trace = {point.alpha: point.retention for point in control.trace}
    assert trace[1] == pytest.approx(half["unlearned"], abs=1e-6)
    # beyond alpha 1 the path is measured, but no control is chosen there
    assert all(retention < control.target for alpha, retention in trace.items() if control.alpha < alpha <= 1)
    for splits in documents.values():
        halved = [[d["id"] for d in splits[name]] for name in (f"{split}_calibration", split)]
        n = len(halved[0] + halved[1])
        assert halved == [list(range(0, n, 2)), list(range(1, n, 2))]
        assert [name for name in splits if name.endswith("_calibration")] == [f"{split}_calibration"]
    return record


@pytest.mark.slow
def test_calibration_on_another_task(tmp_path, tasks):
    given = ("--utility-tasks", "tiny", "--include-path", tasks, "--keep", 0.9, "--retention-metric", "tiny.acc")
    done = score(tmp_path / "run", *given, "--limit", 8)
    assert done.returncode == 0, done.stderr
    record = calibrated(store.load_record(tmp_path / "run"), store.load_documents(tmp_path / "run"))
    assert 0 < record.control.alpha < 1
    assert record.scores["original"]["retain"]["extraction_strength"].n == 8  # whole
    assert record.scores["original"]["tiny"]["tiny.acc"].n == 9
    assert "|ctl:mix.tiny.acc.keep0.9|" in record.signature
    assert "; tiny.acc: 1.000 on the calibration split (target 0.900 = 0.9 of" in " ".join(done.stdout.split())
    raw = record.scores["unlearned"]["tiny"]["tiny.acc"].value / record.scores["original"]["tiny"]["tiny.acc"].value
    assert f"on the forget set and {raw:.0%} of the original's tiny.acc; held to 90% of" in record.verdict
    assert run("rescore", tmp_path / "run").returncode == 0
    pair = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "excessive")
    mixed = run("control", "mix", *pair, *given, "--out", tmp_path / "mixed")
    assert mixed.returncode == 0, mixed.stderr
    assert f"alpha {record.control.alpha:g}: wrote" in mixed.stdout
    assert "; tiny.acc: 1.000 on the calibration split" in (tmp_path / "mixed" / "README.md").read_text()


def beside(unlearned: str, **chosen: Any) -> tuple[RunRecord, Observations]:
    pair = (str(CHECKPOINTS / "original"), str(CHECKPOINTS / unlearned))
    return main_job.run(*pair, "demo", DATA, Settings(device="cpu", **chosen))


@pytest.mark.parametrize("metric", ["probability", "rouge", "truth_ratio"])
def test_calibration_on_another_metric(metric):
    record = calibrated(*beside("moderate", retention_metric=metric, limit=8))
    assert record.control.metric == metric
    assert f"|ctl:mix.{metric}.keep0.95|" in record.signature
    assert f"of the original's {metric} on retain" in record.verdict


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("repetition", "--retention-metric repetition: higher is not better; there are extraction_strength, exact"),
        ("perplexity", "unknown --retention-metric 'perplexity'; there are extraction_strength, exact"),
        ("mmlu.acc", "unknown --retention-metric 'mmlu.acc'; .* and what --utility-tasks mmlu would bring"),
        ("tiny.f1", "unknown --retention-metric 'tiny.f1'; did you mean tiny.acc?"),
    ],
)
def test_what_can_not_be_kept_is_refused(tasks, metric, says):
    with pytest.raises(InputError, match=says):
        beside("moderate", retention_metric=metric, utility_tasks=("tiny",), include_path=tasks)


def test_what_is_kept_and_what_excludes_it(tmp_path):
    out = tmp_path / "out"
    refused(score(out, "--retention-metric", "rouge", "--alpha", 0.5), "exclude each other", out)
    refused(
        score(out, "--retention-metric", "rouge", "--control", "none"),
        "none has no --retention-metric",
        out,
    )
    refused(score(out, "--retention-metric", "repetition"), "higher is not better; there are extraction_str", out)
