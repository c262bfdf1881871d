"""The main job through the command line, as a user runs it, on the embedded demo."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import CHECKPOINTS, DATA, ROOT
from tests.command import COMMAND, lm_eval_run, process, refused, run, score
from tests.plain import heed_ctrl_c
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.record import SCHEMA
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import PARTIAL
from unlearn_metrics.scores.scoring import score_all


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The demo: `score` of two checkpoints, of which it keeps the excessive one's run."""
    out = tmp_path_factory.mktemp("runs") / "excessive"
    done = process("demo", "--verbose", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def record(scored):
    return json.loads((scored[0] / "record.json").read_text())


def test_record_shows_that_raw_numbers_mislead(record):
    """The claim of the package, on a checkpoint that really is collapsed."""
    es = {
        (model, split): record["scores"][model][split]["extraction_strength"]["value"]
        for model in ("original", "unlearned", "controlled")
        for split in ("forget", "retain")
    }
    assert es["original", "forget"] == es["original", "retain"] == 1
    assert es["unlearned", "forget"] < 0.02  # looks forgotten
    assert es["unlearned", "retain"] < 0.02  # but so is the rest
    held_out = record["scores"]["controlled"]["retain"]["extraction_strength"]
    assert held_out["ci_low"] <= 0.95 <= held_out["ci_high"]
    assert es["controlled", "forget"] > 0.5
    collapsed, fluent = (record["scores"][m]["retain"] for m in ("unlearned", "original"))
    assert collapsed["perplexity"]["value"] > 100 * fluent["perplexity"]["value"]
    assert collapsed["repetition"]["value"] > 0.9 > 0.1 > fluent["repetition"]["value"]
    assert collapsed["ngram_entropy"]["value"] < 0.5 * fluent["ngram_entropy"]["value"]


def test_record_says_what_control_did(record):
    control = record["control"]
    assert control["method"] == "mix"
    assert 0 < control["alpha"] < 1
    assert control["keep"] == 0.95
    assert control["target"] == pytest.approx(0.95)  # the original knows the retain set by heart
    assert control["achieved"] >= control["target"]
    trace = {point["alpha"]: point["retention"] for point in control["trace"]}
    assert trace[control["alpha"]] == control["achieved"]
    assert trace[1.0] < 0.02
    held_out = record["scores"]["controlled"]["retain"]["extraction_strength"]["value"]
    assert control["achieved_held_out"] == pytest.approx(held_out)


def test_calibration_and_report_use_different_halves(scored, record):
    """120 retain documents: the even rows calibrate, the odd ones report; both are kept."""
    documents = store.load_documents(scored[0])["controlled"]
    assert [d["id"] for d in documents["retain"]] == list(range(1, 120, 2))
    assert [d["id"] for d in documents["retain_calibration"]] == list(range(0, 120, 2))
    calibrating = record["scores"]["controlled"]["retain_calibration"]["extraction_strength"]
    assert calibrating["value"] == pytest.approx(record["control"]["achieved"], abs=1e-6)
    assert calibrating["n"] == record["scores"]["controlled"]["retain"]["extraction_strength"]["n"] == 60


def test_record_identifies_everything(record):
    assert record["schema"] == SCHEMA
    assert re.match(
        r"demo\|n:all\|tmpl:none\|prompt:\w{8}\|eos:prob\+\|ctl:mix.es.keep0.95\|dtype:float32\|data:\w{8}\|",
        record["signature"],
    )
    assert record["checkpoints"]["original"]["weights_sha256"] != record["checkpoints"]["unlearned"]["weights_sha256"]
    assert (
        record["checkpoints"]["original"]["tokenizer_sha256"] == record["checkpoints"]["unlearned"]["tokenizer_sha256"]
    )
    assert {"lm-eval", "torch", "transformers", "unlearn-metrics"} <= record["software"].keys()
    assert record["work"]["forward_passes"] > 0
    for splits in record["scores"].values():
        for metrics in splits.values():
            for name, s in metrics.items():
                assert s["n"] + s["unscored"] > 0, name
                if s["value"] is not None:
                    assert math.isfinite(s["value"]), name
                    assert s["ci_low"] <= s["value"] + 1e-9, name
                    assert s["value"] <= s["ci_high"] + 1e-9, name


def test_loading_gives_back_the_same_scores(scored):
    """What lies in the Parquet files is enough to compute every score again, bit for bit, with no model."""
    record = store.load_record(scored[0])
    again, _ = score_all(store.load_documents(scored[0]), record.scores, seed=0)
    for model, splits in record.scores.items():
        for split, stored in splits.items():
            assert again[model][split] == stored, (model, split)
    assert again.keys() == record.scores.keys()


def test_parquet_can_be_read_by_anyone(scored, record):
    """Extraction strength from the file alone, by its definition, equals the record's."""
    rows = pq.read_table(scored[0] / store.TOKENS).to_pylist()
    rows = [r for r in rows if (r["model"], r["split"], r["role"]) == ("controlled", "forget", "answer")]
    values = []
    for row in rows:
        n = len(row["tokens"]) - 1
        wrong = [i + 1 for i in range(n) if row["argmax"][i] != row["tokens"][i]]
        values.append(1 - max(wrong, default=0) / n)
    stored = record["scores"]["controlled"]["forget"]["extraction_strength"]
    assert (np.mean(values), len(values)) == (pytest.approx(stored["value"]), stored["n"])


def test_table_is_what_a_person_reads(scored):
    _, done = scored
    for text in ("Fluency", "Knowledge retention", "Forget quality", "under control", "alpha = 0."):
        assert text in done.stdout
    assert "As published, the unlearned model keeps 0% of the original's extraction_strength" in done.stdout
    assert "forward passes" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "│" in line) <= 160
    assert "Traceback" not in done.stderr


