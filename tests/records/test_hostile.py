"""What strangers wrote: read or refused in one line, in bounded memory, inside the folder, and shown without effect."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import process, run
from tests.imports.test_imports import tofu_log, write
from tools import fuzz
from unlearn_metrics.cli.console import plain
from unlearn_metrics.documents import MAX_TEXT, SAMPLINGS
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs as imports
from unlearn_metrics.records import rescore, signature, store

hypothesis = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
READERS: dict[str, Callable[[Path], Any]] = {
    "record": store.load_record,
    "tofu": lambda path: imports.import_log("tofu", path),
    "open-unlearning": lambda path: imports.import_log("open-unlearning", path, benchmark="muse_news"),
}


def refused(read: Callable[[], Any]) -> str:
    """The line that refuses it."""
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tried(read: Callable[[], Any]) -> None:
    with contextlib.suppress(InputError):
        read()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return fuzz.seed_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def targets(tmp_path_factory) -> fuzz.Targets:
    return fuzz.Targets(tmp_path_factory.mktemp("fuzz"))


# --- property: anything at all


@pytest.mark.parametrize("kind", READERS)
@hypothesis
@given(data=st.binary(max_size=300) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_and_any_json(tmp_path, kind, data):
    path = tmp_path / "file.json"
    path.write_bytes(data)
    tried(lambda: READERS[kind](path))


@hypothesis
@given(st.text() | st.from_regex(r"[\w.]+(\|[a-z-]+:[\w.]+)*", fullmatch=True))
def test_any_signature(line):
    tried(lambda: signature.comparable(line))


@hypothesis
@given(texts=st.binary(max_size=300), tokens=st.binary(max_size=300))
def test_any_bytes_as_documents(tmp_path, texts, tokens):
    (tmp_path / store.TEXTS).write_bytes(texts)
    (tmp_path / store.TOKENS).write_bytes(tokens)
    refused(lambda: store.load_documents(tmp_path))


@pytest.mark.parametrize("target", fuzz.SHARES)
@hypothesis
@given(seed=st.integers(0, 2**32))
def test_mutations_of_valid_files(targets, target, seed):
    fuzz.feed(targets.targets[target], f"{seed}")


@pytest.mark.parametrize("fault", [ValueError("x"), InputError("x" * 5_000), MemoryError()])
def test_the_fuzzer_sees_faults(fault):
    def target(rng):
        raise fault

    with pytest.raises((ValueError, AssertionError, MemoryError)):
        fuzz.feed(target, "0")


# --- sizes


def limited(code: str, *arguments: Any, mebibytes: int = 700) -> str:
    """What `code` prints, in a process whose address space ends that far above what its imports took."""
    head = f"""
