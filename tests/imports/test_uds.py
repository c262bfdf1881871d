"""method_results.json of UDS: one model by hand, and the 152 published ones where shared/ is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import SHARED
from tests.command import run
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs
from unlearn_metrics.records import rescore, store

REAL = SHARED / "reference" / "uds" / "method_results.json"
needs_logs = pytest.mark.skipif(not REAL.is_file(), reason="needs shared/reference/uds beside the project")


def model(name: str, **others: Any) -> dict[str, Any]:
    """Four ways to have forgotten, nine ways to be useful: all 0.5 but for `others`."""
    forgotten = ("one_minus_es", "one_minus_em", "one_minus_paraprob", "one_minus_truth", "fluency")
    useful = [f"{short}_{part}" for short in ("retain", "ra", "wf") for part in ("q_prob", "q_rouge", "truth_ratio")]
    return {"model": name, "epoch": "ep5", **dict.fromkeys((*forgotten, *useful), 0.5), **others}


def log(*models: dict[str, Any]) -> dict[str, Any]:
    return {"models": [*models], "full_utility": {"ep5": 0.5}}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    return {record.name: record for record, seen in runs.import_logs("uds", path) if seen == {}}


def test_by_hand(tmp_path):
    found = read(
        write(
            tmp_path / "log.json",
            log(model("full", one_minus_es=0.2), model("npo", one_minus_es=0.9, ra_q_prob=0.25, mem=0.5, uds=0.7)),
        )
    )
    record = found["npo"]
    assert record.benchmark == "tofu_forget10"
    assert record.scores["unlearned"]["forget"]["extraction_strength"].value == pytest.approx(0.1)
    assert record.scores["original"]["forget"]["extraction_strength"].value == pytest.approx(0.8)
    score = record.scores["unlearned"]["real_authors"]["probability_normalised"]
    assert (score.value, score.n, score.unscored, score.ci_low) == (0.25, None, None, None)
    assert "truth_ratio" not in record.scores["unlearned"]["forget"]
    composites = record.composites["unlearned"]
    assert composites["model_utility"].value == pytest.approx(9 / (8 / 0.5 + 1 / 0.25))
    assert composites["memorization_score"].value == pytest.approx(4 / (1 / 0.9 + 3 / 0.5))
    utility = 2 / (1 / composites["model_utility"].value + 1 / 0.5)
    assert composites["utility_score"].value == pytest.approx(utility / 0.5)
    notes = record.imported.notes
    assert any(note.startswith("memorization_score: 0.5 in the file, 0.5625") for note in notes)
    assert "not imported: 'uds'" in notes


def test_what_is_not_known_stays_unknown(tmp_path):
    record = read(write(tmp_path / "log.json", {"models": [{"model": "a", "one_minus_es": 0.25, "fluency": None}]}))[
        "a"
    ]
    assert {s: [*m] for s, m in record.scores["unlearned"].items()} == {"forget": ["extraction_strength"]}
    assert record.composites["unlearned"] == {}
    assert record.data == {}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([], "no object"),
        ({}, "models is no list"),
        ({"models": []}, "no models"),
        ({"models": [1]}, "no object"),
        ({"models": [{}]}, "no name"),
        ({"models": [model("a"), model("a")]}, "same name"),
        ({"models": [model("a", fluency=1.5)]}, "a, fluency is 1.5, not between 0 and 1"),
        ({"models": [model("a", one_minus_es="x")]}, "no number"),
        ({"models": [{"model": "a"}]}, "none of the metrics"),
        ({"models": [model(str(i)) for i in range(1_001)]}, "more than 1,000"),
        (log(model("a", epoch=[1])) | {"full_utility": []}, "full_utility is no object"),
    ],
)
def test_what_is_no_such_log_is_refused(tmp_path, broken, says):
    with pytest.raises(InputError, match=says):
        runs.import_logs("uds", write(tmp_path / "log.json", broken))


def test_a_run_without_documents_is_told_from_others(tmp_path, capsys):
    done = run("import", "uds", write(tmp_path / "log.json", log(model("a"), model("b"))), "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    done = run("rescore", tmp_path / "runs" / "a")
    assert "nothing is computed again" in done.stdout
    done = run("compare", tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no documents" in done.stderr
    done = run("leaderboard", tmp_path / "runs", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    with pytest.raises(InputError, match="no metric can be computed"):
        rescore.rescore(tmp_path / "runs" / "a", ["rouge"])
    # a run that was measured here knows how many documents it is about
    place = tmp_path / "runs" / "a" / "record.json"
    raw = json.loads(place.read_text())
    raw["imported"], raw["signature"] = None, raw["signature"].replace("|src:uds", "")
    place.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="of how many documents"):
        store.load_record(place)


@needs_logs
def test_composites_of_152_real_models():
    raw = {one["model"]: one for one in json.loads(REAL.read_text())["models"]}
    found = read(REAL)
    assert len(found) == len(raw) == 152
    for name, record in found.items():
        composites = record.composites["unlearned"]
        assert composites["model_utility"].value == pytest.approx(raw[name]["model_utility"], abs=1e-10)
        assert composites["memorization_score"].value == pytest.approx(raw[name]["mem"], abs=1e-10)
        assert min(composites["utility_score"].value, 1) == pytest.approx(raw[name]["utility_rel"], abs=1e-10)
    assert found["altpo_lr1e5_b01_a1_ep5"].checkpoints.keys() == {"unlearned", "original", "retain_only"}