def test_alpha_none_limit_and_overwrite(tmp_path):
    """--alpha 0.5 scores all retain documents; a run is never replaced unless asked; --control none has two columns."""
    out = tmp_path / "run"
    assert score(out, "--alpha", 0.5, "--limit", 4).returncode == 0
    first = store.load_record(out)
    assert (first.control.alpha, first.control.trace, first.control.keep) == (0.5, [], None)
    assert first.scores["controlled"]["retain"]["extraction_strength"].n == 4
    assert first.scores["controlled"]["retain"]["extraction_strength"].ci_low is None  # one cluster: no interval
    assert "|n:4|" in first.signature
    again = score(out, "--control", "none", "--limit", 4)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert store.load_record(out) == first
    assert score(out, "--control", "none", "--limit", 4, "--overwrite").returncode == 0
    second = store.load_record(out)
    assert second.control.method == "none"
    assert second.scores.keys() == {"original", "unlearned"}
    assert sorted(p.name for p in out.iterdir()) == sorted([store.RECORD, store.TEXTS, store.TOKENS])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "ckpt"
    args = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "moderate")
    done = process(
        "control", "mix", *args, "--keep", 0.9, "--benchmark", "demo", "--data", DATA, "--limit", 20, "--out", out
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_record_says_where_the_dtype_swallows_a_mix(tmp_path):
    """Every weight of a copy of the original is one step of bfloat16 off."""
    near = Path(shutil.copytree(CHECKPOINTS / "original", tmp_path / "near"))
    for file in near.glob("*.safetensors"):
        stepped = {name: (t.view(torch.int16) ^ 1).view(torch.bfloat16) for name, t in load_file(file).items()}
        save_file(stepped, file, metadata={"format": "pt"})
    done = score(tmp_path / "run", "--alpha", "0.5", "--limit", "1", unlearned=near)
    said = "about 100% of the weights that unlearning changed are one or two steps of bfloat16 apart"
    told = store.load_record(tmp_path / "run").control.rounding
    assert [said in text for text in (told, done.stdout, done.stderr)] == [True] * 3


def test_control_mix_writes_what_score_would_have_scored(mixed, tmp_path):
    """Scored raw, the written checkpoint gives the numbers that `score --keep` gives under control."""
    out, done = mixed
    kept = score(tmp_path / "a", "--keep", 0.9, "--limit", 20, unlearned=CHECKPOINTS / "moderate")
    raw = score(tmp_path / "b", "--control", "none", "--limit", 20, unlearned=out)
    assert kept.returncode == raw.returncode == 0, kept.stderr + raw.stderr
    a, b = store.load_record(tmp_path / "a"), store.load_record(tmp_path / "b")
    assert f"alpha {a.control.alpha:g}" in done.stdout
    held, written = a.scores["controlled"]["forget"], b.scores["unlearned"]["forget"]
    # judged in batches with other company: equal but for float32 rounding
    assert held.pop("perplexity").value == pytest.approx(written.pop("perplexity").value, rel=1e-5)
    assert held == written


def test_written_mix_runs_under_the_stock_command(mixed, tmp_path):
    include = run("tasks", "--path").stdout.strip()
    stock = lm_eval_run(
        *("run", "--model", "hf", "--tasks", "demo_forget", "--limit", 3, "--device", "cpu"),
        *("--model_args", f"pretrained={mixed[0]},dtype=float32", "--include_path", include),
        *("--metadata", f"data_dir={DATA}", "--output_path", tmp_path),
    )
    assert stock.returncode == 0, stock.stderr[-2000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]["demo_forget"]
    assert 0 < results["extraction_strength,none"] < 1


def test_demo_and_help(scored):
    assert "As published excessive has the least; at equal retention moderate does." in scored[1].stdout
    for command in ((), ("score",), ("control",), ("tasks",), ("demo",)):
        shown = run(*command, "--help")
        assert shown.returncode == 0
        assert "Usage" in shown.stdout
    assert "Example" in run("score", "--help").stdout
    assert "tofu_forget05" in run("tasks").stdout


@pytest.mark.slow
def test_wheel_carries_tasks_and_demo(tmp_path):
    """What `pip install .` installs: run it from the unpacked wheel alone."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run([*map(str, build)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("unlearn_metrics-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    alone = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    for args, says in (
        (["tasks", "--path"], str(tmp_path / "site" / "unlearn_metrics" / "tasks")),
        (["tasks"], "tofu_forget05_suite"),
    ):
        done = subprocess.run([*COMMAND, *args], cwd=tmp_path, capture_output=True, text=True, env=alone)
        assert says in done.stdout, done.stderr
    packed = tmp_path / "site" / "unlearn_metrics"
    assert (packed / "tasks" / "tofu" / "_forget_yaml").is_file()
    assert len(list((packed / "demo" / "checkpoints").glob("*/model.safetensors"))) == 4


# --- bad input: one line on stderr, exit code 2, nothing written


def bad_folder(tmp_path: Path, name: str) -> Path:
    folder = Path(shutil.copytree(CHECKPOINTS / "excessive", tmp_path / "bad"))
    weights = folder / "model.safetensors"
    if name == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif name == "garbage":
        weights.write_bytes(b"\x00" * 100)
    elif name == "nan":
        tensors = load_file(weights)
        tensors["model.norm.weight"][0] = torch.nan
        save_file(tensors, weights)
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated", "no whole safetensors file"),
        ("garbage", "no whole safetensors file"),
        ("nan", "tensor model.norm.weight has NaN or infinite values"),
    ],
)
def test_broken_checkpoint(tmp_path, name, says):
    refused(score(tmp_path / "out", unlearned=bad_folder(tmp_path, name)), says, tmp_path / "out")


def test_bad_arguments(tmp_path):
    out = tmp_path / "out"
    refused(score(out, unlearned=tmp_path / "nowhere"), "is not a folder", out)
    refused(score(out, "--benchmark", "demos"), "unknown benchmark 'demos'; did you mean demo", out)
    refused(score(out, "--data", tmp_path / "nothing"), "does not exist", out)
    refused(score(out, "--keep", 0.9, "--alpha", 0.5), "exclude each other", out)
    refused(score(out, "--alpha", 1.5), "--alpha: input should be less than or equal to 1, not 1.5", out)
    refused(score(out, "--control", "none", "--keep", 0.5), "--control none has no --keep", out)
    refused(score(out, "--device", "cuda:7"), "device cuda:7 cannot be used", out)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    done = score(taken, "--overwrite")
    assert done.returncode == 2
    assert "not empty and holds no run" in done.stderr
    assert [p.name for p in taken.iterdir()] == ["thesis.tex"]
    assert score(out, "--limit", 0).returncode == 2  # typer's own message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "q", "answer": "a"}', "line 2: field 'paraphrased_answer' is missing"),
        ("{", "line 2: not JSON"),
    ],
)
def test_bad_data(tmp_path, line, says):
    data = Path(shutil.copytree(DATA, tmp_path / "data"))
    lines = (data / "retain_perturbed.json").read_text().splitlines()
    lines[1] = line
    (data / "retain_perturbed.json").write_text("\n".join(lines))
    refused(score(tmp_path / "out", "--data", data), says, tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_leaves_no_run(tmp_path):
    """SIGINT at several moments of a real run: exit code 130, and nothing but what a rerun goes on from."""
    for delay in (2.0, 6.0, 9.0):
        out = tmp_path / f"out-{delay}"
        args = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "excessive")
        command = [*COMMAND, "score", *args, "--benchmark", "demo", "--data", DATA, "--out", out]
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen([*map(str, command)], preexec_fn=heed_ctrl_c, **pipes)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        if process.returncode == 0:
            assert store.load_record(out)
        else:
            assert process.returncode in (130, -signal.SIGINT), err
            if out.exists():
                assert [p.name for p in out.iterdir()] == [PARTIAL]
                assert "goes on from" in err.decode()


def test_metric_names_are_one_spelling(record):
    for splits in record["scores"].values():
        for metrics in splits.values():
            assert metrics.keys() <= METRICS.keys()