import resource, sys
from pathlib import Path
from unlearn_metrics.records import store
from unlearn_metrics.errors import InputError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ({mebibytes} << 20),) * 2)
try:
    {code}
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", head, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("count", "column"),
    [
        (20_000_000, pa.array(np.zeros(20_000_000, np.int32))),
        (1_000, pa.array([[0] * 100_000] * 1_000, pa.list_(pa.int32()))),
        (1_000, pa.array(["x" * 1_000_000 + str(i) for i in range(100)] * 10)),
    ],
    ids=["rows", "values", "text"],
)
def test_parquet_bombs(tmp_path, run_folder, count, column):
    """A hundred kilobytes that would unfold to hundreds of megabytes, written by a sane writer."""
    tokens = pa.types.is_list(column.type)
    names = {"role": "answer"} if tokens else {}
    constant = {k: pa.array([v] * count) for k, v in {"model": "original", "split": "forget", **names}.items()}
    table = {**constant, "id": pa.array(np.zeros(count, np.int32)), "cluster": pa.array(np.zeros(count, np.int32))}
    if tokens:
        del table["cluster"]
        table |= dict.fromkeys(("tokens", "argmax"), column)
        table |= dict.fromkeys(("logprob", "mean", "variance"), column.cast(pa.list_(pa.float32())))
    elif column.type == pa.string():
        table["generation"] = column
    for name in (store.TEXTS, store.TOKENS):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    path = tmp_path / (store.TOKENS if tokens else store.TEXTS)
    pq.write_table(pa.table(table), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    said = limited("store.load_documents(Path(sys.argv[1]))", tmp_path)
    assert "refused" in said or "characters" in said


def test_a_page_that_lies_about_its_size(tmp_path, run_folder):
    """A page header that declares 2 GB: refused, and never filled."""
    for name in (store.TEXTS, store.TOKENS):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    path = tmp_path / store.TEXTS
    column = pq.read_metadata(path).row_group(0)
    column = column.column(column.num_columns - 1)
    at = column.dictionary_page_offset or column.data_page_offset
    data = path.read_bytes()
    start = at + data[at : at + 4].index(b"\x15", 1)  # the second field of the header, uncompressed_page_size
    end = next(i for i in range(start + 1, start + 9) if data[i] < 128) + 1
    path.write_bytes(data[: start + 1] + b"\xfe\xff\xff\xff\x0f" + data[end:])
    assert "cannot be read" in limited("store.load_documents(Path(sys.argv[1]))", tmp_path)


@pytest.mark.parametrize("kind", READERS)
def test_json_that_is_too_large_too_deep_or_endless(tmp_path, kind):
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(store.MAX_RECORD_BYTES + 2)
    assert "too large" in refused(lambda: READERS[kind](path))
    for data in (b"[" * 200_000, b'{"a":' * 200_000, b"1" * 10_000, b'{"schema": 1, "schema": 2}'):
        path.write_bytes(data)
        refused(lambda: READERS[kind](path))
    for special in (lambda p: p.symlink_to("/dev/zero"), os.mkfifo):
        path.unlink()
        special(path)
        refused(lambda: READERS[kind](path))


@pytest.mark.parametrize("field", ["limit", "model", "model_args", "batch_size"])
def test_whole_numbers_that_no_float_holds(tmp_path, field):
    """Found by the fuzzer: `limit` of lm-eval's own results is written into the signature as a float."""
    results = fuzz.lm_eval_results()
    for number, says in ((10**308, None), (2 * 10**308, "309 digits"), (-(10**400), "401 digits")):
        results["config"][field] = number
        write(tmp_path / "results_2026-01-02T03-04-05.000001.json", results)
        line = refused(lambda: imports.import_logs("lm-eval", tmp_path))
        assert says is None or says in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({str(i): 1.0 for i in range(6_000)}, "more than 5,000 documents"),
        ({"0": 1.0, "00": 1.0}, "no row number"),
        ({"99999999999999999999": 1.0}, "no row number"),
        ({"0": 1e300}, "out of range"),
        ({"0": True}, "is no number"),
    ],
)
def test_logs_with_hostile_rows(tmp_path, change, says):
    log = tofu_log(3)
    log["eval_log.json"]["avg_gt_loss"] = change
    assert says in refused(lambda: READERS["tofu"](write(tmp_path / "log.json", log)))


def test_long_texts_are_refused_where_they_would_be_compared(tmp_path, run_folder):
    record, seen = store.load_record(run_folder), store.load_documents(run_folder)
    seen["unlearned"]["forget"][0]["generation"] = "a " * MAX_TEXT
    store.save(tmp_path / "run", record, seen)
    assert "characters" in refused(lambda: rescore.rescore(tmp_path / "run"))


# --- what the types of a table can't say


def changed(run_folder: Path, tmp_path: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    for file in (store.TEXTS, store.TOKENS):
        (tmp_path / file).write_bytes((run_folder / file).read_bytes())
    pq.write_table(change(pq.read_table(tmp_path / name)), tmp_path / name)
    return tmp_path


def column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table.schema.field(name).type))


