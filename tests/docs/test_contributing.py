"""The worked examples of CONTRIBUTING.md: each is followed, step by step, in a copy of the source tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests import ROOT

EXAMPLES = re.split(r"^(?=## )", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
FILE = re.compile(r"`([\w/]+(?:\.\w+|_yaml))`")  # the file that a block is for: the first one named just before it


def run(command: list[str], folder: Path, stdin: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{stdin}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(page: str, folder: Path, setup: str = "") -> list[str]:
    """Do what a page says, block by block, and return the languages of its blocks in order."""
    before, output, done = "", "", []
    for token in MarkdownIt().parse(page):
        if token.type == "inline":
            before = token.content
        elif token.type == "fence":
            language, text = token.info, token.content
            done.append(language)
            if language == "sh":
                output = run(["bash", "-e"], folder, setup + text)
            elif language == "text":
                assert text.strip() in output
            elif language == "diff":
                run(["git", "apply", "--unidiff-zero", "-"], folder, text)
            else:
                path = folder / FILE.findall(before)[0]
                path.parent.mkdir(exist_ok=True)
                there = path.read_text(encoding="utf-8") + "\n\n" if path.exists() else ""
                path.write_text(there + text, encoding="utf-8")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES[1:], ids=lambda text: text.split("\n")[0])
def test_a_worked_example_works(example, tmp_path):
    for name in ("unlearn_metrics", "tasks", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    setup = re.search(r"```sh\n(.*?)```", EXAMPLES[0], re.DOTALL)[1]
    assert {"sh"} < set(follow(example, tmp_path, setup))


def test_an_example_that_fails_is_seen(tmp_path):
    with pytest.raises(AssertionError, match="no such"):
        follow("```sh\necho no such >&2; exit 1\n```", tmp_path)
    with pytest.raises(AssertionError):
        follow("```sh\necho one\n```\n```text\ntwo\n```", tmp_path)
