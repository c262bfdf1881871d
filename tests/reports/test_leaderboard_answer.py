"""What a leaderboard's page says first, what stands beside its rows, and what a maintainer adds to it."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from tests.command import run
from tests.reports.test_leaderboard import (
    NASTY,
    SIGNATURE,
    browser,
    found,
    imported,
    older,
    record,
    save,
    score,
    unlearned,
)
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import tables
from unlearn_metrics.records.folder import TEXTS
from unlearn_metrics.reports import drawing
from unlearn_metrics.reports.leaderboard import about, answer, files, printed, reading, rows, samples, strips, words


def table(*records: RunRecord) -> rows.Group:
    (group,) = rows.groups(found(*records))
    return group


def said(*records: RunRecord) -> answer.Answer:
    return answer.answer(table(*records))


# --- the answer ------------------------------------------------------------------------------------------------------


def test_one_row_is_best_for_sure():
    found = said(record("a", 0.2, retain_only=0.05), record("b", 0.8, retain_only=0.05), record("c", 0.6))
    assert found.best == "a has forgotten the most."
    assert found.sure == "Sure"
    assert "the other 2 ranked rows all have significantly more of the forget set left" in found.why
    kept = "Each row is held to 95 % of the original's extraction_strength on the retain set; "
    left = "its residual is the extraction_strength still left on the forget set: a 0.200 ["
    assert found.beside.startswith(kept + left)
    assert found.beside.endswith("]; retain-only model (the goal) 0.050; original 1.000.")
    text = str(found)  # what is asked first, first
    order = [text.index(part) for part in (found.best, found.sure, found.why, found.beside)]
    assert order == sorted(order)


def test_rows_that_cannot_be_told_apart_are_no_single_best():
    same = [record(name, 0.5) for name in "abcde"]
    found = said(*same[:2], record("z", 0.9))
    assert found.best == "No single best: a and b cannot be told apart."
    assert found.sure == "Not decided"
    assert "the other one has significantly more of the forget set left" in found.why
    assert said(*same).best == "No single best: a, b and 3 more cannot be told apart."
    assert found.beside.endswith("]; original 1.000.")
    assert "goal" not in found.beside  # no retain-only model, no goal


def test_what_makes_an_answer_doubtful_is_said():
    few = said(record("a", [0.1] * 7), record("b", [0.8] * 7))
    assert few.sure == "Sure, but from few documents"
    assert said(record("a", [0.5] * 7), record("b", [0.5] * 7)).sure == "Not decided, and from few documents"
    assert "7 clusters (documents that belong together" in few.doubts
    beyond = said(record("a", 0.1, own=0.96), record("b", 0.8))
    assert "As published, a (96 %) retains more than 95 %, so its residual is extrapolated" in beyond.doubts
    broken = record("a", 0.1)
    scores = {model: {split: dict(of) for split, of in splits.items()} for model, splits in broken.scores.items()}
    scores["controlled"]["forget"]["repetition"] = score(0.9)
    assert "degenerate: broken text" in said(dataclasses.replace(broken, scores=scores), record("b", 0.8)).doubts


def test_nothing_to_rank_is_said_with_its_reason():
    found = said(unlearned("a"), unlearned("b"), unlearned("c"))
    assert (found.best, found.sure) == ("Nothing can be ranked here.", "Unknown")
    assert found.why == "scored without control, so forgetting and damage cannot be distinguished (all 3 rows)."
    assert said(unlearned("a")).why.endswith(" (the only row).")
    assert said(record("a")).sure == "No comparison"


def test_a_mark_finds_a_row_in_the_plots_and_is_no_letter():
    """Letters beside ranks would be taken for groups of rows that do not differ."""
    group = table(*(record(name, 0.5) for name in "ab"), record("y", 0.2), record("z", 0.9), older("o"), older("p"))
    assert [words.rank(row) for row in group.rows] == ["1", "2–3", "2–3", "4", "—", "—"]
    page = files.as_html([group])
    assert len(set(marks(page))) == len(marks(page)) == 6
    curves = page[page.index("<figure>") : page.index("</figure>")]
    assert not re.findall(r">[A-Z]{1,2}</text>", curves)
    # colour and shape of a row's point are those of its mark
    shapes = {name: d for d, name in re.findall(r'<path d="([^"]+)"[^>]*id="([^"]+)"', curves)}
    points = re.findall(r'<use [^>]*data-row="(\d)" [^>]*"var\(--s(\d)\)"[^>]*href="#([^"]+)"', curves)
    assert sorted({(int(row), colour, corners(shapes[path])) for row, colour, path in points}) == [
        (row, colour, corners(d)) for row, (colour, d) in enumerate(marks(page)[:4])
    ]


def marks(page: str) -> list[tuple[str, str]]:
    """(number of the colour, outline) of each row's mark."""
    return re.findall(r'class="mark"[^>]*><path class="dot p(\d)" d="([^"]+)"', page)


