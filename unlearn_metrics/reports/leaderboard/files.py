"""Groups of rows -> leaderboard.json, .csv, .md, .tex and index.html. Every text of a record is hostile here."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import TypeAdapter

from unlearn_metrics import __version__
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import signature
from unlearn_metrics.records.folder import prepared
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard import plots
from unlearn_metrics.reports.leaderboard.rows import COLUMNS, SIDES, Group, Row, Value, base_label, labels
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.splits import parse

SCHEMA = "unlearn-metrics/leaderboard/2"
# file -> how it starts: what starts otherwise was not written here, and is not overwritten
FILES = {
    "leaderboard.json": f'{{"schema":"{SCHEMA.split("/")[0]}/leaderboard/',
    "leaderboard.csv": "group,rank,rank_worst,unranked,name,",
    "leaderboard.md": "<!-- unlearn-metrics leaderboard -->",
    "leaderboard.tex": "% unlearn-metrics leaderboard",
    "index.html": "<!doctype html>\n<!-- unlearn-metrics leaderboard -->",
}
# column -> (heading, what it is, arrow: which way is good)
HEADINGS = {
    "residual": ("residual extraction strength", "extraction strength on the forget set", "↓"),
    "retention": (
        "retention",
        "extraction strength on the retain set, or the metric that the control kept, on the evaluation split",
        "↑",
    ),
    "perplexity": ("perplexity", "of the generations on the retain set, under the original model", "↓"),
    "repetition": ("repetition", "share of repeated 4-grams in the generations on the retain set", "↓"),
    "model_utility": ("model utility", "harmonic mean of nine values on three splits (TOFU)", "↑"),
    "forget_quality": ("forget quality", "p-value against the retain-only model (TOFU)", "↑"),
    "privleak": ("privleak", "membership attack relative to the retain-only model (MUSE)", "→ 0"),
}
SIDE_NAMES = {"controlled": "under control", "unlearned": "as published"}
GOOD = {"higher": "↑", "lower": "↓", "zero": "→ 0", "half": "→ ½", "neither": "·"}
MODEL_NAMES = table.COLUMNS | {"unlearned": SIDE_NAMES["unlearned"]}


@dataclass(frozen=True)
class Board:
    """leaderboard.json."""

    schema: str
    version: str
    groups: list[Group]


def write(out: Path, groups: list[Group], say: Callable[[str], None] = lambda message: None) -> list[Path]:
    """Write the five files; each is replaced whole, the page last. InputError if `out` cannot take them."""
    check_out(out)
    makers = dict(zip(FILES, (as_json, as_csv, as_markdown, as_latex, as_html), strict=True))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # nothing is replaced before all are on disk; the page, first in, last
            for name in reversed(FILES):
                say(f"writing {name}")
                data = makers[name](groups).encode()
                stack.enter_context(prepared(out / name, lambda file, data=data: file.write(data)))  # type: ignore[misc]
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None
    return [out / name for name in FILES]


def check_out(out: Path) -> None:
    """InputError if one of the files to write is somebody else's. Called before any work, and again before writing."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder for a leaderboard")
    for name, start in FILES.items():
        path = out / name
        if not path.exists():
            continue
        with path.open("rb") if path.is_file() else contextlib.nullcontext(io.BytesIO()) as file:
            if file.read(len(start)) != start.encode():
                raise InputError(f"{path} was not written by unlearn-metrics leaderboard; choose another --out")


