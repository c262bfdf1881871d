"""The command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import CHECKPOINTS, DATA

COMMAND = [sys.executable, "-m", "unlearn_metrics"]
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "200"}


def run(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, env=OFFLINE, **kwargs)


def score(
    out: Path, *more: object, unlearned: Path = CHECKPOINTS / "excessive", **kwargs: object
) -> subprocess.CompletedProcess[str]:
    given = ("--original", CHECKPOINTS / "original", "--unlearned", unlearned, "--benchmark", "demo", "--data", DATA)
    return run("score", *given, "--out", out, *more, **kwargs)


def refused(done: subprocess.CompletedProcess[str], says: str, out: Path) -> None:
    """Bad input: one line on stderr, exit code 2, nothing written."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert not out.exists()
