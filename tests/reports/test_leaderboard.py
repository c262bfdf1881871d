"""The leaderboard: ranks by hand and by what must hold, tables, files against parsers, the page in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from tests.command import Done, process, run
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import RECORD_TYPE, SCHEMA, CheckpointInfo, Control, Imported, RunRecord, Score, TracePoint
from unlearn_metrics.reports.leaderboard import files, plots, rows

SIGNATURE = (
    "demo|n:all|tmpl:none|prompt:1|eos:prob+|ctl:mix.es.keep0.95|dtype:float32|data:1|seed:0|lm-eval:0.4.13|v:0.1.0"
)
NASTY = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</title></style></script><svg onload=window.pwned=1>",
    "]]> <!-- {{ 7*7 }} {% raw %}",
    r"$x$ \input{/etc/passwd} 100% & #1_a ^~ {",
    "=cmd|' /C calc'!A0",
    "  +1+cmd()",
    "@SUM(A1)",
    "-2+3",
    "a | b \\| c\n| d | `e` ``f | [l](javascript:window.pwned=1) ![i](http://evil.example/x.png)",
    "\u202egnp.exe\u2066\x1b[31m\x00",
    "http://evil.example/ user@evil.example",
    "x" * 10_000,
]


def score(
    value: float | None, low: float | None = None, high: float | None = None, n: int = 60, unscored: int = 0
) -> Score:
    return Score(value, low, high, n, unscored)


def record(name: str = "npo", left: Any = (0.5, 0.4, 0.6), kept: Any = (0.96, 0.92, 0.99), **more: Any) -> RunRecord:
    """A record as `score` makes them. left, kept: (value, low, high) under control."""
    perplexity = more.pop("perplexity", 1.5)
    base, signature = more.pop("base", "org/base"), more.pop("signature", SIGNATURE)

    def model(forget: Score, retain: Score, fluent: float) -> dict[str, dict[str, Score]]:
        fluency = {"perplexity": score(fluent, fluent, fluent + 1), "repetition": score(0.125, 0.0, 0.25)}
        return {"forget": {"extraction_strength": forget}, "retain": {"extraction_strength": retain, **fluency}}

    scores = {
        "original": model(score(1.0, 1.0, 1.0), score(1.0, 1.0, 1.0), 1.0),
        "unlearned": model(score(0.01, 0.0, 0.02), score(0.03, 0.01, 0.05), 9000.0),
        "controlled": model(score(*left), score(*kept), perplexity),
    }

    def sha(text: str) -> str:
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()

    made: dict[str, Any] = {
        "schema": SCHEMA,
        "signature": signature,
        "name": name,
        "benchmark": signature.split("|")[0],
        "verdict": f"About {name}"[:10_000],
        "control": Control(
            "mix", 0.25, 0.95, "extraction_strength", 0.95, 0.951, 1.0, 0.96,
            [TracePoint(1.0, 0.03), TracePoint(0.5, 0.4), TracePoint(0.25, 0.951)],
        ),
        "scores": scores,
        "composites": {},
        "checkpoints": {
            "original": CheckpointInfo(base, None, sha(base), sha("c"), sha("t")),
            "unlearned": CheckpointInfo(name, "main", sha(name), sha("c"), sha("t")),
        },
        "data": {"forget": sha("f"), "retain": sha("r")},
        "task_versions": {},
        "prompts": {},
        "settings": {"seed": 0},
        "software": {"lm-eval": "0.4.13"},
        "git": None,
        "imported": None,
        "work": {},
        "wall_seconds": 1.0,
        "created": "2026-11-01T00:00:00+00:00",
    }  # fmt: skip
    return RunRecord(**made | more)


def unlearned(name: str = "raw") -> RunRecord:
    plain = record(name, signature=SIGNATURE.replace("mix.es.keep0.95", "none"), control=Control("none", 1.0))
    return dataclasses.replace(plain, scores={m: s for m, s in plain.scores.items() if m != "controlled"})


def imported(name: str = "log") -> RunRecord:
    signature = "demo|n:all|data:1|src:tofu|v:0.1.0"
    log = record(name, signature=signature, control=Control("none", 1.0), imported=Imported("tofu", name, "0" * 64))
    unknown = CheckpointInfo("base", None, None, None, None)
    scores = {"unlearned": {"forget": {"probability": score(0.5, 0.4, 0.6)}}}
    return dataclasses.replace(log, scores=scores, checkpoints={"original": unknown, "unlearned": unknown})


def found(*records: RunRecord) -> list[rows.Found]:
    return [
        rows.Found(f"runs/{i}/record.json", hashlib.sha256(RECORD_TYPE.dump_json(r)).hexdigest(), r)
        for i, r in enumerate(records)
    ]


def save(folder: Path, *records: RunRecord) -> Path:
    for i, item in enumerate(records):
        (folder / f"run-{i:03}").mkdir(parents=True)
        (folder / f"run-{i:03}" / "record.json").write_bytes(RECORD_TYPE.dump_json(item))
    return folder


def cli(*args: object) -> Done:
    return run("leaderboard", *args)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_by_hand():
    intervals = [(0.1, 0.2), (0.15, 0.3), (0.25, 0.4), (0.2, 0.22), (0.9, 0.95)]
    #  0 beats 2 and 4, and touches 3; 1 overlaps all but 4; 3 beats 2 and 4
    assert rows.ranks(intervals) == [(1, 3), (1, 4), (3, 4), (1, 3), (5, 5)]
    assert rows.ranks([]) == []
    assert rows.ranks([(0, 0), (0, 0)]) == [(1, 2), (1, 2)]


INTERVALS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda p: (p[0] / 12, (p[0] + p[1]) / 12)))


@given(INTERVALS, st.randoms(use_true_random=False))
def test_ranks_always(intervals: list[tuple[float, float]], random: Any):
    places = rows.ranks(intervals)
    for (low, high), (best, worst) in zip(intervals, places, strict=True):  # brute force
        assert best == 1 + sum(h < low for _, h in intervals)
        assert worst == len(intervals) - sum(other > high for other, _ in intervals)
        assert 1 <= best <= worst <= len(intervals)
    assert not intervals or min(places)[0] == 1  # somebody is first
    order = list(range(len(intervals)))
    random.shuffle(order)
    assert rows.ranks([intervals[i] for i in order]) == [places[i] for i in order]
    for (a, one), (b, two) in (
        (x, y) for x in zip(intervals, places, strict=True) for y in zip(intervals, places, strict=True)
    ):
        assert one[0] != two[0] or not a[1] < b[0]  # who shares a rank can't be told apart
    assert rows.ranks([*intervals, (7.0, 8.0)])[:-1] == places  # a far worse row changes nobody's place


def test_rows_that_share_a_rank_are_listed_by_retention_then_fluency():
    tied = [
        record("c", (0.50, 0.4, 0.6), (0.96, 0.9, 1.0), perplexity=2.0),
        record("b", (0.51, 0.4, 0.6), (0.96, 0.9, 1.0), perplexity=1.5),
        record("a", (0.52, 0.4, 0.6), (0.97, 0.9, 1.0), perplexity=3.0),
        record("best", (0.1, 0.05, 0.15), (0.95, 0.9, 1.0), perplexity=4.0),
        record("worst", (0.9, 0.85, 0.95), (0.99, 0.9, 1.0)),
    ]
    (table,) = rows.groups(found(*tied))
    assert [(r.name, r.rank, r.rank_worst) for r in table.rows] == [
        ("best", 1, 1), ("a", 2, 4), ("b", 2, 4), ("c", 2, 4), ("worst", 5, 5),
    ]  # fmt: skip
    (again,) = rows.groups(reversed(found(*tied)))
    assert [dataclasses.replace(r, source="") for r in again.rows] == [
        dataclasses.replace(r, source="") for r in table.rows
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (unlearned(), "scored without control"),
        (imported(), "imported from a log"),
        (record(left=(0.5,)), "residual extraction strength under control: no interval: fewer than 5"),
        (record(left=(None, None, None, 0, 60)), "none of 60 documents could be scored"),
        (record(kept=(0.96,)), "retention under control: no interval"),
        (record(kept=(0.7, 0.6, 0.94)), "misses its retention target: on the evaluation split 0.700 [0.600, 0.940]"),
        (record(control=Control("mix", 0.5), signature=SIGNATURE.replace("keep0.95", "alpha0.5")), "at a given alpha"),
        (record(checkpoints={}), "lacks the weight hash"),
    ],
)  # fmt: skip
def test_not_ranked_and_why(bad: RunRecord, why: str):
    (row,) = (r for group in rows.groups(found(bad)) for r in group.rows)
    assert (row.rank, row.rank_worst) == (None, None)
    assert row.unranked is not None
    assert why in row.unranked
    for make in (files.as_markdown, files.as_html):
        assert why.split(": ")[-1].split(" [")[0] in make(rows.groups(found(bad)))


def test_retention_is_what_the_control_kept():
    """The evaluation split of another task: the original has 0.6, of which 0.95 is 0.57."""
    made = record(kept=(0.2, 0.1, 0.3), signature=SIGNATURE.replace("es.keep", "mmlu.acc.keep"))
    scores = {
        model: splits | {"mmlu": {"mmlu.acc": score(*acc)}}
        for (model, splits), acc in zip(
            made.scores.items(), [(0.6, 0.5, 0.7), (0.3, 0.2, 0.4), (0.55, 0.5, 0.6)], strict=True
        )
    }
    made = dataclasses.replace(
        made,
        scores=scores,
        ability={"mmlu.acc": "higher"},
        control=dataclasses.replace(made.control, metric="mmlu.acc"),
    )
    (table,) = rows.groups(found(made))
    (row,) = table.rows
    assert (row.rank, row.target) == (1, pytest.approx(0.57))
    assert [row.values["retention"][side].value for side in rows.SIDES] == [0.55, 0.3]
    drawn = files.as_html([table])
    assert "the metric that the control kept" in drawn


def test_target_just_reached_is_ranked():
    (table,) = rows.groups(found(record(kept=(0.9, 0.85, 0.95))))
    assert table.rows[0].rank == 1


# --- tables ----------------------------------------------------------------------------------------------------------


def test_only_what_is_comparable_shares_a_table():
    tables = rows.groups(
        found(
            record("a"),
            record("b", signature=SIGNATURE.replace("seed:0", "seed:1").replace("v:0.1.0", "v:0.1.7")),
            record("c", signature=SIGNATURE.replace("float32", "bfloat16")),
            record("d", base="org/other"),
            record("e", signature=SIGNATURE.replace("demo", "muse_news")),
        )
    )
    assert [[row.name for row in table.rows] for table in tables] == [["a", "b"], ["c"], ["d"], ["e"]] or [
        [row.name for row in table.rows] for table in tables
    ] == [["a", "b"], ["d"], ["c"], ["e"]]
    by_name = {table.rows[0].name: table for table in tables}
    assert by_name["a"].apart == by_name["e"].apart == []
    assert len(by_name["a"].signatures) == 2
    assert by_name["c"].apart == ["dtype is bfloat16 here, float32 there"]
    assert [line.split(" (")[0] for line in by_name["d"].apart] == ["the original model is org/other"]
    page, text = files.as_html(tables), files.as_markdown(tables)
    for table in tables:
        for line in table.signatures:
            assert line in page
            assert line in text
    assert "Not comparable with the largest table of demo: dtype is bfloat16 here, float32 there." in page


def test_of_one_run_the_newest_record_counts():
    old, new = (
        record(created="2026-01-01T00:00:00+00:00"),
        record(created="2026-02-01T00:00:00+02:00", wall_seconds=2.0),
    )
    odd = record(created="yesterday")
    other = record(left=(0.4, 0.3, 0.5), control=dataclasses.replace(old.control, alpha=0.5))  # another control
    (table,) = rows.groups(found(old, new, odd, other))
    assert len(table.rows) == 2
    (kept,) = (row for row in table.rows if row.alpha == 0.25)
    assert kept.record == new
    assert kept.replaces == ["runs/0/record.json", "runs/2/record.json"]
    assert "newest of 3 records of this run" in files.as_html([table])


def test_unknown_is_never_zero():
    tables = rows.groups(found(record("a"), unlearned("raw"), imported("log")))
    raw = next(row for table in tables for row in table.rows if row.name == "raw")
    for column in rows.COLUMNS:
        figure = raw.values[column]["controlled"]
        assert (figure.value, figure.ci_low, figure.ci_high) == (None, None, None)
        assert figure.why
    (flat,) = (line for line in csv.DictReader(io.StringIO(files.as_csv(tables))) if line["name"] == "raw")
    assert flat["residual_controlled"] == flat["alpha"] == flat["rank"] == ""
    assert "residual_controlled: not put under control" in flat["unknown"]
    loaded = TypeAdapter(files.Board).validate_json(files.as_json(tables))
    assert loaded.groups == tables
    line = next(line for line in files.as_markdown(tables).splitlines() if "`raw`" in line)
    assert line.startswith("| — (1) | `raw` | — (2) | — (2) | — (2) |")


def test_plot_shows_the_measured_points():
    """The markers in the SVG lie at retention and residual extraction strength, on the scale of the axes' ticks."""
    (table,) = rows.groups(
        found(record("a", (0.5, 0.4, 0.6), (0.96, 0.92, 0.99)), record("b", (0.2, 0.1, 0.3), (0.9, 0.8, 1)))
    )
    svg = ET.fromstring(plots.trade_off(table, [row.name for row in table.rows]) or "")
    places = {  # data-row -> [(x, y)] of its markers; the last is on top: under control
        part: [(float(u.get("x", 0)), float(u.get("y", 0))) for u in svg.iter("use") if u.get("data-row") == part]
        for part in ("0", "1")
    }
    (x0, y0), (x1, y1) = places["0"]
    (_, _), (x2, y2) = places["1"]
    assert table.rows[0].name == "b"
    per_x, per_y = (x1 - x0) / (0.9 - 0.03), (y1 - y0) / (0.2 - 0.01)
    assert (x2 - x1, y2 - y1) == (pytest.approx(per_x * 0.06, abs=0.01), pytest.approx(per_y * 0.3, abs=0.01))
    assert per_x > 0 > per_y  # SVG counts downwards
    assert {part.findtext("title") for part in svg.iter() if part.get("data-row") == "0"} == {"1: b"}
    assert not [node for node in svg.iter() if node.get("style") or node.tag in ("style", "script")]


