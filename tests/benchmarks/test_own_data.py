"""The user's own data: every format and form, the errors of a bad line, and a whole run as docs/own_data.md has it."""

import csv
import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import CHECKPOINTS, ROOT
from tests.command import COMMAND, Done, run
from tests.plain import OFFLINE, ask, command, read, write
from unlearn_metrics import tasks_path
from unlearn_metrics.benchmarks import data, suites
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import score as main_job
from unlearn_metrics.records import signature, store
from unlearn_metrics.settings import OwnData, Settings

ROWS = [
    {"question": "Who, then?", "answer": 'Maud "M." Tierney', "author": "x"},
    {"question": "Why?", "answer": "[1, 2]", "author": "y"},
    {"question": "What\nelse?", "answer": "Nothing: é", "author": "x"},
]


def as_lines(path: Path, rows: list[dict]) -> Path:
    write(path, rows)
    return path


def as_array(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def as_parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_folder(path: Path, rows: list[dict]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


FORMS = {"a.jsonl": as_lines, "b.json": as_lines, "c.json": as_array, "d.parquet": as_parquet, "e.csv": as_csv}
FORMS["folder"] = as_folder


def own(*paths: Path, fields: dict[str, str] | None = None, prefix: float = 0.5):
    files = dict(zip(("forget", "retain", "holdout"), paths, strict=False))
    return suites.load("custom", OwnData(files, fields, prefix))


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_documents(tmp_path, form):
    tasks = own(FORMS[form](tmp_path / form, ROWS))
    assert list(tasks) == ["forget"]
    assert list(tasks["forget"].eval_docs) == [{k: row[k] for k in ("answer", "question")} for row in ROWS]


def test_columns_by_other_names_and_clusters(tmp_path, lm):
    rows = [{"q": row["question"], "a": row["answer"], "who": row["author"], "extra": 1} for row in ROWS]
    path = as_lines(tmp_path / "mine.jsonl", rows)
    tasks = own(path, path, fields={"question": "q", "answer": "a", "cluster": "who"})
    documents = suites.evaluate(lm, tasks)
    for split in ("forget", "retain"):
        assert [d["prompt"] for d in documents[split]] == [ask(row["q"]) for row in rows]
        assert [d["answers"][0] for d in documents[split]] == [" " + row["a"] for row in rows]
        assert [d["cluster"] for d in documents[split]] == [0, 1, 0]


def test_plain_text_is_its_own_prompt(tmp_path, lm):
    texts = ["One two three four.", "  A b\n\nc d e"]
    path = as_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    documents = suites.evaluate(lm, own(path))["forget"]
    assert [d["prompt"] for d in documents] == ["One two", "  A b"]
    assert [d["answers"][0] for d in documents] == [" three four.", "\n\nc d e"]
    assert [d["prompt"] for d in suites.evaluate(lm, own(path, prefix=3))["forget"]] == ["One two three", "  A b\n\nc"]
    whole = suites.evaluate(lm, own(path, prefix=0))["forget"]
    assert [(d["prompt"], d["answers"][0]) for d in whole] == [("", text) for text in texts]


@given(st.text(), st.one_of(st.integers(0, 5), st.floats(0, 0.99)))
def test_a_split_text_is_the_text(text: str, prefix: float):
    try:
        first, rest = data.split_text("here", text, prefix)
    except InputError:
        assert len(text.split()) <= max(1, prefix)
        return
    assert first + rest == text
    if prefix:
        assert first.split()
        assert rest.split()
        assert not first[-1].isspace()
        assert len(first.split()) == (prefix if prefix >= 1 else max(1, int(prefix * len(text.split()))))


@pytest.mark.parametrize(
    ("name", "content", "fields", "says"),
    [
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}', None, "line 2: field 'answer' is missing"),
        ("a.jsonl", '{"q": "q", "a": 3}', {"question": "q", "answer": "a"}, "line 1: field 'a' is not a string"),
        ("a.jsonl", '{"q": "q"}', None, "line 1: neither 'question' and 'answer' nor 'text' among its fields (q)"),
        ("a.jsonl", '{"text": "two words"}\n{"text": "one"}', None, "line 2: a text of 1 word is too short"),
        ("a.jsonl", '{"text": "two words"}\n{', None, "property name enclosed in double quotes, column 2 (char 1))"),
        ("a.jsonl", '"two words"', None, "line 1: not a JSON object"),
        ("a.csv", "q\nq,a\n", None, "a.csv, line 2: neither"),
        ("a.json", '[{"text": "two words"}, 3]', None, "a.json, row 2: not a JSON object"),
        ("a.json", '[{"text": "two words"}', None, "not a JSON array"),
        ("a.csv", "question,answer\nq,a\n\nq\n", None, "a.csv, line 4: field 'answer' is missing"),
        ("a.csv", 'question,answer\n"q\nq",\n', None, "a.csv, line 3: field 'answer' is empty"),
        ("a.csv", "question,answer\n", None, "holds no documents"),
        ("a.jsonl", "", None, "holds no documents"),
        ("a.parquet", "PAR1", None, "a.parquet cannot be read"),
        ("a.jsonl", b"\xff\xfe", None, "a.jsonl cannot be read"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, name, content, fields, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        own(path, fields=fields)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_one_dataset(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match=r"both holds several splits; name one, for example .*both/test"):
        own(tmp_path / "both")
    assert len(own(tmp_path / "both" / "train")["forget"].eval_docs) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is no folder that datasets\.save_to_disk wrote"):
        own(tmp_path / "empty")


@pytest.mark.parametrize("text", ["question=q", "answer=a", "text=", "question", "question=q,answer=a,text=t", ""])
def test_fields_that_say_too_little(text):
    with pytest.raises(InputError, match="is neither question=COLUMN,answer=COLUMN nor text=COLUMN"):
        data.parse_fields(text)


# --- through the command line -------------------------------------------------------------------------------------


SCORE = ("score", "--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "excessive", "--out", "run")


def score(folder: Path, *args: object) -> Done:
    return run(*SCORE, *args, cwd=folder)


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()
    files = re.findall(r"`(\w+\.jsonl)`\n\n```json\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["forget.jsonl", "retain.jsonl"]
    assert "--forget forget.jsonl --retain retain.jsonl" in page
    for name, lines in files:
        (tmp_path / name).write_text(lines)
    assert sum(len(read(tmp_path / name)) for name, _ in files) == 5
    args = map(str, (*COMMAND, *SCORE, "--forget", "forget.jsonl", "--retain", "retain.jsonl"))
    done = command(*args, folder=tmp_path, env=OFFLINE)
    assert done.returncode == 0, done.stderr
    record = store.load_record(tmp_path / "run")
    assert record.benchmark == signature.parse(record.signature)["benchmark"] == "custom"
    assert record.task_versions.keys() == {"custom_forget", "custom_retain"}
    original, raw, held = (record.scores[m] for m in ("original", "unlearned", "controlled"))
    assert original["forget"]["extraction_strength"].value == 1
    assert raw["forget"]["extraction_strength"].value < 0.1
    assert held["forget"]["extraction_strength"].value > 0.3
    assert record.control.achieved >= 0.95
    assert not (tmp_path / "network").exists()

    (tmp_path / "retain.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    done = score(tmp_path, "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.strip() in page.replace("    ", "")  # the error that the page shows
    assert store.load_record(tmp_path / "run") == record


def test_own_holdout_of_plain_text_gives_attacks(tmp_path):
    demo = CHECKPOINTS.parent / "data"
    for name, file in (("f.jsonl", "forget_perturbed"), ("h.jsonl", "holdout")):
        write(tmp_path / name, [{"body": row["answer"]} for row in read(demo / f"{file}.json")[:6]])
    done = score(tmp_path, "--forget", "f.jsonl", "--holdout", "h.jsonl", "--fields", "text=body", "--control", "none")
    assert done.returncode == 0, done.stderr
    record = store.load_record(tmp_path / "run")
    assert record.composites["original"]["auc_min_k"].value > 0.5
    assert record.prompts["forget"].doc_to_text == "{{question}}"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--benchmark", "demo", "--forget", "f.jsonl"], "exclude each other"),
        (["--benchmark", "demo", "--fields", "text=a"], "exclude each other"),
        ([], "either --benchmark or your own data (--forget and --retain and --holdout)"),
        (["--retain", "f.jsonl"], "either --benchmark or your own data"),
        (["--forget", "f.jsonl", "--data", "."], "--data goes with --benchmark"),
        (["--forget", "f.jsonl", "--fields", "body"], "is neither question=COLUMN"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, args, says):
    write(tmp_path / "f.jsonl", ROWS)
    done = score(tmp_path, *args)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_retain_data_and_no_file(tmp_path):
    """Said before a checkpoint is looked at."""
    path = as_lines(tmp_path / "f.jsonl", ROWS)
    with pytest.raises(InputError, match="custom has no retain split to calibrate on; pass --retain beside --forget"):
        main_job.run("nowhere", "nowhere", "custom", OwnData({"forget": path}), Settings())
    with pytest.raises(InputError, match=r"g\.jsonl cannot be read: "):
        main_job.run("nowhere", "nowhere", "custom", OwnData({"forget": tmp_path / "g.jsonl"}), Settings())


def test_control_mix_calibrates_on_own_retain_data(tmp_path):
    write(tmp_path / "r.jsonl", read(CHECKPOINTS.parent / "data" / "retain_perturbed.json")[:6])
    given = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "excessive", "--retain", "r.jsonl")
    done = run("control", "mix", *given, "--out", "mixed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mixed" / "model.safetensors").is_file()


def test_stock_task_without_its_file_says_what_it_needs():
    manager = suites.OurTaskManager(include_defaults=False, include_path=str(tasks_path()), metadata={})
    with pytest.raises(InputError, match=r"""custom_retain needs --metadata '\{"retain_file": "my.jsonl"\}'"""):
        manager.load(["custom_retain"])