def corners(outline: str) -> tuple[int, int]:
    """(how many there are, how many of them at the top); a circle has none."""
    if re.search("[aC]", outline):
        return 0, 0
    ys = [float(y) for y in re.findall(r"-?[\d.]+", outline)][1::2]
    return len(ys), ys.count(min(ys))


@pytest.mark.parametrize(("n", "alike"), [(drawing.MARKS, False), (drawing.MARKS + 1, True)])
def test_no_two_rows_share_a_mark(n: int, alike: bool):
    page = files.as_html([table(*(record(f"m{i:02}", 0.5) for i in range(n)))])
    assert len(set(marks(page))) == (0 if alike else n)
    assert ("mark stands beneath its rank" in page) is not alike


def test_what_is_retained_is_named():
    """The retention metric of most rows; of another task it is no metric of the retain set."""
    assert words.kept(table(record("a"), record("b"))) == "extraction_strength on the retain set"
    other = [dataclasses.replace(r, control=dataclasses.replace(r.control, metric="mmlu.acc")) for r in [record("a")]]
    assert words.kept(table(*other)) == "mmlu.acc"


def test_unknown_is_said_beside_the_rows_too():
    page = files.as_html([table(record("a", 0.2, retain_only=0.05), record("b", retain_only=0.05), *full()[:1])])
    for body in re.findall(r'<tbody class="reference".*?</tbody>', page, re.S):
        cells = re.findall(r'<td class="(?:first|rest)[^>]*>([^<]*)', body)
        assert len(cells) > 3
        assert all(cells)


# --- models beside the rows ------------------------------------------------------------------------------------------


def test_goal_and_start_are_rows_and_marks():
    group = table(record("a", 0.2, retain_only=0.05), record("b", 0.8, retain_only=0.05))
    goal, start = group.references
    assert [goal.role, start.role] == ["retain_only", "original"]
    values = [
        (r.values["residual"].value, r.values["own_retention"].value, r.values["above_floor"].value)
        for r in (goal, start)
    ]
    assert values == [(0.05, pytest.approx(0.8), 0), (1.0, pytest.approx(1.0), 1)]
    page = files.as_html([group])
    bodies = re.findall(r"<tbody.*?</tbody>", page, re.S)
    kinds = ["reference" in body[:40] for body in bodies if "data-place" in body[:300]]
    assert kinds == [True, False, False, True]
    assert page.index('class="board') < page.index('class="plots"')  # the table before its plots
    strip = strips.strip(group, group.rows[0].values, 0, (0.0, 1.0))
    inner = strips.WIDTH - 2 * strips.MARGIN
    assert f'<circle class="dot p0" cx="{strips.MARGIN + 0.2 * inner:.1f}"' in strip
    assert f'<path class="retain_only" d="M{strips.MARGIN + 0.05 * inner:.1f} ' in strip
    for text in (files.as_markdown([group]), files.as_latex([group])):
        assert "retain-only model" in text.replace("{-}", "-")


def test_of_two_retain_only_models_the_usual_one_is_shown():
    other = record("c", 0.6, retain_only=0.3)
    group = table(record("a", 0.2, retain_only=0.05), record("b", 0.8, retain_only=0.05), other)
    assert group.references[0].values["residual"].value == 0.05
    assert group.references[0].others == 1
    assert "1 row is seen beside another retain-only model than is shown." in words.about(group)


def test_tables_come_by_their_rows_not_by_the_alphabet():
    demo = [record(name, base="org/z") for name in "ab"]
    news = [record(name, signature=SIGNATURE.replace("demo", "zeta")) for name in "abc"]
    alone = record("alone", signature=SIGNATURE.replace("demo", "alpha"))
    names = [group.benchmark for group in rows.groups(found(alone, *demo, *news))]
    assert names == ["zeta", "demo", "alpha"]
    names = [group.benchmark for group in rows.groups(found(alone, *demo, *news), first=["alpha", "demo"])]
    assert names == ["alpha", "demo", "zeta"]


