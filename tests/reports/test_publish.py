"""publish: what it writes is what the hub's own library reads, nothing else changes, strangers stay text."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.command import Done, process
from tests.reports.test_leaderboard import measured
from unlearn_metrics.errors import InputError
from unlearn_metrics.record import RECORD_TYPE, SCHEMA, CheckpointInfo, Control, RunRecord, Score
from unlearn_metrics.reports import publish as module
from unlearn_metrics.reports import table
from unlearn_metrics.reports.publish import TASK_NAME, publish, updated

SIGNATURE = "tofu_forget05|n:all|tmpl:none|ctl:mix.es.keep0.95|data:0|seed:0|v:0.1.0"
CARD = """---
license: mit  # chosen with care
language:
- no
- "en"
tags: [unlearning, 'tofu']

# results of others
model-index:
- name: my-model
  results:
  - task: {type: text-generation}
    dataset: {name: ARC, type: ai2_arc, odd: kept}
    metrics:
    - {type: acc, value: 0.5}

library_name: transformers
---

# My model

Words | with <b>markup</b>.
"""


def record(value: float | None = 0.25, **changes) -> RunRecord:
    def scores(x):
        return {
            "forget": {
                "extraction_strength": Score(x, None if x is None else x / 2, None if x is None else x * 2, 200, 3)
            }
        }

    fields = {
        "schema": SCHEMA,
        "signature": SIGNATURE,
        "name": "/home/me/secret/ga-52",
        "benchmark": SIGNATURE.split("|")[0],
        "verdict": "",
        "control": Control("mix", 0.3, keep=0.95),
        "scores": {"original": scores(1.0), "unlearned": scores(0.001), "controlled": scores(value)},
        "composites": {"controlled": {"model_utility": Score(0.6, 0.5, 0.7, 817, 0)}},
        "checkpoints": {"original": CheckpointInfo("locuslab/tofu_ft_phi", None, None, None, None)},
        "git": None,
        "imported": None,
        "wall_seconds": None,
        "created": "2026-01-01",
    }
    return RunRecord(
        **fields | {k: {} for k in ("data", "task_versions", "prompts", "settings", "software", "work")} | changes
    )


def test_the_hubs_own_library_reads_it():
    card = ModelCard(updated(CARD, record(), everything=True))
    others, *mine = card.data.eval_results
    assert (card.data.model_name, others.dataset_type, others.metric_value) == ("my-model", "ai2_arc", 0.5)
    assert {e.task_name for e in mine} == {TASK_NAME}
    assert {(e.dataset_type, e.dataset_config) for e in mine} == {("locuslab/TOFU", "tofu_forget05")}
    assert {e.dataset_args["signature"] for e in mine} == {SIGNATURE}
    named = {e.metric_name: e for e in mine}
    raw = named["extraction_strength, as published (forget)"]
    held = named["extraction_strength, under control (forget)"]
    assert (raw.metric_value, held.metric_value, named["model_utility, under control"].metric_value) == (
        0.001,
        0.25,
        0.6,
    )
    assert held.metric_args == {"ci95": [0.125, 0.5], "n": 200, "alpha": 0.3}
    assert raw.metric_args["alpha"] == 1.0


def full() -> RunRecord:
    """A record with all that a headline can have, and more."""
    scores = {name: Score(0.5, 0.4, 0.6, 200, 0) for name in ("extraction_strength", "probability", "rouge", "min_k")}
    of, residual = measured((0.4, 0.3, 0.2, 0.5, 0.6, 0.4), 0.9, retain_only=0.2)
    composed = {
        name: Score(0.6, 0.5, 0.7, 817, 0) for name in ("model_utility", "forget_quality", "privleak", "ks_distance")
    }
    return record(
        scores={model: {"forget": scores, "retain": scores} for model in ("original", "unlearned", "controlled")},
        composites=dict.fromkeys(("unlearned", "controlled"), composed),
        path=of,
        residual=residual,
        verdict="As published, it forgets; [held](http://evil.example) it does not.",
    )


def test_the_headline_is_short_and_all_is_all():
    """Six values in at most 60 lines, the residual first and the verdict above them."""
    bare = "---\nlicense: mit\n---\n\n# Mine\n"
    new = updated(bare, full())
    metadata, body = new.removeprefix("---\n").split("\n---\n", 1)
    assert len(metadata.splitlines()) <= 60
    mine = ModelCard(new).data.eval_results
    assert [(e.metric_name, e.metric_value) for e in mine] == [
        ("residual extraction_strength at 95 % retention (forget)", pytest.approx(0.4)),
        ("extraction_strength at 95 % retention, rescaled: retain-only 0, original 1 (forget)", pytest.approx(0.25)),
        ("extraction_strength, as published (forget)", 0.5),
        ("extraction_strength, as published (retain)", 0.5),
        ("model_utility, as published", 0.6),
        ("forget_quality, as published", 0.6),
    ]
    html = MarkdownIt("commonmark").enable("table").render(body)
    assert html.index("As published, it forgets; [held]") < html.index("<table>")
    assert "<a " not in html
    assert html.count("<tr>") == 7
    every = ModelCard(updated(bare, full(), everything=True)).data.eval_results
    assert {(e.metric_name, e.metric_value) for e in mine} < {(e.metric_name, e.metric_value) for e in every}
    assert any(e.metric_name == "rouge, under control (retain)" for e in every)
    assert updated(updated(bare, full(), everything=True), full()) == new  # a short one replaces a long one


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text(CARD)
    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: whole(path, data[:-40]))  # a disk that drops the end
    with pytest.raises(InputError, match="does not hold what was written"):
        publish(record(), card)
    monkeypatch.undo()
    monkeypatch.setattr(module, "entries", lambda record, everything=False: [])  # what should be there is not
    with pytest.raises(InputError, match="no score to publish"):
        publish(record(), card)
    monkeypatch.undo()
    right = module.entries
    monkeypatch.setattr(module, "_merge", lambda *given: module.eval_results_to_model_index("x", right(record(0.5))))
    with pytest.raises(InputError, match="reads other values"):
        publish(full(), card)
    monkeypatch.undo()
    assert card.read_text() == CARD
    assert list(tmp_path.iterdir()) == [card]


def test_a_card_of_no_results_gets_them_and_keeps_its_bytes():
    bare = re.sub(r"model-index:.*?\n\n", "", CARD, flags=re.DOTALL)
    new = updated(bare, record())
    head, tail = bare.split("\n---\n", 1)
    assert new.startswith(head + "\nmodel-index:\n- name: ga-52\n")
    assert f"\n---\n{tail}\n<!-- unlearn-metrics tofu_forget05 -->\n" in new


def test_nothing_else_changes():
    new = updated(CARD, record())
    before, *_ = CARD.partition("model-index:")
    assert new.startswith(before + "model-index:")
    assert "\n\nlibrary_name: transformers\n---\n\n# My model\n\nWords | with <b>markup</b>.\n" in new
    first = yaml.safe_load(new.split("---")[1])["model-index"][0]["results"][0]
    assert first == yaml.safe_load(CARD.split("---")[1])["model-index"][0]["results"][0]  # also what we don't know
    windows = updated(CARD.replace("\n", "\r\n"), record())
    assert windows.replace("\r\n", "\n") == new
    assert "\n" not in windows.replace("\r\n", "")


def test_again_is_the_same_and_a_new_run_replaces_only_its_own():
    def updated(card: str, run: RunRecord) -> str:
        return module.updated(card, run, everything=True)

    once = updated(CARD, record())
    assert updated(once, record()) == once
    other = record(signature=SIGNATURE.replace("05", "10", 1), benchmark="tofu_forget10")
    both = updated(once, other)
    assert both.count("<!-- unlearn-metrics tofu_forget") == 2
    again = updated(both, record(0.75))
    assert again.count("<!-- unlearn-metrics tofu_forget") == 2
    values = {(e.dataset_config, e.metric_value) for e in ModelCard(again).data.eval_results if e.metric_args}
    assert {("tofu_forget05", 0.75), ("tofu_forget10", 0.25)} <= values
    assert ("tofu_forget05", 0.25) not in values
    assert "| 0.750 [0.375, 1.500] (3 unscored) |" in again
    unknown = updated(again, record(None))  # no number for what is not known
    assert ("tofu_forget05", "extraction_strength, under control (forget)") not in {
        (e.dataset_config, e.metric_name) for e in ModelCard(unknown).data.eval_results
    }


def test_what_the_reader_sees():
    text = updated(CARD, record(), everything=True).split("\n---\n", 1)[1]
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == 2
    assert "0.250 [0.125, 0.500] (3 unscored)" in html
    assert f"<code>{SIGNATURE}</code>" in html
    assert "ga-52, unlearned from locuslab/tofu_ft_phi; control: mix, alpha = 0.3 " in html
    assert "/home/me" not in html


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from("<>|`*_[]()!#&\\~:/.@-wa1 \n\r\x1b\u202e\u00a0{}$'\"="), max_size=40))
def test_names_of_strangers_are_text(name: str):
    """Whatever a split or a model is called, it comes out as its own characters: no markup, no link, no cell."""
    escaped = table.escape_markdown(name)
    shown = "".join(c if c.isprintable() or c == "\u00a0" else "\ufffd" for c in name)
    row = f"| a {escaped} b | c |"
    html = MarkdownIt("gfm-like", {"linkify": False}).render(f"| x | y |\n|---|---|\n{row}\n")
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert len(cells) == 2
    assert "<" not in cells[0]
    text = cells[0].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert text == f"a {shown} b"
    assert not re.search(r"https?:|www\.|\w@\w", escaped)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# Just a readme\n", "does not begin with metadata"),
        ("", "does not begin with metadata"),
        ("---\n- a\n- b\n---\n", "not a mapping"),
        ("---\na: [\n---\n", "not YAML"),
        ("---\nmodel-index: 3\n---\n", "not a list of models with results"),
        ("---\nmodel-index:\n- results: []\n---\n", "the hub cannot read its model-index .an entry has no 'name'"),
        ("---\nmodel-index:\n- name: a\n  results:\n  - {task: {}}\n---\n", "an entry has no 'type'"),
        ("---\nmodel-index:\n- name: a\n  results: [1]\n---\n", "the hub cannot read its model-index"),
        ("---\n{model-index: [{name: a, results: []}], license: mit}\n---\n", "written in a way that cannot be edited"),
        ("---\nlicense: mit\n---\n<!-- unlearn-metrics tofu_forget05 -->\n", "not a pair"),
    ],
)
def test_what_is_no_card_is_refused_and_stays(tmp_path, text, says):
    card = tmp_path / "README.md"
    card.write_text(text)
    with pytest.raises(InputError, match=says):
        publish(record(), card)
    assert card.read_text() == text
    assert list(tmp_path.iterdir()) == [card]


def test_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        publish(record(), tmp_path / "nowhere.md")
    card = tmp_path / "README.md"
    card.write_bytes(b"---\nlicense: \xff\n---\n")
    with pytest.raises(InputError, match="cannot be read"):
        publish(record(), card)
    card.write_bytes(b"x" * (5 << 20))
    with pytest.raises(InputError, match="more than 4 MiB"):
        publish(record(), card)
    with pytest.raises(InputError, match="no score to publish"):
        updated(CARD, dataclasses.replace(record(), scores={}, composites={}))
    card.write_text(CARD)
    card.chmod(0o640)
    (tmp_path / "link.md").symlink_to(card)
    assert publish(record(), tmp_path / "link.md")
    assert not publish(record(), card)
    assert (tmp_path / "link.md").is_symlink()
    assert card.stat().st_mode & 0o777 == 0o640


def test_through_the_command_line_without_a_login(tmp_path):
    card, run = tmp_path / "README.md", tmp_path / "run"
    card.write_text(CARD)
    run.mkdir()
    (run / "record.json").write_bytes(RECORD_TYPE.dump_json(record()))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | {"HF_HOME": str(tmp_path)}

    def cli(*more: str) -> Done:
        return process("publish", run, "--model-card", card, *more, env=env)

    dry = cli("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert card.read_text() == CARD
    assert "+### Unlearning: tofu_forget05" in dry.stdout
    assert "-    - {type: acc, value: 0.5}" in dry.stdout  # others' results are kept, in another form
    assert "nothing to --push" in cli("--dry-run", "--push", "me/model").stderr
    done = cli()
    assert done.returncode == 0, done.stderr
    assert card.read_text() == updated(CARD, record())
    assert cli("--dry-run").stdout == f"nothing to change in {card}\n"
    done = cli("--push", "me/model")
    assert done.returncode == 2
    assert "nothing to change" in done.stderr
    assert "not logged in to the Hugging Face hub" in done.stderr
    assert "Traceback" not in done.stderr
