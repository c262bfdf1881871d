"""python -m tools.notebook docs/auditor.ipynb: execute a notebook in place and keep what it shows, without bars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def execute(path: Path, folder: Path) -> Any:
    """The notebook with its outputs, run in a folder by this Python. CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # when each ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


if __name__ == "__main__":
    import tempfile

    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    nbformat.write(notebook, path)