def first_list(table: pa.Table, name: str, value: Any) -> pa.Table:
    values = table.column(name).to_pylist()
    at = next(i for i, v in enumerate(values) if v)
    values[at] = [value, *values[at][1:]]
    return column(table, name, values)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (store.TEXTS, lambda t: t.drop_columns(["question"]), None),  # a column more or less is no fault
        (store.TEXTS, lambda t: t.drop_columns(["split"]), "no column 'split'"),
        (store.TEXTS, lambda t: t.append_column("id", t.column("id")), "column twice"),
        (store.TEXTS, lambda t: t.append_column("logged_bogus", pa.nulls(len(t), pa.float64())), "does not belong"),
        (store.TEXTS, lambda t: pa.concat_tables([t, t]), "there twice"),
        (store.TEXTS, lambda t: column(t, "model", ["../../x"] * len(t)), "unknown model '../../x'"),
        (store.TEXTS, lambda t: column(t, "id", [None] * len(t)), "without a value"),
        (store.TOKENS, lambda t: pa.concat_tables([t, t]), "there twice"),
        (store.TOKENS, lambda t: column(t, "id", [2**31 - 1] * len(t)), "no known document"),
        (store.TOKENS, lambda t: column(t, "role", ["x"] * len(t)), "no known document or role"),
        (store.TOKENS, lambda t: first_list(t, "logprob", 5.0), "above 0"),
        (store.TOKENS, lambda t: first_list(t, "top40", 5.0), "above 0"),
        (store.TOKENS, lambda t: first_list(t, "top40", -math.inf), None),  # a token that is never drawn
        (store.TOKENS, lambda t: t.drop_columns([*SAMPLINGS]), None),  # of an older version
        (store.TOKENS, lambda t: first_list(t, "mean", float("inf")), "infinite"),
        (store.TOKENS, lambda t: first_list(t, "logprob", None), "a null"),
        (store.TEXTS, lambda t: column(t, "logged_min_k", [float("inf")] * len(t)), "no value"),
        (
            store.TEXTS,
            lambda t: column(t, "clean_probability", [1.5] * len(t)),
            "clean_probability is 1.5, not between 0 and 1",
        ),
        (
            store.TEXTS,
            lambda t: column(t, "clean_probability", [float("nan")] * len(t)),
            "clean_probability is nan, not between 0 and 1",
        ),
        (store.TEXTS, lambda t: column(t, "revealed", [-1] * len(t)), "revealed is more than an answer has, or less"),
        (store.TEXTS, lambda t: column(t, "patched", [[0.5], [0.5, 1]] + [None] * (len(t) - 2)), "the same layers"),
        (store.TEXTS, lambda t: column(t, "patched", [[0.5, None]] + [None] * (len(t) - 1)), "a finite number"),
        (store.TEXTS, lambda t: column(t, "lens", [[float("nan")]] * len(t)), "a finite number"),
        (store.TEXTS, lambda t: column(t, "lens", [[]] * len(t)), "a finite number"),
        (store.TEXTS, lambda t: column(t, "lens", [[1e9, -1e9]] + [None] * (len(t) - 1)), None),
        (store.TEXTS, lambda t: column(t, "revealed", [10**6] * len(t)), "revealed is more than an answer has"),
        (store.TOKENS, lambda t: first_list(t, "tokens", None), "a null"),
        (store.TOKENS, lambda t: column(t, "loss", [-1.0] * len(t)), "no mean loss"),
        (store.TOKENS, lambda t: column(t, "loss", [float("nan")] * len(t)), "no mean loss"),
        (store.TOKENS, lambda t: column(t, "loss", [None] * len(t)), "without tokens"),
    ],
)
def test_tables_that_save_would_not_write(tmp_path, run_folder, name, change, says):
    folder = changed(run_folder, tmp_path, name, change)
    if says is None:
        store.load_documents(folder)
    else:
        assert says in refused(lambda: store.load_documents(folder))


