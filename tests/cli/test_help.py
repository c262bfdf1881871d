"""What a user sees before anything runs: help, versions, typing errors, what is to come."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unlearn_metrics as um
from tests import CHECKPOINTS, DATA, ROOT
from tests.command import run, score_of
from unlearn_metrics.benchmarks import data, suites
from unlearn_metrics.jobs import ahead
from unlearn_metrics.settings import Settings

SCORE = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "excessive", "--benchmark", "demo")


def helped(*args: str, width: int = 80, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    done = run(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [60, 80, 100])
def test_names_of_options_are_whole_at_every_width(width, monkeypatch):
    text = helped("score", "-h", width=width, monkeypatch=monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    for setting in Settings.__dataclass_fields__.keys() - {"seed"}:
        assert f"--{setting.replace('_', '-')} " in text
    panels = re.findall(r"╭─ (\w+) ─", text)
    assert panels == ["What", "Control", "Reference", "Run"]
    assert "<" not in text  # no column of types
    assert "[default: 0.5]" in text


def test_examples_can_be_copied(monkeypatch):
    """Folded as a shell takes them, options beside their values; what is no command is as it was written."""
    text = helped("score", "--help", monkeypatch=monkeypatch)
    first = re.search(r"^  unlearn-metrics score (?:.*\\\n)*.*", text, re.MULTILINE)
    assert first is not None
    assert "--benchmark tofu_forget05" in first[0]
    assert " ".join(first[0].replace("\\\n", "").split()).endswith("--retain-model retain95 --out runs/ga-52")
    plan = helped("sweep", "-h", monkeypatch=monkeypatch)
    assert "  controls: [none, {control: mix, keep: 0.95}]\n" in plan


def test_every_command_takes_quiet_and_json(monkeypatch):
    """But lm-eval's, whose options are its own."""
    names = re.findall(r"^│ ([a-z][a-z-]+)  ", helped("-h", monkeypatch=monkeypatch), re.MULTILINE)
    assert {"score", "compare", "leaderboard", "import"} <= {*names}
    for name in {*names} - {"lm-eval", "import"}:
        text = helped(name, "-h", monkeypatch=monkeypatch)
        assert "--quiet" in text, name
        assert "--json" in text, name