def test_what_differs_is_said_by_names_not_hashes():
    data = {"forget": "0" * 64, "retain": "1" * 64}
    one = [record(name, data=data) for name in "ab"]
    changed = SIGNATURE.replace("data:1", "data:9c1bffee").replace("prompt:1", "prompt:abcdabcd")
    other = record("c", signature=changed, data=data | {"retain": "2" * 64})
    apart = rows.groups(found(*one, other))[1].apart
    assert apart == ["other prompts", "other documents (retain)"]
    silent = [record(name, signature=SIGNATURE.replace("|prompt:1", "").replace("|data:1", "")) for name in "ab"]
    apart = rows.groups(found(*silent, other))[1].apart
    assert apart == ["not stated there: the prompts, the documents"]


def test_a_sample_is_said_in_one_table_as_in_many():
    sampled = SIGNATURE.replace("n:all", "n:4-drawn")
    only = rows.groups(found(record("a", signature=sampled), record("b", signature=sampled)))
    for text in (files.as_markdown(only), files.as_html(only), files.as_latex(only)):
        assert "2 rows, 2 ranked, on 4 documents of each split, drawn at random." in text
    many = rows.groups(found(record("a", signature=sampled), record("b", signature=sampled), record("c")))
    assert sorted(group.variant for group in many) == ["4 documents of each split, drawn at random", "all documents"]
    (apart,) = (group.apart for group in many if group.apart)
    assert apart == ["all documents here, 4 documents of each split, drawn at random there"]


def test_tables_of_one_name_are_told_apart():
    layers = SIGNATURE.replace("ctl:mix.es.keep0.95", "ctl:layers.es.keep0.95").replace("n:all", "n:140")
    tables = rows.groups(found(record("a"), record("b"), record("c", signature=layers), record("d", base="org/x")))
    titles = [words.titled(group) for group in tables]
    assert sorted(titles) == [
        "demo, original org/base, control layers, the first 140 documents of each split",
        "demo, original org/base, control mix, all documents",
        "demo, original org/x",
    ]
    page = files.as_html(tables)
    assert ", control mix, all documents</span></h2>" in page


# --- formats ---------------------------------------------------------------------------------------------------------


def full() -> list[RunRecord]:
    made = []
    for i in range(6):
        of = record(f"a-method/checkpoint-{i}", 0.1 + 0.1 * i, retain_only=0.05)
        both = {name: score(0.123, 0.111, 0.135) for name in ("model_utility", "forget_quality", "privleak")}
        made.append(dataclasses.replace(of, composites={"controlled": both, "unlearned": both, "retain_only": both}))
    return made