@pytest.mark.parametrize("plot", [plots.trade_off, plots.calibration])
def test_many_rows_are_drawn_as_each_would_be_alone(monkeypatch, plot):
    """Rows drawn together: every part of a row is what it is drawn by itself."""
    some = [record(f"m{i}", (x := 0.1 + i / 100, x - 0.05, x + 0.05), (0.9 + i / 1000, 0.85, 1)) for i in range(60)]
    some[7] = dataclasses.replace(some[7], scores={m: s for m, s in some[7].scores.items() if m != "unlearned"})
    (table,) = rows.groups(found(*some))
    names = [row.name for row in table.rows]

    def parts() -> list[tuple[tuple[str, str], ...]]:
        svg = ET.fromstring(plot(table, names) or "")
        sizes = {  # of a marker, half of what it is across
            f"#{path.get('id')}": f"{max(map(float, re.findall(r'[-.0-9]+', path.get('d') or '0'))):.4f}"
            for path in svg.iter("path")
        }
        drawn = [node for node in svg.iter() if node.get("data-row") and node.tag != "g"]
        return sorted(
            tuple(sorted((k, sizes.get(v, v)) for k, v in node.items() if k != "clip-path")) for node in drawn
        )

    together = parts()
    monkeypatch.setattr(plots, "_together", lambda group: [[place] for place in range(len(group.rows))])
    assert together == parts()
    assert {dict(part)["data-row"] for part in together} >= {str(i) for i in range(60)}


