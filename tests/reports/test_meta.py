"""The command `meta`: labelled records in, tables and pictures out; and what is no plan."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scipy.stats import pearsonr

import unlearn_metrics as um
from tests.command import run
from tests.reports.test_leaderboard import record, score
from unlearn_metrics.record import RECORD_TYPE, AttackInfo, Attacks, RunRecord
from unlearn_metrics.reports.meta.judged import knowledge


def write(folder: Path, made: RunRecord) -> None:
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(RECORD_TYPE.dump_json(made))


def made(name: str, es: float, probability: float, useful: float = 1.0) -> RunRecord:
    """A record with these values on forget as published; under control, both are halfway to 1."""
    whole = record(name)
    scores = {
        model: splits
        | {
            "forget": {
                "extraction_strength": score((es + half) / (1 + half)),
                "probability": score((probability + half) / (1 + half)),
                "repetition": score(0.5),
            },
            "retain": splits["retain"] | {"extraction_strength": score(1.0 if model == "original" else useful)},
        }
        for model, splits, half in zip(whole.scores, whole.scores.values(), (0, 0, 1), strict=True)
    }
    return replace(whole, scores=scores)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Ten that know and ten that do not: extraction strength tells all apart, probability all but two."""
    for i in range(10):
        write(tmp_path / f"knows/k{i}", made(f"k{i}", 0.6 + i / 100, 0.5 if i else 0.05))
        write(tmp_path / f"does_not_know/n{i}", made(f"n{i}", 0.1 + i / 100, 0.1))
    for i in range(6):
        es = 0.1 + i / 50
        write(tmp_path / f"unlearned/u{i}/before", made(f"u{i}", es, 0.1, useful=0.9 if i else 0.1))
        write(tmp_path / f"unlearned/u{i}/relearn", made(f"r{i}", es + 0.4, 0.2))
        write(tmp_path / f"unlearned/u{i}/nf4", made(f"q{i}", es * 2, 0.1))
    write(tmp_path / "retain_only/before", made("retain", 0.1, 0.1))
    write(tmp_path / "retain_only/relearn", made("retain-r", 0.2, 0.2))
    return tmp_path


