"""One run, looked at: which documents are shown, what is drawn, and a page that obeys nobody's text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import unlearn_metrics as um
from tests.command import run
from tests.reports.test_leaderboard import CONTRAST, NASTY, chrome, record
from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import store
from unlearn_metrics.reports.showing import examples, page, paper, plots
from unlearn_metrics.run import Run

__all__ = ["chrome"]
REFERENCE = "one two three four"
# id, cluster, what the controlled model says: ROUGE recall 1, 1, 1, 0.5, 0.25, none
SAID = [(0, 0, REFERENCE), (1, 0, REFERENCE), (2, 1, REFERENCE), (3, 1, "one two"), (4, 1, "one"), (5, 2, None)]


def observations(question: str = "which?", more: str = "") -> Observations:
    def document(id_: int, cluster: int, said: str | None, model: str) -> Document:
        found: Document = {"id": id_, "cluster": cluster, "split": "forget", "question": question}
        found["reference"] = REFERENCE
        if said is not None:
            found["generation"] = (said if model == "controlled" else "nothing of it") + more
        return found

    models = ("original", "unlearned", "controlled")
    return {model: {"forget": [document(*of, model) for of in SAID]} for model in models}


def chosen(count: int, split: str = "forget", **more: Any) -> list[tuple[str, int]]:
    found = examples.examples(record(), observations(), split, count, **more)[1]
    return [(example.place, example.id) for example in found]


def test_worst_and_best_by_hand():
    """Of the three with everything, the second author comes before the first author's second question; a document
    without a value is in neither, and none comes twice."""
    metric, found = examples.examples(record(), observations(), "forget", 2)
    assert metric == "rouge"
    assert [(e.place, e.id) for e in found] == [("worst 1", 0), ("worst 2", 2), ("best 1", 4), ("best 2", 3)]
    assert found[0].said == {"original": "nothing of it", "unlearned": "nothing of it", "controlled": REFERENCE}
    assert found[2].scored == {"original": 0, "unlearned": 0, "controlled": 0.25}
    assert chosen(4) == [*(("worst " + str(i + 1), id_) for i, id_ in enumerate((0, 2, 1, 3))), ("best 1", 4)]
    assert chosen(9) == [("worst " + str(i + 1), id_) for i, id_ in enumerate((0, 2, 1, 3, 4))]


def test_on_other_splits_the_worst_is_what_was_lost():
    told = {model: {"retain": splits["forget"]} for model, splits in observations().items()}
    found = examples.examples(record(), told, "retain", 1)[1]
    assert [(e.place, e.id) for e in found] == [("worst 1", 4), ("best 1", 0)]


def test_what_cannot_be_shown_is_said():
    with pytest.raises(InputError, match=r"no split 'forgets'; did you mean forget\?"):
        chosen(1, "forgets")
    with pytest.raises(InputError, match=r"no document has what 'rougee' takes; did you mean rouge"):
        chosen(1, metric="rougee")
    with pytest.raises(InputError, match="count is -3"):  # not all but the last three
        chosen(-3)
    bare: Observations = {"unlearned": {"forget": [{"id": 0, "cluster": 0, "split": "forget"}]}}
    with pytest.raises(InputError, match="holds no texts of forget"):
        examples.examples(record(), bare, "forget", 1)


def test_the_path_is_drawn_where_it_was_measured():
    """A straight line from 1: at alpha 1/2 and 1 retention is 0.95 and 0.9, and 0.5 and nothing are left."""
    axes = Figure().subplots()
    assert plots.path(record("r", [0.5] * 10, 0.9, retain_only=0.125))(axes)
    xs, ys = axes.lines[0].get_data()
    assert [round(x, 6) for x in xs] == [1.0, 0.95, 0.9]
    assert [round(y, 6) for y in ys] == [1.0, 0.5, 0.0]
    assert any(list(line.get_ydata()) == [0.125, 0.125] for line in axes.lines)  # the retain-only model
    assert not plots.path(dataclasses.replace(record(), path=None))(Figure().subplots())


def test_documents_are_drawn_sorted():
    of = dataclasses.replace(record(), headline=dataclasses.replace(record().headline, forget=["rouge"]))
    axes = Figure().subplots()
    assert plots.documents(of, observations())(axes)
    assert list(axes.lines[-1].get_ydata()) == [1, 1, 1, 0.5, 0.25]
    assert list(axes.lines[-1].get_xdata()) == [10, 30, 50, 70, 90]


def test_figures_are_files_that_are_the_same_again(tmp_path):
    def written(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in plots.save(folder, record(), observations())}

    found = written(tmp_path / "a")
    assert {name: data[:4] for name, data in found.items()} == {
        "path.svg": b"<?xm",
        "path.pdf": b"%PDF",
        "path.png": b"\x89PNG",
    }
    assert written(tmp_path / "b") == written(tmp_path / "b") == found


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_a_figure_of_somebody_else_stays(tmp_path, form):
    theirs = tmp_path / f"path.{form}"
    Figure().savefig(theirs)
    data = theirs.read_bytes()
    with pytest.raises(InputError, match=f"path.{form} was not written by unlearn-metrics"):
        plots.save(tmp_path, record(), observations())
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert theirs.read_bytes() == data
    for place in (theirs, theirs / "below"):
        with pytest.raises(InputError, match=f"path.{form} is a file, not a folder"):
            plots.save(place, record(), observations())
        with pytest.raises(
            InputError, match="is a folder, not a file" if place == theirs else "is a file, not a folder"
        ):
            page.save(tmp_path if place == theirs else place, "")


class Tags(HTMLParser):
    """Elements, attributes, and the text that is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def html(of: RunRecord, texts: Observations) -> str:
    return page.as_html(of, texts, *examples.examples(of, texts, "forget", 2))


