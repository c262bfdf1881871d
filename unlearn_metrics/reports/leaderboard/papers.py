"""Groups of rows as Markdown and LaTeX. Every text of a record is hostile here."""

from __future__ import annotations

import re
import textwrap

from unlearn_metrics.reports.leaderboard import words
from unlearn_metrics.reports.leaderboard.columns import COLUMNS
from unlearn_metrics.reports.leaderboard.rows import Group, Row, base_label, labels
from unlearn_metrics.reports.leaderboard.words import (
    SEED_HEADINGS,
    about,
    cell,
    counts,
    flag,
    heading,
    notes,
    present,
    rank,
    seed_rows,
    shown,
)

MARKDOWN, LATEX = "<!-- unlearn-metrics leaderboard -->", "% unlearn-metrics leaderboard"


def as_markdown(groups: list[Group]) -> str:
    blocks = [MARKDOWN, "# Unlearning leaderboard", _prose(words.RULE)]
    for group in groups:
        columns, numbered, named = present(group), notes(group), labels(group)
        heads = ["rank", "checkpoint", *(words.full_heading(group, column) for column in columns)]
        lines = ["| " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * len(columns)]
        for row in group.rows:
            cells = [_marked(rank(row), [row.unranked], numbered)]
            cells.append(_marked(code(shown(named[row.name]), in_table=True), _flags(row), numbered))
            for column in columns:
                value = row.values[column]
                text = " ".join(filter(None, cell(column, value)))
                cells.append(_marked(text, [value.why], numbered))
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append(f"## {_prose(group.benchmark)}, original {code(shown(base_label(group)))}")
        blocks += [_prose(text) for text in _about(group)]
        blocks.append("\n".join(lines))
        if numbered:
            blocks.append("  \n".join(f"({place}) {_prose(why)}" for why, place in numbered.items()))
        if group.methods:
            lines = ["| " + " | ".join(SEED_HEADINGS) + " |", "|---|" + "---:|" * (len(SEED_HEADINGS) - 1)]
            lines += [f"| {code(name, in_table=True)} | " + " | ".join(rest) + " |" for name, *rest in seed_rows(group)]
            blocks += [_prose(words.SEEDS), "\n".join(lines)]
        blocks.append("Signature:  \n" + "  \n".join(map(code, group.signatures)))
    return "\n\n".join(blocks) + "\n"


def _about(group: Group) -> list[str]:
    sentences = [" ".join(about(group)), words.apart(group)]
    sentences.append(words.DEGENERATE if any(row.degenerate for row in group.rows) else None)
    return [sentence for sentence in sentences if sentence]


def _flags(row: Row) -> list[str | None]:
    return [flag(row)] if row.degenerate else []


def _marked(text: str, whys: list[str | None], numbered: dict[str, int]) -> str:
    return text + "".join(f" ({numbered[why]})" for why in whys if why)


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
    """Intervals below values: beside each other they would not fit on a page."""
    lines = [LATEX, r"% needs \usepackage{booktabs,graphicx}"]
    for group in groups:
        columns, numbered, named = present(group), notes(group), labels(group)
        caption = f"{group.benchmark}, original {shown(base_label(group))}. " + " ".join(_about(group))
        lines += [r"\begin{table}[tp]", r"\centering", rf"\caption{{{_broken(caption)}}}", RESIZED]
        lines += [r"\begin{tabular}{rl" + "r" * len(columns) + "}", r"\toprule"]
        lines.append(" & ".join(["", "", *_blocks(columns)]) + r" \\")
        heads = [
            [*textwrap.wrap(f"{heading(group, c)} {COLUMNS[c].way}", 16), *filter(None, [counts(group, c)])]
            for c in columns
        ]
        stacks = [r"\shortstack[r]{" + r"\\".join(map(tex, head)) + "}" for head in heads]
        lines += [" & ".join(["rank", "checkpoint", *stacks]) + r" \\", r"\midrule"]
        for row in group.rows:
            found = [cell(column, row.values[column]) for column in columns]
            values = [
                _superscript(tex(text), [row.values[c].why], numbered)
                for c, (text, _) in zip(columns, found, strict=True)
            ]
            lead = [_superscript(tex(rank(row)), [row.unranked], numbered)]
            lead.append(_superscript(_tex_name(shown(named[row.name])), _flags(row), numbered))
            lines.append(" & ".join([*lead, *values]) + r" \\")
            small = [rf"\scriptsize {tex(rest)}" if rest else "" for _, rest in found]
            lines += [" & ".join(["", "", *small]) + r" \\", r"\addlinespace"]
        lines += [r"\bottomrule", r"\end{tabular}}", "", r"\smallskip\raggedright\footnotesize"]
        lines += [rf"\textsuperscript{{{place}}} {tex(why)}\\" for why, place in numbered.items()]
        if group.methods:
            lines += [tex(words.SEEDS), "", r"\begin{tabular}{l" + "r" * (len(SEED_HEADINGS) - 1) + "}", r"\toprule"]
            lines += [" & ".join(map(tex, SEED_HEADINGS)) + r" \\", r"\midrule"]
            lines += [" & ".join([_tex_name(name), *map(tex, rest)]) + r" \\" for name, *rest in seed_rows(group)]
            lines += [r"\bottomrule", r"\end{tabular}", ""]
        signatures = [tex(line).replace(r"\textbar{}", r"\textbar{}\allowbreak{}") for line in group.signatures]
        lines += [r"\texttt{" + line + r"}\par" for line in signatures]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def _superscript(text: str, whys: list[str | None], numbered: dict[str, int]) -> str:
    return text + "".join(rf"\textsuperscript{{{numbered[why]}}}" for why in whys if why)


def _blocks(columns: list[str]) -> list[str]:
    """One heading above the columns of each block."""
    blocks = [COLUMNS[column].block for column in columns]
    return [rf"\multicolumn{{{blocks.count(block)}}}{{c}}{{{tex(block)}}}" for block in dict.fromkeys(blocks)]
