"""The notebook in docs/ runs, and shows what it showed when it was committed."""

import re

import nbformat
import pytest

from tests import ROOT
from tools.notebook import execute

NOTEBOOK = ROOT / "docs" / "auditor.ipynb"


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells show as text, numbers apart: they differ between processors in the last digits."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    return [re.sub(r"[-+]?\d[\d.e+-]*", "#", " ".join(text.split())) for text in texts]


def test_the_notebook_has_its_outputs_and_no_path_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(shown(notebook)) >= len([cell for cell in notebook.cells if cell.cell_type == "code"])
    for page in (
        output["data"].get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ):
        assert "<script" not in page
    assert not re.search(r"(?<![\w.<])/(home|root|tmp|work|usr|Users|opt|var)\b", NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    assert shown(execute(NOTEBOOK, tmp_path)) == shown(nbformat.read(NOTEBOOK, as_version=4))