def test_ids_of_a_page_are_unique():
    page = files.as_html(rows.groups(found(record("a"), record("b"), record("c", base="x"), unlearned(), imported())))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    used = re.findall(r'(?:href="#|url\(#|aria-controls="|aria-labelledby=")([^")]+)', page)
    assert set(used) <= set(ids)


# --- hostile text ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=60) | st.sampled_from(NASTY))
def test_text_in_markdown(text: str):
    """A real Markdown parser finds one cell with one code span, and in it the text."""
    table = f"| a | b |\n|---|---|\n| {files.code(files.shown(text), in_table=True)} | end |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [t for i, t in enumerate(tokens) if i and tokens[i - 1].type == "td_open"]
    assert [c.type for c in cells] == ["inline", "inline"]
    (span,) = cells[0].children or []
    assert span.type == "code_inline"
    assert span.content.split() == files.shown(text).split()
    assert cells[1].content == "end"


TEX_TOKEN = re.compile(
    r"(\\textbackslash\{\}|\\textasciicircum\{\}|\\textasciitilde\{\}|\\textbar\{\}|\\textless\{\}|\\textgreater\{\}"
    r"|\\symbol\{\d+\}|\\ldots\{\}|\\texttt\{U\+[0-9A-F]{4,6}\}|\$\\(up|down|right)arrow\$|\\[{}$&%#_]|\{[-\[\]]\}"
    r"|[\w .,:;/()+=*?!@-]|[\u00a1-\u017f])*"
)


