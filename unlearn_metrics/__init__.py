"""Evaluation of unlearned language models, under control."""

from pathlib import Path

__version__ = "0.1.0"


def tasks_path() -> Path:
    """The folder with the task YAML: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    return next(p for p in (package / "tasks", package.parent / "tasks") if p.is_dir())