@pytest.mark.parametrize("nasty", NASTY)
def test_texts_of_strangers_are_text(nasty):
    of = record(nasty, verdict=nasty[:9_000], base=nasty)
    found = html(of, observations(nasty, nasty))
    tags = Tags(found)
    assert not {"script", "img", "iframe", "object", "link", "base", "form", "input"} & {*tags.tags}
    assert {name for name, _ in tags.attributes if name.startswith("on")} == set()
    assert not [value for name, value in tags.attributes if name in ("src", "href") and not str(value).startswith("#")]
    if nasty.isprintable() and len(nasty) < 300:
        assert tags.text.count(nasty) > 5
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b\x00]", found)
    assert "7919*7907" in found or "7919" not in nasty


def test_the_page_allows_its_own_style_alone():
    found = html(record(), observations())
    style = re.search(r"<style>(.*?)</style>", found, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', found)[1]
    assert policy.replace("&#39;", "'").startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "style=" not in found.replace(style, "")
    assert not re.search(r"(?:url\(|@import)(?!#)", style)


def test_the_page_says_what_the_record_says():
    text = " ".join(Tags(html(record("npo"), observations())).text.split())
    for said in ("npo on demo", "About npo", "0.500 [0.400, 0.600]", "worst 1", "best 2", REFERENCE, "0.250"):
        assert said in text
    assert "What attacks bring back" not in text


def test_a_run_of_means_alone_is_shown_without_texts(tmp_path):
    store.save(tmp_path / "run", record("means"), {})
    done = run("show", tmp_path / "run", "--html", tmp_path / "r.html", "--figures", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert "no examples: the run holds no documents" in done.stdout
    assert "What the models said" not in (tmp_path / "r.html").read_text()
    assert um.load(tmp_path / "run").report(tmp_path / "again.html").read_text() == (tmp_path / "r.html").read_text()


def test_what_layers_lack_is_a_row_for_each(tmp_path):
    of = dataclasses.replace(record(), depth={"unlearned": [0.25, -1.5], "retain_only": [0.5, 2.0]})
    text = " ".join(Tags(html(of, observations())).text.split())
    assert "layer as published retain-only 1 0.250 0.500 2 -1.500 2.000" in text


def test_the_page_replaces_none_of_others(tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_text("<!doctype html><title>My thesis</title>")
    with pytest.raises(InputError, match="was not written by unlearn-metrics show"):
        page.save(mine, html(record(), observations()))
    page.save(tmp_path / "sub" / "report.html", html(record(), observations()))
    page.save(tmp_path / "sub" / "report.html", html(record("again"), observations()))
    assert "again" in (tmp_path / "sub" / "report.html").read_text()


@pytest.fixture
def saved(tmp_path) -> Path:
    texts = observations()
    store.save(tmp_path / "run", record("a/b"), texts)
    return tmp_path / "run"


def test_the_latex_replaces_none_of_others(saved, tmp_path):
    before = (saved / "record.json").read_bytes()
    done = run("show", saved, "--latex", saved / "record.json")
    assert done.returncode == 2
    assert "was not written by unlearn-metrics show" in done.stderr
    assert (saved / "record.json").read_bytes() == before
    for _ in range(2):
        assert run("show", saved, "--latex", tmp_path / "sub" / "table.tex").returncode == 0


def test_the_command_and_the_run_in_python(saved, tmp_path):
    places = tmp_path / "report.html", tmp_path / "figures", tmp_path / "table.tex"
    given = [part for pair in zip(("--html", "--figures", "--latex"), places, strict=True) for part in pair]
    done = run("show", saved, "--examples", 1, *given)
    assert done.returncode == 0, done.stderr
    assert "worst 1 of forget by rouge, document 0" in done.stdout
    assert re.search(r"under control +0.250  one *\n", done.stdout)
    assert "About a/b" in done.stdout
    assert (tmp_path / "figures" / "path.pdf").is_file()
    opened = um.load(saved)
    assert opened.to_latex() == places[2].read_text()
    table = opened.examples(count=1)
    assert table[["place", "id", "controlled rouge"]].values.tolist() == [["worst 1", 0, 1.0], ["best 1", 4, 0.25]]
    assert table["controlled"].tolist() == [REFERENCE, "one"]
    assert opened.report(tmp_path / "again.html", count=1).read_text() == places[0].read_text()
    assert [path.name for path in opened.figures(tmp_path / "f")] == ["path.svg", "path.pdf", "path.png"]
    as_json = run("show", saved, "--json", "--examples", 1)
    found = json.loads(as_json.stdout)
    assert [e["id"] for e in found["examples"]] == [0, 4]
    assert found["record"]["name"] == "a/b"
    assert "no split 'nope'" in run("show", saved, "--split", "nope").stderr
    assert isinstance(opened, Run)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    body = paper.as_latex(dataclasses.replace(record(), signature="a|b\n% c_d"))
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{body}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_in_a_browser(chrome, tmp_path, width, scheme):
    """No sideways scrolling, no error, nothing asked for; text with a contrast of 4.5 (WCAG 2 AA)."""
    page.save(tmp_path / "r.html", html(record("y" * 300), observations(more="x" * 500)))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chrome.get_log("performance")
    try:
        chrome.get((tmp_path / "r.html").as_uri())
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        contrasts = chrome.execute_script(CONTRAST)
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) > 50
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    assert chrome.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked <= {(tmp_path / "r.html").as_uri(), "data:,"}
