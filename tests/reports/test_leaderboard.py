"""The leaderboard: ranks by hand and by what must hold, tables, files against parsers, the page in a real browser."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from tests.command import Done, process, run
from tests.paths import path as path_of
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import (
    RECORD_TYPE,
    SCHEMA,
    CheckpointInfo,
    Control,
    Estimate,
    Headline,
    Imported,
    MeasuredPath,
    Residual,
    RunRecord,
    Score,
    TracePoint,
)
from unlearn_metrics.reports.leaderboard import columns, files, papers, plots, reading, rows, words
from unlearn_metrics.scores import curve, equal_retention

SIGNATURE = (
    "demo|n:all|tmpl:none|prompt:1|eos:prob+|ctl:mix.es.keep0.95|dtype:float32|data:1|seed:0|lm-eval:0.4.13|v:0.1.0"
)
NASTY = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</title></style></script><svg onload=window.pwned=1>",
    "]]> <!-- {{ 7919*7907 }} {% raw %}",
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


SPREAD = [0.05, -0.05, 0.03, -0.03, 0.01, -0.01, 0.04, -0.04, 0.02, -0.02]  # of clusters around their mean


@lru_cache
def measured(left: tuple[float, ...], own: float, **more: float) -> tuple[MeasuredPath, dict[str, Residual]]:
    of = path_of(left, own, **more)
    return of, equal_retention.residuals(of, 0.95, 0)


def record(name: str = "npo", left: float | Sequence[float] = 0.5, own: float = 0.9, **more: Any) -> RunRecord:
    """A record as `score` makes them. left: the residual at 95 % retention, the mean of ten clusters or of each."""
    perplexity = more.pop("perplexity", 1.5)
    clusters = tuple(left) if isinstance(left, Sequence) else tuple(left + part for part in SPREAD)
    along = {key: more.pop(key) for key in ("retain_only", "half") if key in more}
    path, residual = measured(clusters, own, **along)
    base, signature = more.pop("base", "org/base"), more.pop("signature", SIGNATURE)

    def model(forget: Score, retain: Score, fluent: float) -> dict[str, dict[str, Score]]:
        fluency = {"perplexity": score(fluent, fluent, fluent + 1), "repetition": score(0.125, 0.0, 0.25)}
        return {"forget": {"extraction_strength": forget}, "retain": {"extraction_strength": retain, **fluency}}

    floor = along.get("retain_only")
    scores = {} if floor is None else {"retain_only": model(score(floor, 0.0, 0.3), score(0.8, 0.7, 0.9), 2.0)}
    scores |= {
        "original": model(score(1.0, 1.0, 1.0), score(1.0, 1.0, 1.0), 1.0),
        "unlearned": model(score(0.01, 0.0, 0.02), score(0.03, 0.01, 0.05), 9000.0),
        "controlled": model(score(0.5, 0.4, 0.6), score(0.96, 0.92, 0.99), perplexity),
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
        "checkpoints": ({} if floor is None else {"retain_only": CheckpointInfo("kept", None, sha("k"), None, None)})
        | {
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
        "path": path,
        "residual": residual,
    }  # fmt: skip
    return RunRecord(**made | more)


def older(name: str = "older", **more: Any) -> RunRecord:
    """A record without a path."""
    return record(name, path=None, residual={}, **more)


def unlearned(name: str = "raw") -> RunRecord:
    plain = older(name, signature=SIGNATURE.replace("mix.es.keep0.95", "none"), control=Control("none", 1.0))
    return dataclasses.replace(plain, scores={m: s for m, s in plain.scores.items() if m != "controlled"})


def imported(name: str = "log") -> RunRecord:
    signature = "demo|n:all|data:1|src:tofu|v:0.1.0"
    log = older(name, signature=signature, control=Control("none", 1.0), imported=Imported("tofu", name, "0" * 64))
    unknown = CheckpointInfo("base", None, None, None, None)
    scores = {"unlearned": {"forget": {"probability": score(0.5, 0.4, 0.6)}}}
    return dataclasses.replace(log, scores=scores, checkpoints={"original": unknown, "unlearned": unknown})


def found(*records: RunRecord) -> list[reading.Found]:
    return [
        reading.Found(f"runs/{i}/record.json", hashlib.sha256(RECORD_TYPE.dump_json(r)).hexdigest(), r)
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


def places(*records: RunRecord) -> list[tuple[str, int | None, int | None]]:
    (table,) = rows.groups(found(*records))
    return [(row.name, row.rank, row.rank_worst) for row in table.rows]


def test_rows_that_cannot_be_told_apart_share_a_rank_and_are_listed_by_residual():
    same = [record("b", 0.5), record("a", 0.5), record("nearly", [0.5 - part for part in SPREAD])]
    listed = places(*same, record("best", 0.2), record("worst", 0.8))
    shared = [("a", 2, 4), ("b", 2, 4), ("nearly", 2, 4)]
    assert sorted(listed) == sorted([("best", 1, 1), *shared, ("worst", 5, 5)])
    assert [listed[0][0], listed[-1][0]] == ["best", "worst"]
    assert places(*same[::-1], record("worst", 0.8), record("best", 0.2)) == listed


def test_ten_rows_close_together():
    """Rows .05 apart whose clusters vary far more, but together: pairs of them tell what their intervals do not."""
    rng = np.random.default_rng(3)
    shared = rng.uniform(-0.2, 0.2, 10)
    lefts = [0.25 + 0.05 * i + shared + rng.normal(0, 0.01, 10) for i in range(10)]
    (table,) = rows.groups(found(*(record(f"m{i}", left.tolist()) for i, left in enumerate(lefts))))
    ranks = [row.rank or 0 for row in table.rows]
    assert [row.name for row in table.rows] == [f"m{i}" for i in range(10)]
    assert np.mean(ranks) == pytest.approx(5.5, abs=0.5)
    assert all(
        best <= i <= (row.rank_worst or 0) for i, (best, row) in enumerate(zip(ranks, table.rows, strict=True), 1)
    )
    values = [row.values["residual"] for row in table.rows]
    by_intervals = [1 + sum((v.ci_high or 0) < (mine.ci_low or 0) for v in values) for mine in values]
    assert np.mean(by_intervals) < 3.5


@pytest.mark.parametrize("more", [0.0, 0.01, 0.03, 0.1])
def test_two_rows_are_ranked_as_their_paired_difference_says(more: float):
    """The same function gives a comparison of two runs its interval."""
    a, b = ([0.4 + more * of + part * way for part, way in zip(SPREAD, [1, -1] * 5, strict=True)] for of in (0, 1))
    b[0] += 0.02
    one, two = record("a", a), record("b", b)
    assert one.path
    assert two.path
    found, clusters = equal_retention.paired([one.path, two.path], "extraction_strength")
    difference = curve.difference(found[1, 0] - found[0, 0], clusters)
    assert difference.low is not None
    apart = places(one, two) == [("a", 1, 1), ("b", 2, 2)]
    assert apart == (difference.low > 0)


def test_the_residual_is_that_of_the_record():
    made = record(left=[0.1, 0.2, 0.3, 0.4, 0.5, 0.9], own=0.96, retain_only=0.2)
    (table,) = rows.groups(found(made))
    (row,) = table.rows
    said = made.residual["extraction_strength"]
    for column, estimate in [("residual", said.value), ("average", said.average), ("above_floor", said.above_floor)]:
        value = row.values[column]
        assert estimate is not None
        assert (value.value, value.ci_low, value.ci_high) == (estimate.value, estimate.low, estimate.high)
    assert row.values["residual"].value == pytest.approx(0.4)
    assert row.values["above_floor"].value == pytest.approx((0.4 - 0.2) / (1 - 0.2))
    assert row.values["alpha"].value == pytest.approx(1.25)  # beyond the unlearned model
    assert row.values["own_retention"].value == pytest.approx(0.96)
    for text in (files.as_markdown([table]), files.as_latex([table]), files.as_html([table])):
        assert "extrapolated" in text.split("0.400")[1]


OTHER_VALUE = dataclasses.replace(record().residual["extraction_strength"], value=Estimate(0.1, 0.0, 0.2))
OUTSIDE = dataclasses.replace(record().residual["extraction_strength"], value=Estimate(0.5, 0.6, 0.7))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (unlearned(), "scored without control"),
        (imported(), "imported from a log"),
        (older(), "kept no path of the control"),
        (record(left=[0.4, 0.5, 0.6, 0.4, 0.5]), "5 clusters of documents are too few"),
        (record(left=[0.4, 0.5]), "2 clusters of documents are too few"),
        (record(own=0.99), "retention does not fall so far"),
        (record(half=0.3), "retrained or distilled?"),
        (record(headline=Headline(["probability"])), "probability was not measured along the path"),
        (record(residual={"extraction_strength": OTHER_VALUE}), "says 0.100, its path 0.500"),
        (record(residual={"extraction_strength": OUTSIDE}), "outside its own interval"),
        (older(control=Control("mix", 0.5), signature=SIGNATURE.replace("keep0.95", "alpha0.5")), "at a given alpha"),
        (record(checkpoints={}), "lacks the weight hash"),
    ],
)  # fmt: skip
def test_not_ranked_and_why(bad: RunRecord, why: str):
    (row,) = (r for group in rows.groups(found(bad)) for r in group.rows)
    assert (row.rank, row.rank_worst) == (None, None)
    assert row.unranked is not None
    assert why in row.unranked
    for make in (files.as_markdown, files.as_html):
        assert why in make(rows.groups(found(bad)))


def test_other_clusters_are_not_ranked_with_most_rows():
    (table,) = rows.groups(found(record("a"), record("b"), record("c", [0.1] * 7)))
    assert [(row.name, row.rank) for row in table.rows] == [("a", 1), ("b", 1), ("c", None)]
    assert "other clusters" in (table.rows[2].unranked or "")


def test_a_model_that_is_on_no_path_is_listed_apart_as_published():
    (table,) = rows.groups(found(record("last", 0.9), record("distilled", 0.1, half=0.3), older("z")))
    assert [row.name for row in table.rows] == ["last", "distilled", "z"]
    apart = table.rows[1]
    assert apart.values["residual"].value is None  # along such a path it says nothing
    assert apart.values["residual_unlearned"].value == 0.01
    assert apart.values["own_retention"].value == pytest.approx(0.9)
    assert "listed apart" in files.as_markdown([table])


def test_where_all_rows_retain_the_same():
    """One keeps 97 % by itself: without extrapolation all are compared there. Of both, 1 falls to the residual at 95 %
    in a straight line."""
    (table,) = rows.groups(found(record("a", 0.5), record("b", 0.3, own=0.97), record("c", 0.4, own=0.96)))
    assert (table.retention, table.common) == (0.95, 0.97)
    values = {row.name: row.values["common"].value for row in table.rows}
    assert values == {name: pytest.approx(1 - 0.6 * (1 - at)) for name, at in [("a", 0.5), ("b", 0.3), ("c", 0.4)]}
    by_name = {row.name: row for row in table.rows}
    assert by_name["b"].rank is None
    assert [by_name[name].rank for name in "ca"] == [1, 2]
    for text in (files.as_markdown([table]), files.as_html([table])):
        assert "residual at 97 %, none extrapolated" in text.replace("\u00a0", " ")
    assert rows.groups(found(record("a")))[0].common is None


def crossing(name: str, at_95: float, at_90: float) -> RunRecord:
    """A residual that falls in two straight lines. The path of `record` is at 95 % at alpha 1/2, at 90 % at alpha 1."""
    made = record(name)
    assert made.path
    sums = made.path.forget["extraction_strength"]
    total = [[10.0] * 10, *([10 * (at + part) for part in SPREAD] for at in (at_95, at_90, at_90))]
    changed = dataclasses.replace(made.path, forget={"extraction_strength": dataclasses.replace(sums, total=total)})
    return dataclasses.replace(made, path=changed, residual=equal_retention.residuals(changed, 0.95, 0))


def test_curves_that_cross_are_named():
    """0.3 throughout, and from 0.7 at 95 % to 0.1 at 90 %: equal at 90 + 5 / 3 %."""
    (table,) = rows.groups(found(crossing("flat", 0.3, 0.3), crossing("steep", 0.7, 0.1), record("beside", 0.9)))
    (one,) = table.crossings
    assert one.retentions == [pytest.approx(0.90 + 0.05 / 3)]
    sentence = "Which of flat and steep has less depends on the retention: their curves cross at 91.7 %."
    assert sentence in files.as_html([table])
    assert sentence in files.as_markdown([table]).replace("\\", "")


def test_seeds_of_one_method():
    names = [("npo-seed1", 0.3), ("npo-seed2", 0.5), ("npo-seed3", 0.4), ("ga-seed1", 0.6), ("other", 0.2)]
    made = found(*(record(name, left) for name, left in names), older("npo-seed4"))
    (table,) = rows.groups(made, rows.seed_pattern("(.*)-seed[0-9]"))
    ga, npo = table.methods
    assert (npo.name, npo.seeds, npo.without) == ("npo", 3, 1)
    assert [npo.mean, npo.least, npo.most, npo.deviation] == [pytest.approx(x) for x in (0.4, 0.3, 0.5, 0.1)]
    assert (ga.name, ga.seeds, ga.mean, ga.deviation) == ("ga", 1, pytest.approx(0.6), None)
    for text in (files.as_markdown([table]), files.as_html([table]), files.as_latex([table])):
        assert "0.300 to 0.500" in text
    assert json.loads(files.as_json([table]))["groups"][0]["methods"][1]["seeds"] == 3
    assert rows.groups(made)[0].methods == []
    for bad, why in [("(", "not a regular expression"), ("seed", "no group")]:
        with pytest.raises(InputError, match=why):
            rows.seed_pattern(bad)


@pytest.mark.parametrize(
    ("repetition", "perplexity", "retain", "seen"),
    [
        (0.78, 535.0, 1.5, "repetition 0.780 on forget; perplexity 535.0 on forget, 1.500 on retain"),
        (0.5, 1.5, 1.5, "repetition 0.500"),
        (0.49, 299.0, 1.5, None),
        (0.1, 300.0, 30.0, "perplexity 300.0"),
        (0.1, 535.0, 60.0, None),  # retain is no better
        (None, None, 1.5, None),
    ],
)
def test_degenerate_answers_are_flagged(repetition, perplexity, retain, seen):
    made = record(perplexity=retain)
    fluency = {"repetition": score(repetition), "perplexity": score(perplexity)}
    controlled = {split: dict(scores) for split, scores in made.scores["controlled"].items()}
    controlled["forget"] |= fluency
    made = dataclasses.replace(made, scores=made.scores | {"controlled": controlled})
    (table,) = rows.groups(found(made))
    (row,) = table.rows
    assert row.rank == 1  # it is said, not judged
    assert row.values["perplexity_forget"].value == perplexity
    assert row.values["perplexity_retain"].value == retain
    if seen is None:
        assert row.degenerate is None
    else:
        assert seen in (row.degenerate or "")
        assert f"degenerate: {row.degenerate}" in files.as_html([table])
        assert "broken text, not forgetting" in files.as_markdown([table])


def test_a_path_of_rounded_mixes_is_flagged_wherever_the_row_stands():
    """By what a hostile record has in that place, too."""
    said = "about 76% <script> of the weights"
    made = record("coarse")
    made = dataclasses.replace(made, control=dataclasses.replace(made.control, rounding=said))
    (table,) = rows.groups(found(made, record("fine")))
    for page in (files.as_html([table]), files.as_markdown([table]), papers.as_latex([table])):
        assert page.count("coarse path: most of what unlearning changed") >= 1
        assert "<script> of" not in page
    assert "about 76% &lt;script&gt; of the weights" in files.as_html([table])
    (alone,) = rows.groups(found(record("fine")))
    assert "coarse path" not in files.as_html([alone])


def test_retention_without_a_path_is_of_what_the_control_kept():
    made = older(signature=SIGNATURE.replace("es.keep", "mmlu.acc.keep"))
    accuracies = [(0.6, 0.5, 0.7), (0.3, 0.2, 0.4), (0.55, 0.5, 0.6)]
    scores = {
        model: splits | {"mmlu": {"mmlu.acc": score(*acc)}}
        for (model, splits), acc in zip(made.scores.items(), accuracies, strict=True)
    }
    control = dataclasses.replace(made.control, metric="mmlu.acc")
    made = dataclasses.replace(made, scores=scores, ability={"mmlu.acc": "higher"}, control=control)
    (table,) = rows.groups(found(made))
    assert table.rows[0].values["own_retention"].value == pytest.approx(0.3 / 0.6)


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
    assert by_name["c"].apart == ["the precision is bfloat16 here, float32 there"]
    assert by_name["d"].apart == ["the original model is org/other here, org/base there"]
    page, text = files.as_html(tables), files.as_markdown(tables)
    for table in tables:
        for line in table.signatures:
            assert line in page
            assert line in text
    assert "Not comparable with the largest table of demo: the precision is bfloat16 here, float32 there." in page


def test_of_one_run_the_newest_record_counts():
    old, new = (
        record(created="2026-01-01T00:00:00+00:00"),
        record(created="2026-02-01T00:00:00+02:00", wall_seconds=2.0),
    )
    odd = record(created="yesterday")
    (table,) = rows.groups(found(old, new, odd))
    (kept,) = table.rows
    assert kept.record == new
    assert kept.replaces == ["runs/0/record.json", "runs/2/record.json"]
    assert kept.rank == 1
    assert "newest of 3 records of this run" in files.as_html([table])


def test_records_of_one_run_that_contradict_each_other_are_contested():
    """Each has a row, none is ranked, the newest is not preferred; and a difference of 1e-7 is none."""
    first = record("a", 0.5, created="2026-01-01T00:00:00+00:00")
    scores = {model: dict(splits) for model, splits in first.scores.items()}
    scores["unlearned"]["forget"] = {"extraction_strength": score(0.01 + 1e-7, 0.0, 0.02)}
    nearly = dataclasses.replace(first, scores=scores, created="2026-01-02T00:00:00+00:00")
    other = record("a", 0.2, created="2026-02-01T00:00:00+00:00")
    (table,) = rows.groups(found(first, nearly, other, record("b", 0.9)))
    assert [(row.name, row.rank, row.source) for row in table.rows] == [
        ("b", 1, "runs/3/record.json"),
        ("a", None, "runs/2/record.json"),
        ("a", None, "runs/1/record.json"),
    ]
    assert table.rows[1].contested == ["runs/0/record.json", "runs/1/record.json"]
    assert (table.rows[2].contested, table.rows[2].replaces) == (["runs/2/record.json"], ["runs/0/record.json"])
    assert "contested by 2 other records" in (table.rows[1].unranked or "")
    for text in (files.as_html([table]), files.as_csv([table])):
        assert "runs/0/record.json" in text
    (agreed,) = rows.groups(found(first, nearly))
    assert [(row.rank, row.contested) for row in agreed.rows] == [(1, [])]


def test_unknown_is_never_zero():
    tables = rows.groups(found(record("a"), unlearned("raw"), imported("log")))
    raw = next(row for table in tables for row in table.rows if row.name == "raw")
    known = {"own_retention", "residual_unlearned"}
    for column in set(columns.COLUMNS) - known:
        value = raw.values[column]
        assert (value.value, value.ci_low, value.ci_high) == (None, None, None)
        assert value.why
    (flat,) = (line for line in csv.DictReader(io.StringIO(files.as_csv(tables))) if line["name"] == "raw")
    assert flat["residual"] == flat["alpha"] == flat["rank"] == ""
    assert "perplexity_forget: not put under control" in flat["unknown"]
    loaded = TypeAdapter(files.Board).validate_json(files.as_json(tables))
    assert loaded.groups == tables
    line = next(line for line in files.as_markdown(tables).splitlines() if "`raw`" in line)
    assert line.startswith(r"| — | `raw` \* | 0.010<br>[0.000, 0.020] | 0.030 † |")


def scale(svg: ET.Element) -> list[Callable[[float], float]]:
    """Where the axes' ticks say that an x and a y lie."""
    ticks: dict[str, list[tuple[float, float]]] = {"x": [], "y": []}
    for tick in svg.iter("g"):
        use, text = tick.find("./g/g/use"), tick.find("./g/text")
        if use is not None and text is not None and "%" not in (text.text or ""):
            axis = "x" if text.get("text-anchor") == "middle" else "y"
            ticks[axis].append((float(text.text or "nan"), float(use.get(axis, "nan"))))

    def along(first: tuple[float, float], last: tuple[float, float]) -> Callable[[float], float]:
        return lambda at: first[1] + (at - first[0]) * (last[1] - first[1]) / (last[0] - first[0])

    return [along(found[0], found[-1]) for found in ticks.values()]