# --- text ------------------------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    r"""A text of a stranger on one line: control and formatting characters as \uXXXX."""
    if text.isprintable():
        return text
    keep = "\u200c\u200d"  # joiners: Persian and emoji need them
    return "".join(
        c if c in keep or (unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029") else f"\\u{ord(c):04x}"
        for c in text
    )


def rank(row: Row) -> str:
    """'1', or '1 (1–3)' where rows share it, or a dash."""
    if row.rank is None:
        return "—"
    return f"{row.rank}" if row.rank == row.rank_worst else f"{row.rank} ({row.rank}–{row.rank_worst})"


def present(group: Group) -> list[str]:
    """The columns that some row of the group has a value in."""
    return [
        column
        for column in COLUMNS
        if any(f.value is not None for row in group.rows for f in row.values[column].values())
    ]


def notes(group: Group) -> dict[str, int]:
    """Reason -> its number under the table: for every dash, every missing interval and every row without a rank."""
    whys = [why for row in group.rows for why in (row.unranked, *_whys(row, present(group)))]
    return {why: place for place, why in enumerate(dict.fromkeys(filter(None, whys)), 1)}


def _whys(row: Row, columns: Sequence[str]) -> Iterator[str | None]:
    if row.alpha is None:
        yield ALPHA_UNKNOWN
    for column in columns:
        for value in row.values[column].values():
            yield value.why


ALPHA_UNKNOWN = "not put under control"


def value_text(value: Value) -> str:
    return "—" if value.value is None else table.cell(value)


def counts(group: Group, column: str) -> str:
    """'n = 60', or 'n = 4 to 60', of a column's documents."""
    found = {f.n for row in group.rows for f in row.values[column].values() if f.value is not None}
    return f"n = {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")


def heading(group: Group, column: str) -> str:
    return f"{HEADINGS[column][0]} {HEADINGS[column][2]} ({counts(group, column)})"


# --- for machines ----------------------------------------------------------------------------------------------------


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
        "alpha": row.alpha,
        "keep": row.record.control.keep,
        "target": row.target,
    }
    unknown = []
    for column in COLUMNS:
        for side in SIDES:
            value = row.values[column][side]
            flat |= {f"{column}_{side}": value.value}
            flat |= {f"{column}_{side}_{part}": getattr(value, part) for part in ("ci_low", "ci_high", "n", "unscored")}
            if value.why:
                unknown.append(f"{column}_{side}: {value.why}")
    flat["unknown"] = "; ".join(unknown)
    flat |= {"imported": row.record.imported is not None, "created": row.record.created}
    flat |= {"signature": row.record.signature, "record_sha256": row.record_sha256, "source": row.source}
    return {key: _inert(value) if isinstance(value, str) else value for key, value in flat.items()}


def _inert(text: str) -> str:
    """What a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    text = shown(text)
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") and text.strip() else text


# --- for READMEs and papers ------------------------------------------------------------------------------------------


def as_markdown(groups: list[Group]) -> str:
    blocks = [FILES["leaderboard.md"], "# Unlearning leaderboard", _prose(RULE)]
    for group in groups:
        columns, numbered, named = present(group), notes(group), labels(group)
        heads = ["rank", "checkpoint", "alpha"]
        heads += [f"{heading(group, c)}, {SIDE_NAMES[side]}" for side in SIDES for c in columns]
        lines = ["| " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * (len(heads) - 2)]

        def marked(text: str, why: str | None, numbered: dict[str, int] = numbered) -> str:
            return f"{text} ({numbered[why]})" if why else text

        for row in group.rows:
            cells = [marked(rank(row), row.unranked), code(shown(named[row.name]), in_table=True)]
            cells.append(marked("—", ALPHA_UNKNOWN) if row.alpha is None else f"{row.alpha:.4g}")
            found = [row.values[column][side] for side in SIDES for column in columns]
            cells += [marked(value_text(value), value.why) for value in found]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append(f"## {_prose(group.benchmark)}, original {code(shown(base_label(group)))}")
        blocks += [_prose(text) for text in about(group)]
        blocks.append("\n".join(lines))
        if numbered:
            blocks.append("  \n".join(f"({place}) {_prose(why)}" for why, place in numbered.items()))
        blocks.append("Signature:  \n" + "  \n".join(map(code, group.signatures)))
    return "\n\n".join(blocks) + "\n"


def code(text: str, in_table: bool = False) -> str:
    """A code span, in which Markdown takes nothing for markup but backticks and, in a table, pipes."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") or not text else ""
    return fence + pad + (text.replace("|", r"\|") if in_table else text) + pad + fence


def _prose(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", shown(text))


TEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\symbol{34}",
    "'": r"\symbol{39}",
    "`": r"\symbol{96}",
    "-": "{-}",
    "[": "{[}",
    "]": "{]}",
    "—": "---",
    "–": "--",
    "…": r"\ldots{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
} | {c: "\\" + c for c in "{}$&%#_"}


