"""Acceptance on the shared checkpoints: skipped where they are not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT, SHARED
from tools import fidelity
from unlearn_metrics.records import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "reference").is_dir(),
        reason="needs shared/ (checkpoints, data, reference values) beside the project",
    ),
]


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
