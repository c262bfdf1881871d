"""A record's path comes from strangers: whatever does not fit together is refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.scores.test_equal_retention import straight
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import values
from unlearn_metrics.record import RECORD_TYPE, RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.records.rescore import changed, rescore
from unlearn_metrics.scores.equal_retention import MAX_CLUSTERS, measured, residuals
from unlearn_metrics.scores.models import whole

RUN = Path(__file__).parent / "data" / "record_2"


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    """A record with a path."""
    found = json.loads(RECORD_TYPE.dump_json(store.load_record(RUN)))
    path = straight()
    fields: dict[str, Any] = {"path": path, "residual": residuals(path, 0.95, 0)}
    dumped = RECORD_TYPE.dump_python(RunRecord(**found | fields), mode="json", warnings=False)  # type: ignore[arg-type]
    return dict(json.loads(json.dumps(dumped)))


def test_it_loads(raw: dict[str, Any], tmp_path: Path):
    (tmp_path / store.RECORD).write_text(json.dumps(raw))
    record = store.load_record(tmp_path)
    assert record.path == straight()
    assert record.residual["probability"].value.value == pytest.approx(0.7)


Break = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Break, str]] = {
    "alphas that do not start at the original": (
        lambda p: p["alphas"].__setitem__(0, 0.1),
        "ascending strengths from 0",
    ),
    "alphas that fall": (lambda p: p["alphas"].reverse(), "ascending strengths from 0"),
    "one half": (lambda p: p["retain"].pop(), "two halves"),
    "halves of other clusters": (lambda p: p["retain"][0]["clusters"].reverse(), "two halves"),
    "a row too few": (lambda p: p["forget"]["probability"]["total"].pop(), "one row for each strength"),
    "a cluster too few": (lambda p: p["forget"]["probability"]["count"][2].pop(), "one column for each cluster"),
    "a cluster twice": (lambda p: p["forget"]["probability"]["clusters"].__setitem__(1, 0), "different clusters"),
    "too many clusters": (
        lambda p: p["forget"]["probability"]["clusters"].extend(range(100, 101 + MAX_CLUSTERS)),
        "different clusters",
    ),
    "a metric of no split": (lambda p: p["splits"].clear(), "disagrees with itself on the metrics"),
    "a count below 0": (lambda p: p["forget"]["probability"]["count"][0].__setitem__(0, -1), "greater than or equal"),
    "a sum that no metric gives": (
        lambda p: p["forget"]["probability"]["total"][1].__setitem__(0, -1e300),
        "which no metric gives",
    ),
    "a strength beyond the last": (lambda p: p["alphas"].__setitem__(4, 9.0), "less than or equal to 1.5"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_together_is_refused(raw: dict[str, Any], tmp_path: Path, what: str):
    broken, said = BROKEN[what]
    found = copy.deepcopy(raw)
    broken(found["path"])
    (tmp_path / store.RECORD).write_text(json.dumps(found))
    with pytest.raises(InputError, match=said):
        store.load_record(tmp_path)


def test_results_without_a_path_are_refused(raw: dict[str, Any], tmp_path: Path):
    (tmp_path / store.RECORD).write_text(json.dumps(raw | {"path": None}))
    with pytest.raises(InputError, match="is not of its path"):
        store.load_record(tmp_path)


def test_a_value_outside_its_own_interval_is_refused(raw: dict[str, Any], tmp_path: Path):
    found = copy.deepcopy(raw)
    score = found["scores"]["original"]["forget"]["probability"]
    score |= {"value": 0.5, "ci_low": 0.6, "ci_high": 0.7}
    (tmp_path / store.RECORD).write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"probability is 0\.5, outside its own interval from 0\.6 to 0\.7"):
        store.load_record(tmp_path)


def test_a_path_over_other_clusters_than_the_documents_is_refused(raw: dict[str, Any], tmp_path: Path):
    for file in RUN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / store.RECORD).write_text(json.dumps(raw))
    with pytest.raises(InputError, match="over other clusters than the documents"):
        rescore(tmp_path)


def test_rescoring_finds_results_that_the_path_does_not_give_and_an_end_that_the_documents_do_not(tmp_path: Path):
    for file in RUN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record, documents = store.load_record(RUN), store.load_documents(RUN)
    seen = {model: whole(splits) for model, splits in documents.items()}
    names = {"retain": ["extraction_strength"], "forget": ["probability"]}
    at = {
        alpha: {split: values(wanted, seen[model][split]) for split, wanted in names.items()}
        for alpha, model in ((0.0, "original"), (1.0, "unlearned"))
    }
    clusters = {split: [d["cluster"] for d in seen["original"][split]] for split in names}
    path = measured("extraction_strength", "retain", at, clusters)
    record = replace(record, path=path, residual=residuals(path, 0.95, 0))

    def differing(record: RunRecord) -> list[str]:
        (tmp_path / store.RECORD).write_bytes(RECORD_TYPE.dump_json(record))
        return changed(store.load_record(tmp_path), rescore(tmp_path))[1]

    assert differing(record) == []
    found = record.residual["probability"]
    wrong = replace(found, value=replace(found.value, value=0.123))
    assert "residual probability: value" in differing(replace(record, residual={"probability": wrong}))[0]
    sums = path.forget["probability"]
    moved = replace(sums, total=[[0.5 * x for x in sums.total[0]], *sums.total[1:]])
    tampered = replace(path, forget={"probability": moved})
    told = differing(replace(record, path=tampered, residual=residuals(tampered, 0.95, 0)))
    assert any("residual probability: value" in line for line in told)
