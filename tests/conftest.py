"""Fixtures that several test files share."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread each: workers that all use all cores slow one another tenfold
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from lm_eval.models.huggingface import HFLM

import unlearn_metrics


@pytest.fixture(scope="session")
def demo() -> Path:
    return Path(unlearn_metrics.__file__).parent / "demo"


@pytest.fixture(scope="session")
def lm(demo: Path) -> HFLM:
    return HFLM(str(demo / "checkpoints" / "original"), device="cpu", dtype=torch.float32, batch_size=1)