@given(st.text(max_size=60) | st.sampled_from(NASTY))
def test_text_in_latex(text: str):
    """Nothing but plain characters and the escapes that we make; none is a command of the text's own."""
    assert TEX_TOKEN.fullmatch(files.tex(text))


@given(st.text(max_size=60) | st.sampled_from(NASTY))
def test_text_in_csv(text: str):
    table = rows.groups(found(record(text)))
    (line,) = csv.DictReader(io.StringIO(files.as_csv(table)))
    assert not re.match(r"\s*[=+\-@\t\r]", line["name"])
    assert line["name"].removeprefix("'") == files.shown(text).removeprefix("'")
    assert len(files.as_csv(table).splitlines()) == 2


def test_nasty_names_everywhere():
    tables = rows.groups(found(*(record(name, base=name, data={name: name}) for name in NASTY)))
    page = files.as_html(tables)
    assert page.count("<script") == 1
    links = ('src="http', 'href="http', 'href="javascript')
    for forbidden in ("<img", "onload=window", "<svg onload", "\x1b", "\x00", "\u202e", *links, "49 "):
        assert forbidden not in page.replace("onload=window.pwned=1&gt;", ""), forbidden
    for text in (files.as_markdown(tables), files.as_latex(tables)):
        assert max(map(len, text.splitlines())) < 3000
        assert "\u202e" not in text
    assert "x" * 10_000 in page  # whole in the details


