"""leaderboard.yaml, beside the runs: what no record tells of a row, in the maintainer's words. Hostile all the same."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.records.folder import RECORD

FILE = "leaderboard.yaml"
MAX_BYTES, MAX_TEXT, MAX_LINK = 1 << 20, 200, 2_000


@dataclass(frozen=True)
class About:
    """Of a row: its method, the day (YYYY-MM-DD), a link (http or https), who sent it in, who checked it."""

    method: str | None = None
    date: str | None = None
    link: str | None = None
    submitter: str | None = None
    checked_by: str | None = None


def read(folder: Path) -> tuple[dict[Path, About], list[str]]:
    """(folder of a run -> what is said of it, one line for each entry that cannot be used); nothing without the file.

    The file maps a run's folder, relative to its own, to the fields of About.
    """
    path = folder / FILE
    if not path.exists():
        return {}, []
    try:
        entries = _entries(path)
    except InputError as error:
        return {}, [str(error)]
    found: dict[Path, About] = {}
    bad = []
    for run, said in entries.items():
        try:
            if not (folder / str(run) / RECORD).is_file():
                raise InputError("there is no run in that folder")
            found[(folder / str(run)).resolve()] = _about(said)
        except (InputError, OSError, ValueError) as error:
            bad.append(f"{path}, {str(run)[:MAX_TEXT]}: {first_line(error)}")
    return found, bad


def _entries(path: Path) -> Mapping[Any, Any]:
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} is too large: it has more than {MAX_BYTES >> 20} MiB")
        loaded = yaml.safe_load(data)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML: {first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path} does not map folders of runs to what is said of them")
    return loaded


def _about(said: Any) -> About:
    known = [field.name for field in fields(About)]
    if not isinstance(said, dict):
        raise InputError(f"takes {', '.join(known)}")
    if unknown := [str(key)[:MAX_TEXT] for key in said if key not in known]:
        raise InputError(f"unknown field {unknown[0]!r}; it takes {', '.join(known)}")
    return About(**{name: CHECKS.get(name, _text)(name, value) for name, value in said.items() if value is not None})


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise InputError(f"{name} is not a text of at most {MAX_TEXT} characters")
    return value


def _date(name: str, value: Any) -> str:
    try:  # YAML reads a day as one
        day = value if isinstance(value, datetime.date) else datetime.date.fromisoformat(value)
        return day.isoformat()[:10]
    except (TypeError, ValueError):
        raise InputError(f"{name} is no day like 2026-11-27") from None


def _link(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_LINK or not value.isprintable() or " " in value:
        raise InputError(f"{name} is no link")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InputError(f"{name} does not begin with https:// or http:// and the name of a site")
    return value


CHECKS: dict[str, Callable[[str, Any], str]] = {"date": _date, "link": _link}