def test_text_that_is_no_utf8(tmp_path, run_folder):
    def change(table: pa.Table) -> pa.Table:
        bad = pa.array([b"\xff\xfe"] * len(table), pa.binary()).view(pa.string())
        return table.set_column(table.column_names.index("reference"), "reference", bad)

    folder = changed(run_folder, tmp_path, store.TEXTS, change)
    assert "cannot be read" in refused(lambda: store.load_documents(folder))


# --- claims that contradict each other


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": {"ci_low": 0.9, "ci_high": 0.1}}, "no interval from 0.9 to 0.1"),
        ({"scores": {"ci_low": 0.1, "ci_high": None}}, "no interval"),
        ({"scores": {"n": 0}}, "a value, but no document"),
        ({"scores": {"n": 77}}, "count different documents"),
        ({"scores": {"n": -1}}, "greater than or equal to 0"),
        ({"composites": {"n": 0, "ci_low": None, "ci_high": None}}, "a value, but no document"),
        ({"benchmark": "tofu_forget10"}, "of another benchmark"),
        ({"imported": None}, "disagree on whether it was imported"),
        ({"control": {"method": "mix"}}, "disagree on whether there was a control"),
        ({"control": {"alpha": 1.5}}, "less than or equal to 1"),
        ({"control": {"alpha": 0.5}}, "no control, but"),
        ({"control": {"keep": 1.5}}, "keeps a share of 1.5"),
        ({"created": 5}, "valid string"),
        ({"extra": 5}, "extra"),
        ({"models": "x"}, "unknown model"),
    ],
)
def test_contradictions_are_refused(tmp_path, run_folder, change, says):
    raw = json.loads((run_folder / store.RECORD).read_text())
    for part, value in change.items():
        if part == "scores":
            raw["scores"]["unlearned"]["forget"]["probability"] |= value
        elif part == "composites":
            raw["composites"]["unlearned"]["auc_loss"] |= value
        elif part == "models":
            raw["scores"][value] = {}
        elif isinstance(value, dict):
            raw[part] |= value
        else:
            raw[part] = value
    said = refused(lambda: store.load_record(write(tmp_path / "record.json", raw)))
    assert says in said.replace("Extra inputs", "extra")


# --- the terminal, and the disk

EVIL = "[bold]x[/] \x1b[2J\x1b]0;title\x07 \u202egnp.exe :smile: <script>"


def test_hostile_names_are_shown_not_obeyed(tmp_path, run_folder):
    record, seen = store.load_record(run_folder), store.load_documents(run_folder)
    seen["unlearned"][EVIL] = seen["unlearned"].pop("holdout")
    scores = {**record.scores, "unlearned": {**record.scores["unlearned"]}}
    scores["unlearned"][EVIL] = scores["unlearned"].pop("holdout")
    store.save(tmp_path / "run", replace(record, scores=scores, composites={}, name=EVIL, verdict=EVIL), seen)
    done = process("rescore", "-v", tmp_path / "run", env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "250"})
    assert done.returncode == 0, done.stderr
    assert "[bold]x[/] \ufffd[2J" in done.stdout
    for escape in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "😄"):
        assert escape not in done.stdout


def test_hostile_file_names_in_errors(tmp_path):
    path = tmp_path / "a\x1b[31m\nb[bold].json"
    path.write_text("[]")
    done = run("import", "tofu", path, "--out", tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "[bold]" in done.stderr


@given(st.text())
def test_plain_text_has_no_controls(text):
    assert all(c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" for c in plain(text))
    assert not text.isprintable() or plain(text) == text


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a\0b", "..", ""])
def test_names_make_no_paths(tmp_path, name):
    inner = tmp_path / "a" / "b"
    record, seen = imports.import_log("tofu", write(inner / "log.json", tofu_log(3)), None, name, "tofu_forget10")
    before = {*tmp_path.rglob("*")}
    store.save(inner / "run", record, seen)
    assert {p.parent for p in {*tmp_path.rglob("*")} - before} <= {inner, inner / "run"}
    assert not Path("/tmp/escaped").exists()
