"""Folders of the MUSE authors' evaluator: small ones by hand, and the authors' own where shared/ is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import SHARED
from tests.command import run
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs
from unlearn_metrics.metrics.retention import rouge, rouge_f1
from unlearn_metrics.records import rescore, store

REAL = SHARED / "logs" / "muse"
needs_logs = pytest.mark.skipif(not REAL.is_dir(), reason="needs shared/logs/muse beside the project")


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def asked(response: str, f1: float) -> dict[str, Any]:
    return {"prompt": "Question: Who?\nAnswer: ", "question": "Who?", "gt": "a b", "response": response, "rougeL": f1}


def attacked(values: list[float]) -> list[dict[str, Any]]:
    return [{"text_number": i, "ppl": {"PPL": 1.0, "Min-40%": value}} for i, value in enumerate(values)]


def folder(root: Path) -> Path:
    """Three models. Answered: the original all, the unlearned one half, the retrained none of the forget questions."""
    for model, right in (("target", 2), ("ga/step=3", 1), ("retrain", 0)):
        place = root / "knowmem" / model / "forget"
        write(place / "history.json", [asked("a b", 1.0)] * right + [asked("c", 0.0)] * (2 - right))
        write(place / "out.json", {"mean_rougeL": right / 2, "model": "swj0419/hpall_STEP"})
        write(root / "knowmem" / model / "retain" / "history.json", [asked("a b", 1.0), asked("a c", 0.5)])
        write(root / "verbmem" / model / "forget" / "history.json", [{"rougeL": right / 4}])
    # holdout beats forget in 4, 2 and 3 of 4 pairs
    for model, values in (("target", [0, 0]), ("ga/step=3", [3, 3]), ("retrain", [0, 3])):
        write(root / "privleak" / model / "forget.json", attacked(values))
        write(root / "privleak" / model / "holdout.json", attacked([2, 4]))
    return root


def by_name(root: Path, **how: Any) -> dict[str, Any]:
    return {record.name: (record, seen) for record, seen in runs.import_logs("muse", root, **how)}


def test_by_hand(tmp_path):
    found = by_name(folder(tmp_path))
    assert found.keys() == {"target", "ga/step=3", "retrain"}
    record, seen = found["ga/step=3"]
    assert record.benchmark == "muse_books"
    assert {role: info.path for role, info in record.checkpoints.items()} == {
        "unlearned": "ga/step=3",
        "original": "target",
        "retain_only": "retrain",
    }
    scores = record.scores
    assert [scores[m]["forget"]["rouge_f1"].value for m in ("original", "unlearned", "retain_only")] == [1, 0.5, 0]
    assert scores["unlearned"]["retain"]["rouge_f1"].value == 0.75
    assert scores["unlearned"]["forget_verbmem"]["rouge_f1"].value == 0.25
    assert seen["unlearned"]["forget"][0]["question"] == "Who?"
    composites = record.composites["unlearned"]
    assert composites["auc_min_k"].value == 0.5
    assert composites["privleak"].value == pytest.approx(100 * ((1 - 0.5) / (1 - 0.75) - 1))
    assert "keeps 50% of the original's rouge_f1 on the forget set and 100% on the retain set" in record.verdict
    # the reference models stand beside the others, and not beside themselves
    assert "retain_only" not in found["retrain"][0].scores
    assert "original" not in found["target"][0].scores
    assert found["target"][0].composites["unlearned"]["auc_min_k"].value == 1


def test_what_the_log_says_otherwise_is_noted(tmp_path):
    root = folder(tmp_path)
    write(root / "knowmem" / "ga" / "step=3" / "forget" / "out.json", {"mean_rougeL": 0.75})
    write(root / "knowmem" / "ga" / "step=3" / "retain" / "history.json", [asked("a b", 0.5), asked("a c", 0.5)])
    write(root / "privleak" / "ga" / "step=3" / "auc.json", {"forget_holdout": {"Min-40%": 0.25, "PPL": 0.5}})
    record, _ = by_name(root)["ga/step=3"]
    notes = "\n".join(record.imported.notes)
    assert "rouge_f1 (forget): mean 0.75 in out.json, 0.5 from its documents" in notes
    assert "rouge_f1 (unlearned, retain): 1 of 2 documents have another value in the log" in notes
    assert "auc_min_k: 0.75 in the log, 0.5 from its documents" in notes
    assert "auc_loss" not in notes  # all losses are alike: 0.5


def test_the_authors_own_layout(tmp_path):
    """knowmem/out/bbc/MODEL, as their scripts write it."""
    folder(tmp_path / "plain")
    for kind in ("knowmem", "verbmem", "privleak"):
        for corpus in ("bbc", "hp"):
            (tmp_path / "both" / kind / "out").mkdir(parents=True, exist_ok=True)
            (tmp_path / "both" / kind / "out" / corpus).symlink_to(tmp_path / "plain" / kind)
    with pytest.raises(InputError, match="holds logs of bbc and hp; pass --benchmark"):
        by_name(tmp_path / "both")
    assert by_name(tmp_path / "both", benchmark="muse_news")["ga/step=3"][0].benchmark == "muse_news"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: write(root / "knowmem/ga/step=3/forget/history.json", {}), "history.json is no list"),
        (lambda root: write(root / "knowmem/ga/step=3/forget/history.json", [1]), "entry 0 is no object"),
        (lambda root: write(root / "verbmem/target/forget/history.json", [{"rougeL": 2}]), "not between 0 and 1"),
        (lambda root: write(root / "privleak/target/forget.json", [{"ppl": {"PPL": "x"}}]), "PPL is no number"),
        (lambda root: write(root / "knowmem/target/forget/history.json", [{"gt": ["a"]}]), "gt is no text"),
        (lambda root: write(root / "privleak/target/auc.json", []), "auc.json is no object"),
        (lambda root: [file.unlink() for file in root.rglob("out.json")], "pass --benchmark"),
        (lambda root: [write(file, [{}] * 6_000) for file in root.rglob("history.json")], "more than 5,000 entries"),
        (lambda root: [file.unlink() for file in root.rglob("*.json")], "holds no history.json"),
    ],
)
def test_what_is_no_such_log_is_refused(tmp_path, change, says):
    root = folder(tmp_path)
    change(root)
    with pytest.raises(InputError, match=says):
        by_name(root)


@pytest.mark.parametrize("emptied", ["target", "ga/step=3", "retrain"])
def test_a_run_is_the_same_from_its_folder_where_logs_hold_no_documents(tmp_path, emptied):
    """Of one model they hold none; of a split of another neither."""
    root = folder(tmp_path / "logs")
    for file in root.glob(f"*/{emptied}/**/*.json"):
        if file.name != "out.json":
            write(file, [])
    write(root / "verbmem" / "ga/step=3" / "forget" / "history.json", [])
    for place, (record, seen) in enumerate(runs.import_logs("muse", root)):
        store.save(tmp_path / str(place), record, seen)
        again = rescore.rescore(tmp_path / str(place))
        assert rescore.changed(record, again)[1] == rescore.changed(again, record)[1] == []


def test_more_than_memory_may_hold_is_refused_before_it_is_read(tmp_path):
    """A file of 3 GiB that takes no room: its end is all that was written."""
    root = folder(tmp_path)
    with (root / "knowmem" / "ga" / "step=3" / "forget" / "history.json").open("r+b") as file:
        file.truncate(3 << 30)
    with pytest.raises(InputError, match="more than 2 GiB; import parts of them"):
        by_name(root)


def test_the_command_writes_a_run_for_each_model(tmp_path):
    done = run("import", "muse", folder(tmp_path / "logs"), "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"target", "ga-step=3", "retrain"}
    for place in (tmp_path / "runs").iterdir():
        record = store.load_record(place)
        assert rescore.rescore(place) == record
    done = run("import", "muse", tmp_path / "logs", "--out", tmp_path / "runs")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run("import", "muse", tmp_path / "runs", "--out", tmp_path / "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "knowmem, verbmem and privleak" in done.stderr


# --- the authors' logs


@needs_logs
def test_our_rouge_is_theirs_on_every_response():
    compared = 0
    for file in sorted(REAL.glob("knowmem/**/history.json")):
        for entry in json.loads(file.read_text(encoding="utf-8")):
            assert rouge_f1(entry["response"], entry["gt"]) == pytest.approx(entry["rougeL"], abs=1e-15)
            recall = rouge(entry["response"], entry["gt"], stemmer=False)
            assert recall == pytest.approx(entry["rougeL_recall"], abs=1e-15)
            compared += 1
    assert compared == 1_500


@needs_logs
def test_aucs_and_privleak_of_the_published_models():
    """Against auc.json, and against the retrained model's 0.4772 that the authors' code has as a constant."""
    found = by_name(REAL)
    assert len(found) == 10
    retrained = 0.4772
    for name in ("target", "ga/step=102", "npo_gdr/step=1020", "whp/alpha=4"):
        record, seen = found[name]
        aucs = json.loads((REAL / "privleak" / name / "auc.json").read_text())["forget_holdout"]
        ours = record.composites["unlearned"]
        for theirs, metric in (("PPL", "auc_loss"), ("PPL/zlib", "auc_zlib"), ("Min-40%", "auc_min_k")):
            assert 1 - ours[metric].value == pytest.approx(aucs[theirs], abs=1e-12)
        privleak = 100 * (aucs["Min-40%"] - retrained) / retrained
        assert ours["privleak"].value == pytest.approx(privleak, abs=1e-9)
        assert not any("in the log" in note or "in out.json" in note for note in record.imported.notes)
        assert len(seen["unlearned"]["forget"]) == 100
    assert 1 - found["retrain"][0].composites["unlearned"]["auc_min_k"].value == pytest.approx(retrained, abs=1e-12)
    assert found["npo_gdr/step=1020"][0].scores["unlearned"]["forget"]["rouge_f1"].value == pytest.approx(
        json.loads((REAL / "knowmem/npo_gdr/step=1020/forget/out.json").read_text())["mean_rougeL"], abs=1e-12
    )