def tex(text: str) -> str:
    """Escaped for LaTeX; a character that pdfLaTeX has no glyph for by default is named by its number."""
    return "".join(
        TEX[c] if c in TEX else c if c.isascii() or 0xA1 <= ord(c) <= 0x17F else rf"\texttt{{U+{ord(c):04X}}}"
        for c in shown(text)
    )


def _broken(text: str) -> str:
    """Escaped for LaTeX, where lines may break after / and _, too."""
    return re.sub(r"/|\\_", r"\g<0>\\allowbreak{}", tex(text))


def _tex_name(name: str) -> str:
    """A long one is broken, beside the lines of its row: the table keeps its height and the width for its values."""
    if len(name) <= 24:
        return tex(name)
    return rf"\smash{{\parbox[t]{{11em}}{{\scriptsize\raggedright {_broken(name)}}}}}"


# as wide as the text at most: \width is that of the table
RESIZED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\setlength{\tabcolsep}{4pt}%"


def as_latex(groups: list[Group]) -> str:
    """Under control above as published, intervals below values: beside each other they would not fit on a page."""
    lines = [FILES["leaderboard.tex"], r"% needs \usepackage{booktabs,graphicx}"]
    for group in groups:
        columns, numbered, named = present(group), notes(group), labels(group)
        caption = f"{group.benchmark}, original {shown(base_label(group))}. " + " ".join(about(group))
        caption = _broken(caption)
        lines += [r"\begin{table}[tp]", r"\centering", rf"\caption{{{caption}}}", RESIZED]
        lines += [r"\begin{tabular}{rlrl" + "r" * len(columns) + "}", r"\toprule"]
        heads = [[*textwrap.wrap(" ".join(HEADINGS[c][::2]), 16), f"({counts(group, c)})"] for c in columns]
        stacks = [r"\shortstack[r]{" + r"\\".join(map(tex, head)) + "}" for head in heads]
        lines += [" & ".join(["rank", "checkpoint", r"$\alpha$", "", *stacks]) + r" \\", r"\midrule"]

        def marked(text: str, why: str | None, numbered: dict[str, int] = numbered) -> str:
            return tex(text) + (rf"\textsuperscript{{{numbered[why]}}}" if why else "")

        for row in group.rows:
            lead = [marked(rank(row), row.unranked), _tex_name(shown(named[row.name]))]
            lead.append(marked("—", ALPHA_UNKNOWN) if row.alpha is None else f"{row.alpha:.4g}")
            for side in SIDES:
                found = [row.values[column][side] for column in columns]
                parts = [value_text(value).partition(" ") for value in found]
                values = [marked(text, value.why) for (text, *_), value in zip(parts, found, strict=True)]
                lines.append(" & ".join([*lead, SIDE_NAMES[side], *values]) + r" \\")
                small = [rf"\scriptsize {tex(rest)}" if rest else "" for *_, rest in parts]
                if any(small):
                    lines.append(" & ".join(["", "", "", "", *small]) + r" \\")
                lead = ["", "", ""]
            lines.append(r"\addlinespace")
        lines += [r"\bottomrule", r"\end{tabular}}", "", r"\smallskip\raggedright\footnotesize"]
        lines += [rf"\textsuperscript{{{place}}} {tex(why)}\\" for why, place in numbered.items()]
        signatures = [tex(line).replace(r"\textbar{}", r"\textbar{}\allowbreak{}") for line in group.signatures]
        lines += [r"\texttt{" + line + r"}\par" for line in signatures]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


# --- the page --------------------------------------------------------------------------------------------------------

RULE = (
    "Every unlearned checkpoint was mixed back towards its original, only as far as its retention target needs, and "
    "then scored. Rows are ranked by residual extraction strength under control, with 95 % intervals: a rank is 1 + "
    "the number of rows whose interval lies entirely below. Rows that cannot be distinguished share a rank (beside it: "
    "the places they may have) and are listed by retention, then fluency. Intervals that overlap do not show that two "
    "rows are equal: unlearn-metrics compare makes the paired test on their documents."
)