def test_version_and_completion():
    assert run("-V").stdout == run("--version").stdout == f"{um.__version__}\n"
    asks = {
        "_UNLEARN_METRICS_COMPLETE": "complete_bash",
        "COMP_WORDS": "unlearn-metrics score --benchmark tofu_forget01_p",
    }
    code = "import sys; sys.argv = ['unlearn-metrics']; from unlearn_metrics.cli import main; main()"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | asks | {"COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["tofu_forget01_paper", "tofu_forget01_paraphrased", "tofu_forget01_privacy"]


def test_benchmarks_are_named_by_their_files():
    """Which is read without lm-eval."""
    assert data.names() == sorted(suites.benchmarks())


REFUSED = [
    (("--original", "/no/where"), "checkpoint /no/where is not a folder"),
    (("--unlearned", str(CHECKPOINTS / "excesive")), "is not a folder; did you mean excessive?"),
    (("--benchmark", "tofu_forget5"), "unknown benchmark 'tofu_forget5'; did you mean tofu_forget05"),
    (("--data", "/no/where"), "data folder /no/where does not exist"),
    (("--control", "mixx"), "--control: there is no control 'mixx'; did you mean mix?"),
    (("--control", "zzz"), "'zzz'; there are mix, trim, layers, temperature, select, none"),
    (("--dtype", "flot16"), "--dtype: there is no 'flot16'; did you mean float16"),
    (("--reference-from", "retain"), "--reference-from: there is no 'retain'; did you mean retain_only?"),
    (("--model_args", "foo=1"), "--model-args: there is no 'foo' to set; there are "),
    (("--reference-record", "/no/where"), "/no/where holds no run"),
    (("--attacks", "relearn=/no/where"), "checkpoint /no/where is not a folder"),
]
NOT_ATTACKED = [
    (("/no/where", "--attacks", "int8"), "/no/where"),
    (("/no/where", "--attacks", "itn8"), "--attacks: unknown attack 'itn8'; did you mean int8"),
    (
        ("itn8", "--model", str(CHECKPOINTS / "original"), "--out", "/no/where"),
        "unknown attack 'itn8'; did you mean int8",
    ),
    (("int8", "--model", "/no/where", "--out", "/no/where/else"), "checkpoint /no/where is not a folder"),
]


def test_what_is_not_there_is_told_before_torch_is_imported(tmp_path):
    """Each in one line, by a process that has imported neither torch nor transformers."""
    commands = [[*map(str, score_of(tmp_path / "run")), *more] for more, _ in REFUSED]
    commands += [["attack", *more] for more, _ in NOT_ATTACKED]
    refused = [*REFUSED, *NOT_ATTACKED]
    code = (
        "import json, sys\nfrom unlearn_metrics.cli import main\n"
        "for arguments in json.loads(sys.stdin.read()):\n"
        "    sys.argv = ['unlearn-metrics', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        print(end.code)\n"
        "print({'torch', 'transformers', 'lm_eval', 'datasets'} & {*sys.modules})"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), env=env, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == ["2"] * len(refused) + ["set()"], done.stderr
    for line, (_, says) in zip(done.stderr.splitlines(), refused, strict=True):
        assert says in line
    assert "not 'foo" not in done.stderr  # what was given is said once


def test_options_may_be_spelled_as_lm_eval_does(tmp_path):
    done = run("score", *SCORE, "--apply_chat_template", "--data", "/no/where", "--out", tmp_path / "run")
    assert "error: data folder /no/where does not exist" in done.stderr


def test_dry_run_counts_what_a_run_observes(tmp_path, monkeypatch):
    """Positions are those of the tokens that the same run stores; nothing is written."""
    out = tmp_path / "run"
    done = run("score", *SCORE, "--data", DATA, "--out", out, "--dry-run", "--limit", 4, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not out.exists()
    assert done.stderr == ""
    found = json.loads(done.stdout)
    observed = um.score(
        CHECKPOINTS / "original", CHECKPOINTS / "excessive", benchmark="demo", data=DATA, limit=4, control="none"
    ).observations["unlearned"]
    for split, documents in observed.items():
        scored = [v for d in documents for k, v in d.items() if k in ("answer", "true_answer", "paraphrased_question")]
        scored += [wrong for d in documents for wrong in d.get("wrong_answers", ())]
        assert found["splits"][split]["positions"] == sum(len(scores.tokens) for scores in scored)
        assert found["splits"][split]["generations"] == sum("generation" in d for d in documents)
        assert found["splits"][split]["documents"] == 4
        assert found["splits"][split]["clusters"] == len({d["cluster"] for d in documents})
    assert found["evaluations"] == {"whole": 3, "mix": ahead.MIXES}
    assert found["seconds"] > 0
    told = run("score", *SCORE, "--data", DATA, "--out", out, "--dry-run", "--limit", 4)
    assert "forget: 4 documents, 1 cluster, " in told.stdout
    few = "--limit 4 leaves too few clusters for intervals, which need 5: 1 of forget, 1 of retain"
    assert f"{few}; --sample 4 draws from all of them" in told.stderr


def test_time_left_by_hand():
    """Three of four wholes are to come, at 60 s, and 10 mixes: at most as long, then at 3 s."""
    clock = ahead.Clock({"whole": 3, "mix": 10})
    assert clock.left() == ""
    clock.took["whole"] = [1.0, 60.0]
    assert clock.left() == ", at most about 13 min left"
    clock.took["mix"] = [3.0]
    assert clock.left() == ", about 3 min left"
    clock.then = "attacks"
    assert clock.left() == ", about 3 min left before attacks"
    clock.to_come = {"whole": 0, "mix": 3}
    assert clock.left() == ""
    assert [ahead.spoken(s) for s in (59.6, 100, 7300)] == ["60 s", "100 s", "2 h 1 min"]


@pytest.mark.parametrize(("text", "found"), [
    ("question;answer\nq, with a comma;a\n", {"question": "q, with a comma", "answer": "a"}),
    ("question\tanswer\nq; and\ta, b\n", {"question": "q; and", "answer": "a, b"}),
    ('question,answer\n"q, r",a;b\n', {"question": "q, r", "answer": "a;b"}),
])  # fmt: skip
def test_columns_may_be_parted_by_commas_semicolons_and_tabs(text, found, tmp_path):
    for suffix in (".csv", *([".tsv"] if "\t" in text else [])):
        path = tmp_path / f"mine{suffix}"
        path.write_text(text)
        assert [row for _, row in data.rows(path)] == [found]


def test_a_missing_field_names_the_columns(tmp_path: Path):
    path = tmp_path / "mine.csv"
    path.write_text("q;a\nx;y\n")
    with pytest.raises(um.InputError, match=r"mine.csv, line 2: field 'question' is missing; the columns are q, a$"):
        data.documents("mine", data.rows(path), {"question": "question"})


@pytest.mark.parametrize("command", ["show", "leaderboard", "control", "import lm-eval", "compare"])
def test_usage_names_arguments_as_a_shell_takes_them(command, monkeypatch):
    """Typer puts what is needed into braces."""
    usage = next(
        line for line in helped(*command.split(), "-h", monkeypatch=monkeypatch).splitlines() if "Usage" in line
    )
    assert re.fullmatch(r"Usage: unlearn-metrics [a-z -]+ \[OPTIONS\]( [A-Z_]+(\.\.\.)?)+", usage)