def test_checkpoints_are_called_by_the_end_of_their_path():
    """As much as tells a table's rows apart; the files for machines have it whole. A hub id is no path."""
    disk = ["/home/a/one/ga/checkpoint-78", "/home/a/two/ga/checkpoint-78", "../npo/", "~/x"]
    (table,) = rows.groups(found(*(record(name, base="/home/a/models/original") for name in [*disk, "org/model"])))
    called = rows.labels(table)
    assert [called[name] for name in disk] == ["one/ga/checkpoint-78", "two/ga/checkpoint-78", "../npo", "~/x"]
    assert called["org/model"] == "org/model"
    assert rows.base_label(table).startswith("models/original (weights ")
    for text in (files.as_markdown([table]), files.as_latex([table])):
        assert "/home" not in text
    for text in (files.as_json([table]), files.as_csv([table]), files.as_html([table])):
        assert disk[0] in text
    assert (
        max(map(len, rows.labels(rows.groups(found(record("/" + "x" * 200), record("/" + "y/" * 200)))[0]).values()))
        == 80
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_and_fits_on_the_page(tmp_path):
    wide = [record(f"/disk/of/somebody/{name}/checkpoint-78", base="/disk/of/somebody/original") for name in "ab"]
    for records, fits in ((wide, True), ([record(name, base=name, data={name: name}) for name in NASTY], False)):
        body = files.as_latex(rows.groups(found(*records)))
        head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}"
        (tmp_path / "t.tex").write_text(head + "\n" + body + r"\end{document}")
        command = ["pdflatex", "-interaction=nonstopmode", "-no-shell-escape", "t.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        assert not fits or "Overfull" not in done.stdout


# --- the command -----------------------------------------------------------------------------------------------------


def test_two_hundred_records(tmp_path):
    records = [record(f"m{i}", (i / 200, i / 200, i / 200 + 0.1), base=f"base {i % 7}") for i in range(200)]
    runs = save(tmp_path / "deep" / "er", *records).parent
    done = process("leaderboard", runs, "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "200 rows in 7 tables, 200 ranked" in done.stdout
    assert sorted(p.name for p in (tmp_path / "site").iterdir()) == sorted(files.FILES)
    lines = list(csv.DictReader((tmp_path / "site" / "leaderboard.csv").open(encoding="utf-8", newline="")))
    by_name = {r.name: r for r in records}
    assert len(lines) == 200
    for line in lines:
        left = by_name[line["name"]].scores["controlled"]["forget"]["extraction_strength"]
        assert (float(line["residual_controlled"]), float(line["residual_controlled_ci_high"])) == (
            left.value,
            left.ci_high,
        )
    board = json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    assert board["schema"] == files.SCHEMA
    assert sum(len(group["rows"]) for group in board["groups"]) == 200


def test_bad_records_lose_nothing_else(tmp_path):
    runs = save(tmp_path / "runs", record("good"), record("other"))
    (runs / "run-001" / "record.json").write_text("{")
    (runs / "pipe").mkdir()
    os.mkfifo(runs / "pipe" / "record.json")
    lying = record("lying", control=dataclasses.replace(record().control, keep=0.5))
    save(tmp_path / "lying", lying)
    strict = cli(runs, "--out", tmp_path / "site", "--strict")
    assert strict.returncode == 2
    assert not (tmp_path / "site").exists()
    done = cli(runs, tmp_path / "lying", tmp_path / "nowhere", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    left_out = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 4
    for reason in ("not JSON", "is no file", "disagree on the share", "does not exist"):
        assert sum(reason in line for line in left_out) == 1
    assert "1 row in 1 table, 1 ranked" in done.stdout
    none = cli(tmp_path / "lying", "--out", tmp_path / "site2")
    assert none.returncode == 2
    assert "error: there is no record" in none.stderr
    assert "Traceback" not in done.stderr + none.stderr + strict.stderr


def test_others_files_stay(tmp_path, monkeypatch):
    tables = rows.groups(found(record()))
    out = tmp_path / "site"
    out.mkdir()
    (out / "CNAME").write_text("example.org")
    files.write(out, tables)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    files.write(out, tables)  # again, over its own
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    monkeypatch.setattr(files, "as_json", lambda groups: 1 / 0)  # a crash on the way: nothing changed, nothing left
    with pytest.raises(ZeroDivisionError):
        files.write(out, rows.groups(found(record("new"))))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    (out / "index.html").write_text("<!doctype html><title>My thesis</title>")
    with pytest.raises(InputError, match=r"index.html was not written by unlearn-metrics leaderboard"):
        files.write(out, tables)
    assert "My thesis" in (out / "index.html").read_text()


# --- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """One table of five rows and a hostile one, others beside it."""
    kept = [("alpha", 0.1, 0.98), ("beta", 0.3, 0.97), ("gamma", 0.5, 0.99), ("delta", 0.7, 0.96)]
    records = [record(name, (left, left - 0.05, left + 0.05), (r, 0.9, 1.0)) for name, left, r in kept]
    records += [record("no interval", (0.2,), (0.95,)), unlearned(), imported(), record("m", base="org/other")]
    records += [record(name, base=name, verdict=name, signature=SIGNATURE.replace("demo", "nasty")) for name in NASTY]
    out = tmp_path_factory.mktemp("site")
    files.write(out, rows.groups(found(*records)))
    return out


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(chrome, site) -> Iterator[Any]:
    """The page, freshly loaded; whatever a test did, it logged no error, asked for nothing else and ran no script."""
    chrome.get_log("performance")
    chrome.get((site / "index.html").as_uri())
    yield chrome
    assert chrome.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if url.split("#")[0] != (site / "index.html").as_uri()} <= {"data:,"}
    assert asked
    assert chrome.execute_script("return [window.pwned, document.scripts.length, document.images.length]") == [
        None,
        1,
        0,
    ]


def names(page: Any) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('section')[0].querySelectorAll('tbody[data-row]')]"
        ".filter(b => b.offsetParent).map(b => b.querySelector('.toggle bdi').textContent)"
    )