@pytest.mark.parametrize(
    ("plot", "expected"),
    [
        (plots.curves, [(0.95, 0.2), (0.95, 0.5)]),  # where they are ranked
        (plots.paths, [(0.9, 0.0), (0.9, 0.03)]),  # as published, at alpha 1
    ],
)
def test_plots_show_the_measured_points(plot, expected):
    """The markers in the SVG lie at retention and residual, on the scale of the axes' ticks."""
    (table,) = rows.groups(found(record("a", 0.5), record("b", 0.2)))
    svg = ET.fromstring(plot(table, [row.name for row in table.rows]) or "")
    assert table.rows[0].name == "b"
    last = [[u for u in svg.iter("use") if u.get("data-row") == part][-1] for part in ("0", "1")]
    xs, ys = ([float(u.get(axis, 0)) for u in last] for axis in "xy")
    across, up = scale(svg)
    for (x, y), (at_x, at_y) in zip(zip(xs, ys, strict=True), expected, strict=True):
        assert (x, y) == (pytest.approx(across(at_x), abs=0.05), pytest.approx(up(at_y), abs=0.05))
    assert {part.findtext("title") for part in svg.iter() if part.get("data-row") == "0"} == {"b"}
    assert not [node for node in svg.iter() if node.get("style") or node.tag in ("style", "script")]