def test_folders_with_the_names_of_labels_are_a_plan(pool, tmp_path):
    out = tmp_path / "judged"
    done = run("meta", pool, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "faithfulness by 10 models that know and 10 that do not, as published" in done.stdout
    assert "order of 6 unlearned models" in done.stdout
    found = json.loads((out / "meta.json").read_text())
    strength = found["judged"]["unlearned"]["extraction_strength"]
    assert strength["n"] == [10, 10, 5]  # one is of no use
    assert strength["faithfulness"]["value"] == 1
    assert strength["faithfulness"]["high"] == 1
    assert strength["threshold"]["value"] == pytest.approx((0.19 + 0.6) / 2)
    assert strength["stability"]["relearn"]["value"] == pytest.approx(0.25)
    assert strength["stability"]["nf4"]["value"] == pytest.approx(0.5)
    assert strength["robustness"]["value"] == pytest.approx(2 / (4 + 2))
    assert strength["overall"]["value"] == pytest.approx(2 / (1 + 3))
    assert strength["order"]["relearn"]["value"] == pytest.approx(1)
    probability = found["judged"]["unlearned"]["probability"]
    assert probability["faithfulness"]["value"] == pytest.approx(0.9)  # one of ten lies below all
    assert found["differences"]["unlearned"]["probability"]["value"]["value"] == pytest.approx(-0.1)
    assert "repetition" not in found["judged"]["unlearned"]  # says nothing of knowledge
    assert found["judged"]["controlled"]["extraction_strength"]["threshold"]["value"] == pytest.approx((1 + 0.395) / 2)
    rows = list(csv.DictReader((out / "meta.csv").open()))
    assert [(row["model"], row["metric"]) for row in rows][:2] == [
        ("unlearned", "extraction_strength"),
        ("unlearned", "probability"),
    ]
    assert b"<svg" in (out / "meta.svg").read_bytes()
    assert run("meta", pool, "--out", out).returncode == 0  # its own files are replaced
    # a picture by matplotlib, but not of ours, and a folder that is a file: in one line, and nothing is lost
    theirs = (out / "meta.svg").read_text().replace("unlearn-metrics", "somebody")
    (out / "meta.svg").write_text(theirs)
    (out / "meta.json").unlink()
    for place in (out, out / "meta.csv", out / "meta.csv" / "below"):
        done = run("meta", pool, "--out", place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "Errno" not in done.stderr
        assert ("was not written by unlearn-metrics" if place == out else "meta.csv is a file") in done.stderr
    assert (out / "meta.svg").read_text() == theirs
    assert not (out / "meta.json").exists()


def test_a_plan_in_yaml_and_the_api_give_the_same(pool):
    plan = {
        "knows": str(pool / "knows/*"),
        "does_not_know": [str(pool / "does_not_know")],
        "unlearned": {f"u{i}": {s: str(pool / f"unlearned/u{i}/{s}") for s in ("before", "nf4")} for i in range(6)},
    }
    (pool / "plan.yaml").write_text(yaml.safe_dump(plan))
    printed = json.loads(run("meta", pool / "plan.yaml", "--json", "--metrics", "probability").stdout)
    found = um.meta(plan, metrics="probability")
    assert json.loads(found.to_json()) == printed
    assert printed["judged"]["unlearned"].keys() == {"extraction_strength", "probability"}  # what it is compared with
    assert "<svg" not in found._repr_html_()
    assert "extraction_strength" in found._repr_html_()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("[1, 2]", "expected keys and values"),
        ("knows: runs", "does_not_know is missing"),
        ("know: runs", "no such key; did you mean knows?"),
        ("{knows: nowhere, does_not_know: nowhere}", "knows: nowhere holds no run"),
        ("{knows: POOL/knows, does_not_know: POOL/knows}", "labelled both as knowing and as not knowing"),
        ("{knows: POOL/knows, does_not_know: POOL/does_not_know, unlearned: {a: {nf4: POOL}}}", "needs 'before'"),
        ("{knows: POOL/knows, does_not_know: POOL/does_not_know, retain_only: {before: POOL}}", "name one"),
        ("{knows: POOL/other, does_not_know: POOL/does_not_know}", "not measured alike"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_no_plan_is_said_in_a_line(pool, plan, says):
    other = made("other", 0.5, 0.5)
    write(pool / "other", replace(other, signature=other.signature.replace("tmpl:none", "tmpl:chat")))
    (pool / "plan.yaml").write_text(plan.replace("POOL", str(pool)))
    done = run("meta", pool / "plan.yaml")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_where_nothing_can_be_told_no_metric_is_the_best(pool):
    plan = {"knows": str(pool / "knows/k0"), "does_not_know": str(pool / "does_not_know/n0")}
    found = um.meta(plan)
    assert {it.faithfulness.value for view in found.judged.values() for it in view.values()} == {None}
    assert not [note for note in found.notes() if "highest" in note]
    assert any("no metric's faithfulness is known: " in note and "None" not in note for note in found.notes())


def test_an_unknown_metric_is_said(pool):
    done = run("meta", pool, "--metrics", "extraction_strenght")
    assert done.returncode == 2
    assert "did you mean extraction_strength?" in done.stderr


def test_robustness_correlates_before_with_after(tmp_path):
    """Ten models: nf4 keeps extraction strength's order but not its distances; relearning turns the order round."""
    plan: dict[str, dict[str, dict[str, str]]] = {"unlearned": {}}
    before = [0.05 * i for i in range(10)]
    after = {"nf4": [b**2 for b in before], "relearn": [0.9 - b for b in before]}
    for i, b in enumerate(before):
        stages = {"before": b, **{attack: values[i] for attack, values in after.items()}}
        for stage, es in stages.items():
            write(tmp_path / f"m{i}" / stage, made(f"m{i}", es, 0.1))
        plan["unlearned"][f"m{i}"] = {stage: str(tmp_path / f"m{i}" / stage) for stage in stages}
    del plan["unlearned"]["m9"]["relearn"]  # an attack that nobody made on one of them
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    done = run("robustness", tmp_path / "plan.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "10 models before and after nf4, as published" in done.stdout
    assert "a value is the same for all models" in done.stdout  # probability
    rows = {
        (row["model"], row["attack"], row["metric"]): row
        for row in csv.DictReader((tmp_path / "out/robustness.csv").open())
    }
    quantized = rows["unlearned", "nf4", "extraction_strength"]
    assert float(quantized["pearson"]) == pytest.approx(pearsonr(before, after["nf4"]).statistic)
    assert float(quantized["pearson_low"]) < float(quantized["pearson"]) < float(quantized["pearson_high"])
    assert float(quantized["kendall"]) == pytest.approx(1)
    relearned = rows["unlearned", "relearn", "extraction_strength"]
    assert (relearned["models"], float(relearned["kendall"])) == ("9", pytest.approx(-1))
    assert (rows["unlearned", "nf4", "probability"]["pearson"]) == ""
    assert b"<svg" in (tmp_path / "out/robustness.svg").read_bytes()
    again = um.robustness(plan, metrics=["extraction_strength"])
    assert json.loads(again.to_json())["lasting"]["unlearned"].keys() == {"nf4", "relearn"}
    assert "nf4" in again._repr_html_()


def attacked(name: str, es: float, after: float, floor: float, floor_after: float) -> RunRecord:
    """A run that holds its own attack, of the retain-only model too."""
    whole = made(name, es, 0.1)
    models = {"unlearned": es, "unlearned+int4": after, "retain_only": floor, "retain_only+int4": floor_after}
    scores = {model: {"forget": {"extraction_strength": score(value)}} for model, value in models.items()}
    scores = whole.scores | scores | {"unlearned": whole.scores["unlearned"]}
    block = Attacks({"int4": AttackInfo("weights", "rounding")}, {}, {}, "")
    return replace(whole, scores=scores, attacks=block)


def test_runs_hold_their_own_attacks(pool):
    for i in range(9):
        write(pool / f"runs/a{i}", attacked(f"a{i}", 0.1 + i / 100, 0.2 + i / 50, 0.1, 0.2))
    lasting = um.robustness([pool / f"runs/a{i}" for i in range(9)])
    found = lasting.lasting["unlearned"]["int4"]["extraction_strength"]
    assert found.before == pytest.approx([0.1 + i / 100 for i in range(9)])
    assert found.after == pytest.approx([0.2 + i / 50 for i in range(9)])
    assert (found.pearson.value, found.kendall.value) == (pytest.approx(1), pytest.approx(1))
    assert run("robustness", pool / "runs").stdout.startswith(run("robustness", *pool.glob("runs/a*")).stdout[:40])
    plan = {"knows": str(pool / "knows"), "does_not_know": str(pool / "does_not_know"), "unlearned": str(pool / "runs")}
    judged = um.meta(plan).judged["unlearned"]["extraction_strength"]
    assert judged.stability["int4"].value == pytest.approx(0.5)


def test_robustness_needs_attacks(pool):
    (pool / "plan.yaml").write_text(f"unlearned: {pool}/unlearned/u1/before")
    for what, says in (
        (pool / "plan.yaml", "no run holds attacks, and no model has a run after one"),
        (pool / "knows/k1", "no run holds attacks"),
        (pool / "nowhere", "nowhere holds no run"),
    ):
        done = run("robustness", what)
        assert done.returncode == 2
        assert says in done.stderr


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("extraction_strength", 1),
        ("truth_ratio", -1),
        ("loss", -1),
        ("min_k", -1),
        ("auc_min_k", 1),
        ("memorization_score", -1),
        ("privleak", -1),
        ("rouge", 1),
        ("probability_wrong", -1),
        ("perplexity", 0),
        ("refusal", 0),
        ("nobody_knows_it", 0),
    ],
)
def test_which_way_is_knowledge(name, sign):
    assert knowledge(name) == sign
