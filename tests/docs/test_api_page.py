"""The examples of docs/api.md run, in order, as a reader would run them."""

import os
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from tests import ROOT


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    blocks = MarkdownIt().parse((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    code = "\n".join(block.content for block in blocks if block.type == "fence" and block.info == "python")
    assert "um.score" in code
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slow" / "model.safetensors").exists()