@pytest.mark.parametrize("plot", [plots.curves, plots.paths])
def test_many_rows_are_drawn_as_each_would_be_alone(monkeypatch, plot):
    """Rows drawn together: every part of a row is what it is drawn by itself."""
    some = [record(f"m{i:02}", 0.1 + i % 6 / 10, own=[0.8, 0.96][i % 2]) for i in range(60)]
    some[7] = older("m07")  # last; a point of its own, no curve
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
    assert {dict(part)["data-row"] for part in together} >= {str(i) for i in range(59)}


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
    table = f"| a | b |\n|---|---|\n| {papers.code(words.shown(text), in_table=True)} | end |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [t for i, t in enumerate(tokens) if i and tokens[i - 1].type == "td_open"]
    assert [c.type for c in cells] == ["inline", "inline"]
    (span,) = cells[0].children or []
    assert span.type == "code_inline"
    assert span.content.split() == words.shown(text).split()
    assert cells[1].content == "end"


TEX_TOKEN = re.compile(
    r"(\\textbackslash\{\}|\\textasciicircum\{\}|\\textasciitilde\{\}|\\textbar\{\}|\\textless\{\}|\\textgreater\{\}"
    r"|\\symbol\{\d+\}|\\ldots\{\}|\\texttt\{U\+[0-9A-F]{4,6}\}|\$\\(up|down|right)arrow\$|\\[{}$&%#_]|\{[-\[\]]\}"
    r"|[\w .,:;/()+=*?!@-]|[\u00a1-\u017f])*"
)


