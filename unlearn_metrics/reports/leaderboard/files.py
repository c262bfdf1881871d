"""Groups of rows -> leaderboard.json, .csv, .md, .tex and index.html."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from unlearn_metrics import __version__
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.records.folder import check_folder, prepared
from unlearn_metrics.reports.leaderboard.columns import COLUMNS
from unlearn_metrics.reports.leaderboard.page import START, as_html
from unlearn_metrics.reports.leaderboard.papers import LATEX, MARKDOWN, as_latex, as_markdown
from unlearn_metrics.reports.leaderboard.rows import Group, Row
from unlearn_metrics.reports.leaderboard.words import Head, shown

SCHEMA = "unlearn-metrics/leaderboard/4"
# file -> how it starts: what starts otherwise was not written here, and is not overwritten
FILES = {
    "leaderboard.json": f'{{"schema":"{SCHEMA.split("/")[0]}/leaderboard/',
    "leaderboard.csv": "group,rank,rank_worst,unranked,name,",
    "leaderboard.md": MARKDOWN,
    "leaderboard.tex": LATEX,
    "index.html": START,
}


@dataclass(frozen=True)
class Board:
    """leaderboard.json."""

    schema: str
    version: str
    groups: list[Group]


def write(
    out: Path, groups: list[Group], say: Callable[[str], None] = lambda message: None, head: Head | None = None
) -> list[Path]:
    """Write the five files; each is replaced whole, the page last. InputError if `out` cannot take them."""
    check_out(out)
    head = head or Head()
    of_page = partial(as_html, head=head)
    made: tuple[Callable[[list[Group]], str], ...] = (
        as_json,
        as_csv,
        partial(as_markdown, head=head),
        as_latex,
        of_page,
    )
    makers = dict(zip(FILES, made, strict=True))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # nothing is replaced before all are on disk; the page, first in, last
            for name in reversed(FILES):
                say(f"writing {name}")
                data = makers[name](groups).encode()
                stack.enter_context(prepared(out / name, lambda file, data=data: file.write(data)))  # type: ignore[misc]
    except OSError as error:
        raise InputError(f"{out} cannot be written to: {first_line(error)}") from None
    return [out / name for name in FILES]


def check_out(out: Path) -> None:
    """InputError if one of the files to write is somebody else's. Called before any work, and again before writing."""
    check_folder(out, FILES)


def as_json(groups: list[Group]) -> str:
    return TypeAdapter(Board).dump_json(Board(SCHEMA, __version__, groups), ensure_ascii=True).decode() + "\n"


def as_csv(groups: list[Group]) -> str:
    """One row a record. Unknown is empty; the column `unknown` says why."""
    text = io.StringIO()
    rows = [_flat(group, row) for group in groups for row in group.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(group: Group, row: Row) -> dict[str, Any]:
    unlearned = row.record.checkpoints.get("unlearned")
    flat: dict[str, Any] = {
        "group": group.id,
        "rank": row.rank,
        "rank_worst": row.rank_worst,
        "unranked": row.unranked,
        "name": row.name,
        "benchmark": group.benchmark,
        "base": group.base,
        "base_weights_sha256": group.base_weights_sha256,
        "unlearned": unlearned and unlearned.path,
        "unlearned_weights_sha256": unlearned and unlearned.weights_sha256,
        "control": row.record.control.method,
        "metric": group.metric,
        "retention": group.retention,
        "common_retention": group.common,
        "degenerate": row.degenerate,
        "contested": " ".join(row.contested),
    }
    unknown = []
    for column in COLUMNS:
        value = row.values[column]
        flat[column] = value.value
        if column != "alpha":
            flat |= {f"{column}_{part}": getattr(value, part) for part in ("ci_low", "ci_high", "n", "unscored")}
        if value.why:
            unknown.append(f"{column}: {value.why}")
    flat["unknown"] = "; ".join(unknown)
    flat |= asdict(row.about)
    flat |= {"imported": row.record.imported is not None, "created": row.record.created}
    flat |= {"signature": row.record.signature, "record_sha256": row.record_sha256, "source": row.source}
    return {key: _inert(value) if isinstance(value, str) else value for key, value in flat.items()}


def _inert(text: str) -> str:
    """What a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    text = shown(text)
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") and text.strip() else text