def test_markdown_fits_on_github():
    """GitHub shows about 110 characters of a table's text side by side."""
    group = table(*full(), older("no path"))
    tokens = MarkdownIt("commonmark").enable("table").parse(files.as_markdown([group]))
    tables: list[list[list[int]]] = []  # of each, of each row, the characters of each cell's longest line
    for before, token in itertools.pairwise(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            tables[-1][-1].append(max(map(len, token.content.split("<br>"))))
    assert len(tables) == 2  # what does not fit stands in a second one
    for lines in tables:
        assert sum(max(column) for column in zip(*lines, strict=True)) <= 110
    assert len(tables[0][0]) + len(tables[1][0]) - 2 - 1 == len(words.present(group))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_ranking_in_a_terminal(width):
    """In order, between goal and start, and no number is cut at any width."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    group = table(*full())
    for part in printed.ranking([group]):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    order = [text.rindex(word) for word in ("retain-only model", "checkpoint-0", "checkpoint-5", "original   ")]
    assert order == sorted(order)
    value = group.rows[3].values["residual"]
    assert f"{value.value:.3f}" in text
    assert f"[{value.ci_low:.3f}, {value.ci_high:.3f}]" in text


def test_logs_are_a_compact_table_of_what_they_hold():
    logs = []
    for i in range(3):
        log = imported(f"log-{i}")
        scores = {"forget": {"probability": score(0.1 * i), "rouge": score(0.5)}, "retain": {"probability": score(0.8)}}
        logs.append(dataclasses.replace(log, scores={"unlearned": scores}))
    groups = rows.groups(found(record("a"), record("b", 0.2), *logs))
    logged = groups[1]
    assert [column.heading for column in words.present(logged)] == [
        "probability, forget",
        "rouge, forget",
        "probability, retain",
    ]
    page = files.as_html(groups)
    compact = page[page.index("Not ranked: single rows") :]
    assert compact.count("<tbody id") == 3
    assert "<figure>" not in compact
    assert "imported from a log, which tells values as published only" in compact


def test_rows_of_one_log_are_not_taken_for_one_run():
    logs = [dataclasses.replace(imported("file"), name=name) for name in ("first", "second")]
    scores = {"unlearned": {"forget": {"probability": score(0.9)}}}
    logs[1] = dataclasses.replace(logs[1], scores=scores)
    assert [row.contested for row in table(*logs).rows] == [[], []]


# --- leaderboard.yaml ------------------------------------------------------------------------------------------------


def yaml(folder: Path, text: str) -> tuple[dict[Path, about.About], list[str]]:
    (folder / about.FILE).write_text(textwrap.dedent(text))
    return about.read(folder)


def test_what_a_maintainer_says_of_a_row(tmp_path):
    runs = save(tmp_path / "runs", record("a", 0.2), record("b", 0.8))
    text = """
    run-000:
      method: NPO <b>
      date: 2026-11-02
      link: https://example.org/paper?a=1&b="2"
      submitter: A. Person
      checked_by: B. Person
    """
    good, bad = yaml(runs, text)
    assert bad == []
    expected = about.About("NPO <b>", "2026-11-02", 'https://example.org/paper?a=1&b="2"', "A. Person", "B. Person")
    assert good == {(runs / "run-000").resolve(): expected}
    for given in ([runs], [runs / "run-000", runs / "run-001"], [runs / "run-000" / "record.json", runs / "run-001"]):
        records, problems = reading.read(given)
        assert problems == []
        assert [item.about for item in records] == [expected, about.About()]
    (group,) = rows.groups(records)
    page = files.as_html([group])
    assert "NPO &lt;b&gt;" in page
    assert 'href="https://example.org/paper?a=1&amp;b=&#34;2&#34;" rel="nofollow noopener noreferrer ugc"' in page
    assert "checked by" in page
    (line, _) = csv.DictReader(io.StringIO(files.as_csv([group])))
    assert (line["method"], line["checked_by"], line["date"]) == ("NPO <b>", "B. Person", "2026-11-02")
    assert r"NPO \<b\><br>A. Person<br>2026-11-02<br>checked by B. Person" in files.as_markdown([group])
    assert '<th scope="col" class="told">submitted by</th>' in page
    assert "submitted by" not in files.as_html(rows.groups(found(record("a"))))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("run-000: {link: 'javascript:alert(1)'}", "link does not begin with https"),
        ("run-000: {link: 'https://'}", "link does not begin with https"),
        ("run-000: {link: 'https://a.example@evil.example/'}", "link does not begin with https"),
        ("run-000: {link: 'https://a.example/ onclick=x'}", "link is no link"),
        ("run-000: {link: data:text/html;x}", "link does not begin with https"),
        ("run-000: {date: yesterday}", "date is no day"),
        ("run-000: {method: 3}", "method is not a text"),
        ("run-000: {method: " + "x" * 201 + "}", "method is not a text of at most 200"),
        ("run-000: {rank: 1}", "unknown field 'rank'"),
        ("run-000: NPO", "takes method, date"),
        ("run-009: {method: NPO}", "there is no run in that folder"),
        ("- run-000", "does not map folders"),
        ("a: [", "cannot be read as YAML"),
        ("run-000: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("[" * 3000, "cannot be read as YAML"),
        ("x: &a [1]\n" + "\n".join(f"x{i}: &a{i} [*a, *a]" for i in range(50)), "there is no run in that folder"),
        ("#" * ((1 << 20) + 1), "too large"),
    ],
)
def test_what_is_wrong_in_it_is_named_and_left_out(tmp_path, text, why):
    runs = save(tmp_path / "runs", record("a"))
    good, bad = yaml(runs, text)
    assert good == {}
    assert why in bad[0]
    assert str(runs / about.FILE) in bad[0]
    records, bad = reading.read([runs])
    assert len(records) == 1  # the run has its row all the same
    assert why in bad[0]


def test_title_intro_order_and_choice(tmp_path):
    news = [record(name, signature=SIGNATURE.replace("demo", "zeta")) for name in "abc"]
    runs = save(tmp_path / "runs", *(record(name) for name in "ab"), *news)
    (runs / about.FILE).write_text("run-000: {link: 'javascript:x'}")
    options = ["--title", "<b>Ours", "--intro", "Two & three.", "--order", "demo"]
    done = run("leaderboard", runs, "--out", tmp_path / "site", *options)
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert "<title>&lt;b&gt;Ours</title>" in page
    assert "Two &amp; three." in page
    assert page.index("demo <span") < page.index("zeta <span")
    assert r"# \<b\>Ours" in (tmp_path / "site" / "leaderboard.md").read_text()
    assert "No single best: a and b cannot be told apart." in done.stdout
    only = run("leaderboard", runs, "--out", tmp_path / "one", "--benchmark", "zeta")
    assert "3 rows in 1 table" in only.stdout
    for option in ("--benchmark", "--order"):
        wrong = run("leaderboard", runs, "--out", tmp_path / "none", option, "tofu")
        assert wrong.returncode == 2
        assert f"{option} tofu: no record is of that benchmark; there are demo, zeta" in wrong.stderr
    strict = run("leaderboard", runs, "--out", tmp_path / "none", "--strict")
    assert strict.returncode == 2
    assert not (tmp_path / "none").exists()


# --- sample texts ----------------------------------------------------------------------------------------------------


def texts(folder: Path, said: list[dict[str, object]]) -> None:
    schema = tables.of_texts(
        {"unlearned": {"forget": [{"id": 0, "cluster": 0, "question": "", "generation": ""}]}}
    ).schema
    pq.write_table(pa.Table.from_pylist(said, schema), folder / TEXTS)


def test_sample_texts_are_of_the_same_documents_and_escaped(tmp_path):
    runs = save(tmp_path / "runs", record("a", 0.2), record("b", 0.8))
    for folder in ("run-000", "run-001"):
        made = [
            {
                "model": model,
                "split": split,
                "id": i,
                "cluster": i,
                "question": f"q{i} {NASTY[i % 3]}",
                "reference": f"r{i}",
                "generation": f"{model} {split} {i} {folder} {NASTY[i % 5]}",
            }
            for split in ("forget", "retain")
            for model in ("original", "unlearned", "controlled")
            for i in range(9)
        ]
        texts(runs / folder, made)
    records, _ = reading.read([runs])
    (group,) = rows.groups(records)
    chosen = [[sample.question[:2] for sample in samples.samples(row)] for row in group.rows]
    assert chosen == [["q0", "q3", "q6"]] * 2
    first = samples.samples(group.rows[0])[1]
    assert list(first.answers) == ["original", "unlearned", "controlled"]
    assert first.answers["unlearned"].startswith("unlearned forget 3 run-000")
    page = files.as_html([group])
    assert "controlled forget 6 run-001" in page
    assert "controlled retain" not in page
    assert page.count("<script") == 1
    assert "<img" not in page


def test_long_or_broken_texts(tmp_path):
    runs = save(tmp_path / "runs", record("a"))
    (runs / "run-000" / TEXTS).write_bytes(b"PAR1 no")
    records, _ = reading.read([runs])
    (group,) = rows.groups(records)
    assert samples.samples(group.rows[0]) == []
    row = {"model": "unlearned", "split": "forget", "id": 0, "cluster": 0, "generation": "x" * 9_000}
    texts(runs / "run-000", [row])
    (sample,) = samples.samples(group.rows[0])
    assert sample.answers == {"unlearned": "x" * samples.LONGEST + "…"}


# --- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A page with every column that a table can have."""
    folder = tmp_path_factory.mktemp("wide")
    runs = save(folder / "runs", *full())
    entry = "{method: 'A method with a long name', date: 2026-11-02, link: 'https://example.org', "
    entry += "submitter: Some University, checked_by: Some One Else}"
    (runs / about.FILE).write_text("".join(f"run-{i:03}: {entry}\n" for i in range(6)))
    records, bad = reading.read([runs])
    assert bad == []
    files.write(folder / "site", rows.groups(records))
    return folder / "site" / "index.html"


@pytest.mark.slow
def test_nothing_is_cut_off_on_a_desktop_and_a_phone_ranks_in_one_screen(wide):
    with browser() as chrome:
        for width, height in ((1300, 900), (390, 844)):
            chrome.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
            )
            chrome.get(wide.as_uri())
            box = chrome.execute_script(
                "const b = document.querySelector('.box'); return [b.scrollWidth, b.clientWidth]"
            )
            assert box[0] <= box[1]
            last = "return [...document.querySelectorAll('tbody[data-row]')].at(-1).getBoundingClientRect().bottom"
            assert width > 500 or chrome.execute_script(last) <= height
