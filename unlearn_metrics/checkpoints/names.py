"""What names a checkpoint: a folder, or a hub id with an optional @revision. Reads no weights and asks no hub."""

from __future__ import annotations

import re
from pathlib import Path

from unlearn_metrics.errors import InputError, did_you_mean


def repository(name: str) -> tuple[str, str | None] | None:
    """(hub id, revision) of a name that is no folder here; None for a folder.

    InputError for what is neither: a path, or a name in a folder that is here and does not hold it.
    """
    folder = Path(name)
    if folder.is_dir():
        return None
    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith(("./", "../")) or folder.exists():
        raise InputError(f"checkpoint {name} is not a folder{_near(folder)}")
    if not revision and folder.parent.is_dir():
        raise InputError(
            f"checkpoint {name} is not there: the folder {folder.parent} has no {folder.name}{_near(folder)}"
        )
    return repo, revision or None


def _near(folder: Path) -> str:
    """Which folders beside it have a name that is nearly the same."""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    return f"; {near}" if beside and (near := did_you_mean(folder.name, beside, " ").strip()) else ""