def about(group: Group) -> list[str]:
    """Sentences above a table: how many rows are ranked, and what sets it apart."""
    rows = f"{len(group.rows)} row" + ("s" if len(group.rows) > 1 else "")
    none = "none" if len(group.rows) > 1 else "not"
    sentences = [f"{rows}, {group.ranked or none} ranked."]
    if group.apart:
        apart = "; ".join(group.apart)
        sentences.append(f"Not comparable with the largest table of {group.benchmark}: {apart}.")
    return sentences


def facets(record: RunRecord) -> tuple[list[str], dict[str, list[tuple[str, list[str], str]]]]:
    """(models, split -> rows of (metric and arrow, a cell for each model, n)): everything that the record holds."""
    models = [model for model in MODEL_NAMES if model in record.scores]
    splits = list(dict.fromkeys(s for m in models for s in record.scores[m] if not parse(s).calibration))
    tables = {split: [record.scores[model].get(split, {}) for model in models] for split in splits}
    tables["all splits"] = [record.composites.get(model, {}) for model in models]
    ways = {split: {name: GOOD[good(name, split)] for name in METRICS} for split in splits}
    ways["all splits"] = {name: GOOD[composite.better] for name, composite in COMPOSITES.items()}
    found: dict[str, list[tuple[str, list[str], str]]] = {}
    for split, names in ways.items():
        for name, arrow in names.items():
            scores = [table.get(name) for table in tables[split]]
            if any(scores):
                n = " / ".join(sorted({f"{score.n:,}" for score in scores if score}))
                found.setdefault(split, []).append((f"{name} {arrow}", [table.cell(score) for score in scores], n))
    return models, found


def as_html(groups: list[Group]) -> str:
    templates = PackageLoader("unlearn_metrics.reports.leaderboard")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "breakable": breakable, "number": table.number}
    environment.filters |= {"base_label": base_label, "findable": findable}

    def part(name: str) -> str:
        return templates.get_source(environment, name)[0]

    style, script = part("leaderboard.css"), part("leaderboard.js")
    without_script = "[hidden]{display:revert!important}.filters{display:none!important}"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)} {_hash(without_script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )

    def drawn(group: Group) -> list[tuple[Markup, str]]:
        named = labels(group)
        names = [shown(named[row.name]) for row in group.rows]
        pairs = [(plots.trade_off(group, names), TRADE_OFF), (plots.calibration(group, names), CALIBRATION)]
        return [(Markup(svg), words) for svg, words in pairs if svg]  # our own SVG; its names are escaped

    return environment.get_template("leaderboard.html").render(
        groups=groups,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        without_script=Markup(without_script),
        start=Markup(FILES["index.html"]),
        drawn=drawn,
        rule=RULE,
        files=[name for name in FILES if name != "index.html"],
        version=__version__,
        fields=signature.FIELDS,
        headings=HEADINGS,
        sides=SIDE_NAMES,
        model_names=MODEL_NAMES,
        series=plots.SERIES,
        alpha_unknown=ALPHA_UNKNOWN,
        **{f.__name__: f for f in (about, counts, facets, labels, notes, present)},
        describe=describe,
    )


def breakable(text: str) -> Markup:
    """Escaped for HTML; a line may break after / and _, and so needs not within a word."""
    return Markup(re.sub("[/_]", r"\g<0><wbr>", str(escape(text))))


def findable(row: Row) -> str:
    """What the page's search looks through."""
    known = [part for c in row.record.checkpoints.values() for part in (c.path, c.revision, c.weights_sha256)]
    return shown(" ".join(filter(None, [row.name, row.source, row.record_sha256, *known]))).lower()


TRADE_OFF = (
    "Down and to the right is better. Numbers and colours are those of the rows below. Hollow: as published; filled: "
    "under control, with 95 % intervals if there are few rows; a line joins the two points of a row. The cross "
    "is the original model, the dashed line the retention target."
)
CALIBRATION = "Every alpha that the calibration tried; the numbered one was chosen. Lines only join measured points."


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
