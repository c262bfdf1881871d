"""Terminals, pipes and folders that are not what a desk has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import COMMAND


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_pipe_that_is_not_utf_8(tmp_path: Path, encoding: str):
    """Arrows and the like are spelled; nothing breaks off after the run is written."""
    log = {"value_by_index": {str(i): {"score": 0.5} for i in range(40)}}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps({"extraction_strength": log}))
    env = os.environ | {"PYTHONIOENCODING": encoding}

    def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, env=env)

    done = run("import", "open-unlearning", tmp_path / "TOFU_EVAL.json", "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "extraction_strength v" in done.stdout.decode(encoding)
    again = run("rescore", tmp_path / "r")
    assert again.returncode == 0, again.stderr
    helped = run("score", "--help")
    assert helped.returncode == 0
    assert "--unlearned" in helped.stdout.decode(encoding)


def test_metrics_need_no_cache_that_can_be_written():
    code = (
        "from unlearn_metrics.scores.evaluate_modules import load\n"
        "print(load('rouge').compute(predictions=['In Oslo.'], references=['She was born in Oslo.']))"
    )
    env = os.environ | {"HF_HOME": "/proc/none", "HOME": "/proc"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "{'rouge': 0.4, 'rouge_unscored': 0}", done.stderr