@given(st.text(max_size=60) | st.sampled_from(NASTY))
def test_text_in_latex(text: str):
    """Nothing but plain characters and the escapes that we make; none is a command of the text's own."""
    assert TEX_TOKEN.fullmatch(papers.tex(text))


@given(st.text(max_size=60) | st.sampled_from(NASTY))
def test_text_in_csv(text: str):
    table = rows.groups(found(record(text)))
    (line,) = csv.DictReader(io.StringIO(files.as_csv(table)))
    assert not re.match(r"\s*[=+\-@\t\r]", line["name"])
    assert line["name"].removeprefix("'") == words.shown(text).removeprefix("'")
    assert len(files.as_csv(table).splitlines()) == 2


def test_nasty_names_everywhere():
    tables = rows.groups(found(*(record(name, base=name, data={name: name}) for name in NASTY)))
    page = files.as_html(tables)
    assert page.count("<script") == 1
    links = ('src="http', 'href="http', 'href="javascript')
    for forbidden in ("<img", "onload=window", "<svg onload", "\x1b", "\x00", "\u202e", *links, "62615533"):
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
    assert rows.base_label(table) == "models/original"
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


def test_many_records_at_any_depth(tmp_path):
    records = [record(f"m{i}", 0.1 + i % 8 / 10, base=f"base {i % 7}") for i in range(60)]
    runs = save(tmp_path / "deep" / "er", *records).parent
    done = process("leaderboard", runs, "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "60 rows in 7 tables, 60 ranked" in done.stdout
    assert sorted(p.name for p in (tmp_path / "site").iterdir()) == sorted(files.FILES)
    lines = list(csv.DictReader((tmp_path / "site" / "leaderboard.csv").open(encoding="utf-8", newline="")))
    by_name = {r.name: r for r in records}
    assert len(lines) == 60
    for line in lines:
        said = by_name[line["name"]].residual["extraction_strength"].value
        assert (float(line["residual"]), float(line["residual_ci_high"])) == (said.value, said.high)
    board = json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    assert board["schema"] == files.SCHEMA
    assert sum(len(group["rows"]) for group in board["groups"]) == 60


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
    with pytest.raises(InputError, match=r"index.html was not written by unlearn-metrics; choose another folder"):
        files.write(out, tables)
    assert "My thesis" in (out / "index.html").read_text()


# --- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """One table of five rows and a hostile one, others beside it."""
    kept = [("alpha", 0.1, 0.5), ("beta", 0.3, 0.4), ("gamma", 0.5, 0.6), ("delta", 0.7, 0.3)]
    records = [record(name, left, own, retain_only=0.05) for name, left, own in kept]
    records += [older("no path"), unlearned(), imported(), record("m", base="org/other")]
    records += [record(name, base=name, verdict=name, signature=SIGNATURE.replace("demo", "nasty")) for name in NASTY]
    out = tmp_path_factory.mktemp("site")
    files.write(out, rows.groups(found(*records)))
    return out


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as driven:
        yield driven


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

    ranked = ["alpha", "beta", "gamma", "delta", "no path"]
    assert names(page) == ranked
    buttons = page.find_elements(By.CSS_SELECTOR, "section:first-of-type thead button")
    assert len(buttons) == 6  # rank, checkpoint, residual, above retain-only, two of fluency
    for place in (2, 3):
        buttons[place].click()
        assert names(page) == ranked  # what is unknown comes last, either way
        assert sorts(page)[place] == "ascending"
        assert sum(way is not None for way in sorts(page)) == 1
        buttons[place].send_keys(Keys.ENTER)  # by keyboard
        assert names(page) == ["delta", "gamma", "beta", "alpha", "no path"]
        assert sorts(page)[place] == "descending"
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


@given(st.floats(0, 1, exclude_max=True))
def test_a_band_ends_at_the_originals_retention_whatever_it_begins_at(lowest):
    found = plots.shares(lowest)
    assert len(found) == plots.BAND_STEPS
    assert found[-1] == 1
    assert all(lowest <= share <= 1 for share in found)
