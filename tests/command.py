"""The command as a user runs it: in this process, which saves importing torch again, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import lm_eval.tasks
import transformers
from lm_eval.__main__ import cli_evaluate

from tests import CHECKPOINTS, DATA, ROOT
from unlearn_metrics.cli import main

COMMAND = [sys.executable, "-m", "unlearn_metrics"]
Done = subprocess.CompletedProcess[str]


def run(*args: object, cwd: Path | None = None) -> Done:
    return here(main, "unlearn-metrics", *args, cwd=cwd)


def lm_eval_run(*args: object, cwd: Path | None = None) -> Done:
    """lm-eval's own command."""
    return here(cli_evaluate, "lm_eval", *args, cwd=cwd)


def here(command: Callable[[], None], *args: object, cwd: Path | None) -> Done:
    """What a command prints and exits with, in this process. It may not look at the network."""
    out, err = io.StringIO(), io.StringIO()
    argv = [*map(str, args)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        libraries_as_before(),
        no_network(),
    ):
        code: object = 0
        try:
            command()
        except SystemExit as end:
            code = end.code or 0
        except Exception:  # as Python itself ends
            traceback.print_exc()
            code = 1
    assert isinstance(code, int)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def libraries_as_before() -> Iterator[None]:
    """The command silences libraries and teaches lm-eval its tasks: for its own process, which is ours."""
    level = transformers.utils.logging.get_verbosity()
    with (
        warnings.catch_warnings(),
        mock.patch.object(lm_eval.tasks, "TaskManager", lm_eval.tasks.TaskManager),
        mock.patch("lm_eval.__main__.setup_logging"),
    ):
        yield
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    asked = []

    def refuse(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise OSError("the network is blocked")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield
    assert not asked


def process(*args: object, cwd: Path | None = None, env: Mapping[str, str] = os.environ) -> Done:
    """The same in a process of its own: without what other tests have imported or silenced."""
    env = {"PYTHONPATH": str(ROOT)} | {k: v for k, v in env.items() if k != "TQDM_DISABLE"}
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)


def score_of(out: Path, *more: object, unlearned: Path = CHECKPOINTS / "excessive") -> list[object]:
    given = ("--original", CHECKPOINTS / "original", "--unlearned", unlearned, "--benchmark", "demo", "--data", DATA)
    return ["score", *given, "--out", out, *more]


def score(out: Path, *more: object, unlearned: Path = CHECKPOINTS / "excessive") -> Done:
    return run(*score_of(out, *more, unlearned=unlearned))


def refused(done: Done, says: str, out: Path) -> None:
    """Bad input: one line on stderr, exit code 2, nothing written."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert not out.exists()
