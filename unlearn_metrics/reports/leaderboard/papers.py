"""Groups of rows as Markdown and LaTeX. Every text of a record is hostile here."""

from __future__ import annotations

import re
import textwrap

from unlearn_metrics.reports.leaderboard import words
from unlearn_metrics.reports.leaderboard.about import About
from unlearn_metrics.reports.leaderboard.answer import answer
from unlearn_metrics.reports.leaderboard.columns import Shown, Value
from unlearn_metrics.reports.leaderboard.rows import Group, Reference, Row, base_label, labels
from unlearn_metrics.reports.leaderboard.words import (
    SEED_HEADINGS,
    Head,
    about,
    beneath,
    cell,
    counts,
    explained,
    flags,
    notes,
    pointed,
    present,
    rank,
    seed_rows,
    shown,
)

MARKDOWN, LATEX = "<!-- unlearn-metrics leaderboard -->", "% unlearn-metrics leaderboard"


WIDE = 3  # columns of values that a table on GitHub has room for beside rank and name


def as_markdown(groups: list[Group], head: Head | None = None) -> str:
    """Tables narrow enough for a README on GitHub: what does not fit stands in a second one."""
    head = head or Head()
    blocks = [MARKDOWN, f"# {_prose(head.title)}", _prose(head.intro)]
    for group in groups:
        columns, numbered = present(group), notes(group)
        variant = f", {_prose(group.variant)}" if group.variant else ""
        blocks.append(f"## {_prose(group.benchmark)}, original {code(shown(base_label(group)))}{variant}")
        found = answer(group)
        blocks.append(f"**{_prose(found.best)}** " + _prose(found.rest))
        blocks += [_prose(text) for text in _about(group)]
        main, rest = columns[:WIDE], columns[WIDE:]
        blocks.append(_markdown_table(group, main, numbered, first=True))
        if rest:
            blocks.append(_markdown_table(group, rest, numbered))
        blocks.append("\n".join(f"- {_prose(name)}: {_prose(what)}" for name, what, _ in explained(group)))
        if numbered:
            blocks.append("  \n".join(f"{_prose(mark)} {_prose(why)}".strip() for mark, why in words.legend(numbered)))
        if group.methods:
            lines = ["| " + " | ".join(SEED_HEADINGS) + " |", "|---|" + "---:|" * (len(SEED_HEADINGS) - 1)]
            lines += [f"| {code(name, in_table=True)} | " + " | ".join(rest) + " |" for name, *rest in seed_rows(group)]
            blocks += [_prose(words.SEEDS), "\n".join(lines)]
        blocks.append("Signature:  \n" + "  \n".join(map(code, group.signatures)))
    blocks += ["## How ranks are made", _prose(words.RULE)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(group: Group, columns: list[Shown], numbered: dict[str, str], first: bool = False) -> str:
    """first: with ranks, the models that rows are seen beside, and what leaderboard.yaml says."""
    named, told = labels(group), first and any(row.about != About() for row in group.rows)
    heads = ["rank"] * first + ["checkpoint", *(pointed(group, c) for c in columns)]
    lines = ["| " + " | ".join(heads + ["submitted by"] * told) + " |"]
    lines.append("|---" * (1 + first) + "|---:" * len(columns) + "|---" * told + "|")

    def values(of: Row | Reference) -> list[str]:
        cells = []
        for column in columns:
            value = of.values[column.value]
            text, small, why = _in_cell(of, column, value)
            cells.append("<br>".join(filter(None, [_marked(text, [why], numbered), *small])))
        return cells

    for row in group.rows:
        name = _marked(code(shown(named[row.name]), in_table=True), [*flags(row), *[row.unranked] * first], numbered)
        cells = [rank(row)] * first + [name, *values(row)] + [_said(row.about)] * told
        lines.append("| " + " | ".join(cells) + " |")
    for reference in group.references:
        cells = [""] * first + [f"*{words.ROLES[reference.role][0]}*", *values(reference)] + [""] * told
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_cell(of: Row | Reference, column: Shown, value: Value) -> tuple[str, list[str], str | None]:
    """(value, what stands in small, why there is no more). Of a model that rows are seen beside: what is known."""
    text, interval = cell(value)
    if isinstance(of, Row):
        return text, beneath(of.values, column), value.why
    return text, [interval] if interval else [], None


def _said(about: About) -> str:
    parts = [about.method, about.submitter, about.date, about.checked_by and f"checked by {about.checked_by}"]
    said = [_prose(part) for part in parts if part]
    if about.link:
        said.append(f"<{about.link}>" if not set(about.link) & set("<>|\\") else "")
    return "<br>".join(filter(None, said))


def _about(group: Group) -> list[str]:
    sentences = [" ".join(about(group)), words.apart(group)]
    sentences.append(words.DEGENERATE if any(row.degenerate for row in group.rows) else None)
    return [sentence for sentence in sentences if sentence]


def _marked(text: str, whys: list[str | None], numbered: dict[str, str]) -> str:
    return text + "".join(f" {_prose(numbered[why])}" for why in whys if why and numbered[why])


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
    """Intervals and other values below a value: beside each other they would not fit on a page."""
    lines = [LATEX, r"% needs \usepackage{booktabs,graphicx}"]
    for group in groups:
        columns, numbered, named = present(group), notes(group), labels(group)
        caption = f"{shown(words.titled(group))}. {answer(group)} " + " ".join(_about(group))
        lines += [r"\begin{table}[tp]", r"\centering", rf"\caption{{{_broken(caption)}}}", RESIZED]
        lines += [r"\begin{tabular}{rl" + "r" * len(columns) + "}", r"\toprule"]
        heads = [[*textwrap.wrap(pointed(group, c), 16), *filter(None, [counts(group, c)])] for c in columns]
        stacks = [r"\shortstack[r]{" + r"\\".join(map(tex, head)) + "}" for head in heads]
        lines += [" & ".join(["rank", "checkpoint", *stacks]) + r" \\", r"\midrule"]
        for row in group.rows:
            lead = [
                tex(rank(row)),
                _superscript(_tex_name(shown(named[row.name])), [row.unranked, *flags(row)], numbered),
            ]
            lines += _tex_lines(row, columns, numbered, lead)
        lines += [r"\midrule"] if group.references else []
        for reference in group.references:
            lines += _tex_lines(reference, columns, numbered, ["", rf"\emph{{{tex(words.ROLES[reference.role][0])}}}"])
        lines += [r"\bottomrule", r"\end{tabular}}", "", r"\smallskip\raggedright\footnotesize"]
        lines += [rf"\textsuperscript{{{_tex_mark(mark)}}} {tex(why)}\\" for mark, why in words.legend(numbered)]
        if group.methods:
            lines += [tex(words.SEEDS), "", r"\begin{tabular}{l" + "r" * (len(SEED_HEADINGS) - 1) + "}", r"\toprule"]
            lines += [" & ".join(map(tex, SEED_HEADINGS)) + r" \\", r"\midrule"]
            lines += [" & ".join([_tex_name(name), *map(tex, rest)]) + r" \\" for name, *rest in seed_rows(group)]
            lines += [r"\bottomrule", r"\end{tabular}", ""]
        signatures = [tex(line).replace(r"\textbar{}", r"\textbar{}\allowbreak{}") for line in group.signatures]
        lines += [r"\texttt{" + line + r"}\par" for line in signatures]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def _tex_lines(of: Row | Reference, columns: list[Shown], numbered: dict[str, str], lead: list[str]) -> list[str]:
    """A row's values, and below them what stands in small."""
    values, smalls = [], []
    for column in columns:
        value = of.values[column.value]
        text, small, why = _in_cell(of, column, value)
        values.append(_superscript(tex(text), [why], numbered))
        smalls.append(small)
    lines = [" & ".join([*lead, *values]) + r" \\"]
    for depth in range(max(map(len, smalls), default=0)):
        small = [rf"\scriptsize {tex(lines_[depth])}" if depth < len(lines_) else "" for lines_ in smalls]
        lines.append(" & ".join(["", "", *small]) + r" \\")
    return [*lines, r"\addlinespace"]


MARKED = {"*": "*", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}", "‖": r"\textbar\textbar{}"}


def _tex_mark(mark: str) -> str:
    return "".join(MARKED[sign] for sign in mark)


def _superscript(text: str, whys: list[str | None], numbered: dict[str, str]) -> str:
    return text + "".join(rf"\textsuperscript{{{_tex_mark(numbered[why])}}}" for why in whys if why and numbered[why])
