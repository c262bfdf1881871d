"""What all tests start with, and fixtures that several test files share."""

import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "COLUMNS": "200"}
if "PYTEST_XDIST_WORKER" in os.environ:  # a thread each: workers that all use all cores slow one another tenfold
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import lm_eval.tasks
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._index import TaskIndex

from tests import DEMO

collect_ignore = ["data/user_script.py"]  # no module to look for examples in: it is checked by mypy

hypothesis.settings.register_profile("tests", deadline=None)  # a loaded machine is no fault
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def lm(demo: Path) -> HFLM:
    return HFLM(str(demo / "checkpoints" / "original"), device="cpu", dtype=torch.float32, batch_size=1)


@pytest.fixture(scope="session", autouse=True)
def tasks_indexed_once() -> Iterator[None]:
    """lm-eval reads its 14,000 YAML files for every task manager, which takes seconds: here only for the first."""
    build, defaults, kept = TaskIndex.build, Path(lm_eval.tasks.__file__).parent, []

    def remembering(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        paths = list(paths)
        if paths[:1] != [defaults] or options:
            return build(paths, **options)
        if not kept:
            kept.append(pickle.dumps(build([defaults])))
        return pickle.loads(kept[0]) | build(paths[1:])  # as lm-eval has it: later ones override

    with mock.patch.object(TaskIndex, "build", staticmethod(remembering)):
        yield


# --- slow tests that are left out are named at the end, whichever process left them out

LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.config.stash[LEFT_OUT][item.nodeid.split("[")[0]] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    if hasattr(node, "workeroutput"):  # not of a worker that crashed; every worker collects everything
        node.config.stash[LEFT_OUT] = Counter(node.workeroutput["left_out"])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    left_out = config.stash[LEFT_OUT]
    if left_out and config.getoption("markexpr") == "not slow":
        terminalreporter.section(f"{left_out.total()} slow tests left out; make test-all runs them")
        for name, count in sorted(left_out.items()):
            terminalreporter.line(name if count == 1 else f"{name} ({count})")