def sorts(page: Any) -> list[str | None]:
    script = (
        "return [...document.querySelectorAll('section:first-of-type thead button')].map(b => b.closest('th').ariaSort)"
    )
    return page.execute_script(script)


@pytest.mark.slow
def test_sorting(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    ranked = ["alpha", "beta", "gamma", "delta", "no interval"]
    assert names(page) == ranked
    buttons = page.find_elements(By.CSS_SELECTOR, "section:first-of-type thead button")
    assert len(buttons) == 11  # rank, checkpoint, alpha, four columns, under control and as published
    by_retention = ["no interval", "delta", "beta", "alpha", "gamma"]
    buttons[5].click()
    assert names(page) == by_retention
    assert sorts(page)[5] == "ascending"
    assert sum(way is not None for way in sorts(page)) == 1
    buttons[5].send_keys(Keys.ENTER)  # by keyboard
    assert names(page) == by_retention[::-1]
    assert sorts(page)[5] == "descending"
    buttons[1].send_keys(Keys.SPACE)
    assert names(page) == sorted(ranked)
    buttons[0].click()
    assert names(page) == ranked
    for button in buttons:  # every column sorts
        button.click()
        assert sorted(names(page)) == sorted(ranked)


@pytest.mark.slow
def test_details_by_click_keyboard_and_link(page, site):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    toggle = page.find_element(By.CSS_SELECTOR, ".toggle")
    detail = page.find_element(By.ID, toggle.get_attribute("aria-controls"))
    assert (detail.is_displayed(), toggle.get_attribute("aria-expanded")) == (False, "false")
    toggle.send_keys(Keys.ENTER)
    assert (detail.is_displayed(), toggle.get_attribute("aria-expanded")) == (True, "true")
    for text in ("About alpha", "0.951 ← chosen", SIGNATURE, hashlib.sha256(b"alpha").hexdigest(), "lm-eval 0.4.13"):
        assert text in detail.text
    toggle.click()
    assert not detail.is_displayed()
    row = page.find_elements(By.CSS_SELECTOR, "tbody[data-row]")[2].get_attribute("id")
    page.get(f"{(site / 'index.html').as_uri()}#{row}")
    assert page.find_element(By.ID, f"{row}-d").is_displayed()


@pytest.mark.slow
def test_filters(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    def shown() -> int:
        return len([e for e in page.find_elements(By.CSS_SELECTOR, "tbody[data-row]") if e.is_displayed()])

    total = 8 + len(NASTY)
    count = page.find_element(By.ID, "count")
    assert (shown(), count.text) == (total, f"{total} rows")
    benchmark, base = (Select(page.find_element(By.ID, name)) for name in ("benchmark", "base"))
    benchmark.select_by_visible_text("demo")
    assert (shown(), count.text) == (8, f"8 of {total} rows")
    base.select_by_visible_text(next(o.text for o in base.options if o.text.startswith("org/other")))
    assert shown() == 1
    base.select_by_index(0)
    search = page.find_element(By.ID, "search")
    search.send_keys("GAM")
    assert shown() == 1
    assert names(page) == ["gamma"]
    search.send_keys(" nothing of the kind")
    assert shown() == 0
    assert page.find_element(By.ID, "nothing").is_displayed()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_fits_and_can_be_read(page, width, scheme):
    """No sideways scrolling of the page, and text with a contrast of 4.5 (WCAG 2 AA) on what it stands on."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.execute_script("document.querySelectorAll('.toggle').forEach(b => b.click())")
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        contrasts = page.execute_script(CONTRAST)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) > 50
    assert min(contrasts)[0] >= 4.5, min(contrasts)


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d");
const light = (colour) => {
  canvas.fillStyle = colour;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(canvas.fillStyle.slice(i, i + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/^rgba.*, 0\\)$/.test(colour)) return colour;
  }
  return "white";
};
const texts = "h1, h2 span, p, th, td, small, dt, dd, .chip, button, a, svg text, label, li";
return [...document.querySelectorAll(texts)]
  .filter((e) => e.getClientRects().length && e.textContent.trim()).slice(0, 4000).map((e) => {
    const style = getComputedStyle(e);
    const inside = e.closest("svg [data-row]");
    const under = inside ? null : ground(e);
    if (under === null) return [21, "number in a point"];
    const [a, b] = [e.closest("svg") ? style.fill : style.color, under].map(light);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.tagName} ${e.textContent.slice(0, 40)}`];
  });
"""
