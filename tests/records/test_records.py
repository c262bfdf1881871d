"""Records: their published schema, scoring them again, and runs that are killed and go on."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

import unlearn_metrics
from tests.command import COMMAND, process, score_of
from tests.command import run as run_it
from tools.kills import started, warm
from unlearn_metrics.documents import TOKEN_SCORE_FIELDS, Document, MeanLoss, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, retention, value, values
from unlearn_metrics.record import SCHEMA, Score
from unlearn_metrics.records import folder, rescore, store
from unlearn_metrics.scores.scoring import score_all

PACKAGE = Path(unlearn_metrics.__file__).parent
KILLS = 8
hypothesis = settings(deadline=None, max_examples=300)
LIMIT = ("--limit", 6)


# --- real runs, each in a process of its own; torch is imported once, in the server they are forked from -----------


def start(out: Path, *more: object, die_at: int | None = None) -> tuple[BaseProcess, Path]:
    log = out.with_suffix(".log")
    return started(score_of(out, *LIMIT, *more), log, die_at), log


def finish(out: Path, *more: object, die_at: int | None = None) -> tuple[int | None, str]:
    process, log = start(out, *more, die_at=die_at)
    process.join(120)
    return process.exitcode, log.read_text()


def everything(out: Path) -> tuple[object, ...]:
    """A run without what may differ: when it was made and how long that took. Fails if it is not whole."""
    record = replace(store.load_record(out), wall_seconds=0, created="")
    store.load_documents(out)
    # as text, in which NaN equals itself
    return record, *(repr(pq.read_table(out / name).to_pylist()) for name in (store.TEXTS, store.TOKENS))


def is_whole_or_absent(out: Path) -> bool:
    """Whether there is a record; if not, that nobody takes what is there for one."""
    if (out / store.RECORD).exists():
        everything(out)
        return True
    with pytest.raises(InputError, match="holds no run"):
        store.load_record(out)
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run_it(*score_of(out, *LIMIT))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted([store.RECORD, store.TEXTS, store.TOKENS])
    return out


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_undisturbed(undisturbed, tmp_path):
    """SIGKILL, up to three times for each run, then left alone. `python -m tools.kills` kills more."""
    expected = everything(undisturbed)
    rng = random.Random(KILLS)
    warm()
    begun = time.monotonic()
    assert finish(tmp_path / "alone")[0] == 0
    seconds = time.monotonic() - begun
    assert everything(tmp_path / "alone") == expected
    killed = resumed = 0
    for run in itertools.count():
        out = tmp_path / f"run-{run}"
        for _ in range(3):
            begun = time.monotonic()
            process, _ = start(out)
            process.join(rng.uniform(0, seconds))
            if process.exitcode is not None:  # a run takes less than it did: kill the next sooner
                seconds = min(seconds, time.monotonic() - begun)
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            if is_whole_or_absent(out):
                break
        else:
            code, log = finish(out)
            assert code == 0, log
            assert not (out / folder.PARTIAL).exists()
            resumed += "taken from an unfinished run" in log
        assert everything(out) == expected
        if killed >= KILLS and (resumed or run >= 20):
            break
    assert resumed


@pytest.mark.slow
def test_killed_between_writing_and_naming_a_file_it_ends_as_if_undisturbed(undisturbed, tmp_path):
    """Each attempt completes two files and dies with the next written, but not named; the run's own come last."""
    out, attempts, kept = tmp_path / "run", 0, -1
    while (found := len(list(out.glob(".partial/*/*.npz")))) > kept:
        kept, attempts = found, attempts + 1
        assert finish(out, die_at=3)[0] == -signal.SIGKILL
        assert not is_whole_or_absent(out)
    assert attempts > 5  # three models, the points of the calibration, the judged texts
    assert (out / store.TEXTS).exists()  # the tables have their names, the record has none
    assert finish(out, die_at=2)[0] == -signal.SIGKILL
    assert not is_whole_or_absent(out)
    code, log = finish(out)
    assert code == 0, log
    assert "evaluating" in log
    assert log.count("taken from an unfinished run") == kept
    assert everything(out) == everything(undisturbed)
    assert sorted(path.name for path in out.iterdir()) == sorted([store.RECORD, store.TEXTS, store.TOKENS])


@pytest.mark.slow
def test_other_settings_take_nothing_from_an_unfinished_run(tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert finish(alone, "--alpha", 0.4)[0] == 0
    assert finish(out, "--alpha", 0.5, die_at=3)[0] == -signal.SIGKILL
    code, log = finish(out, "--alpha", 0.4)
    assert code == 0, log
    assert "unfinished run with other settings, data or software: not used" in " ".join(log.split())
    assert "taken from" not in log
    assert everything(out) == everything(alone)
    assert not (out / folder.PARTIAL).exists()


@pytest.mark.slow
def test_an_old_run_stays_until_the_new_one_is_written(undisturbed, tmp_path):
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    assert finish(out, "--alpha", 0.5, "--overwrite", die_at=4)[0] == -signal.SIGKILL
    assert everything(out) == everything(undisturbed)
    assert finish(out, "--alpha", 0.5, "--overwrite")[0] == 0
    assert store.load_record(out).control.alpha == 0.5


def test_a_folder_has_one_writer(tmp_path):
    out = tmp_path / "run"
    with folder.claim(out, overwrite=False):
        done = run_it(*score_of(out, *LIMIT))
        assert done.returncode == 2
        assert "another process is writing a run to" in done.stderr
    assert not out.exists()  # nothing was done, nothing is left
    out.mkdir()
    (out / store.TOKENS).write_text("somebody's own")
    with pytest.raises(InputError, match="not empty and holds no run"), folder.claim(out, overwrite=False):
        pass
    assert [path.name for path in out.iterdir()] == [store.TOKENS]


floats = st.floats(width=32) | st.sampled_from([-0.0, math.nan, -math.inf])
token_scores = st.integers(2, 5).flatmap(
    lambda n: st.builds(
        lambda ids, numbers: TokenScores.from_lists([*ids, *numbers]),
        st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n), min_size=2, max_size=2),
        st.lists(st.lists(floats, min_size=n, max_size=n), min_size=3, max_size=3),
    )
)
stage_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | token_scores,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def bits(found: object) -> object:
    if isinstance(found, TokenScores):
        return "scores", *((a.dtype, a.tobytes()) for a in (getattr(found, name) for name in TOKEN_SCORE_FIELDS))
    if isinstance(found, dict):
        return {key: bits(inner) for key, inner in found.items()}
    if isinstance(found, list):
        return [bits(inner) for inner in found]
    return repr(found)


@hypothesis
@given(stage_values)
def test_a_stage_comes_back_bit_for_bit(tmp_path_factory, found):
    kept = tmp_path_factory.mktemp("stages")
    said: list[str] = []
    first = folder.stages(kept, "f" * 64, Counter(), said.append)
    assert first("s", lambda: found) is found
    again = folder.stages(kept, "f" * 64, Counter(), said.append)
    assert bits(again("s", lambda: pytest.fail("computed again"))) == bits(found)


def test_work_of_a_stage_counts_once_and_a_broken_one_is_done_again(tmp_path):
    said: list[str] = []

    def attempt() -> tuple[Counter[str], int]:
        work = Counter(scored=1)
        stage = folder.stages(tmp_path, "f" * 64, work, said.append)

        def compute() -> int:
            work["scored"] += 10
            return 7

        return work, stage("s", compute)

    assert attempt() == (Counter(scored=11), 7)
    assert not said
    assert attempt() == (Counter(scored=11), 7)  # taken up, with its work
    assert said.pop() == "s: taken from an unfinished run"
    (path,) = tmp_path.glob("*/s.npz")
    whole = path.read_bytes()
    for broken in (b"", whole[:-30], whole.replace(b"value", b"eulav"), b"\x80\x04N."):
        path.write_bytes(broken)
        assert attempt() == (Counter(scored=11), 7)
        assert "cannot be used" in said.pop()
        assert path.read_bytes() == whole or len(path.read_bytes()) == pytest.approx(len(whole), abs=20)


# --- the schema -----------------------------------------------------------------------------------------------------


def test_the_published_schema_is_what_the_command_prints_and_what_records_obey(undisturbed):
    published = json.loads((PACKAGE / "record.schema.json").read_text())
    assert json.loads(process("schema").stdout) == published
    jsonschema.Draft202012Validator.check_schema(published)
    check = jsonschema.Draft202012Validator(published)
    raw = json.loads((undisturbed / store.RECORD).read_text())
    check.validate(raw)
    score = raw["scores"]["original"]["forget"]["probability"]
    for broken in (
        {**raw, "extra": 1},
        {**raw, "schema": "unlearn-metrics/record/99"},
        {key: found for key, found in raw.items() if key != "signature"},
        {**raw, "scores": {"original": {"forget": {"probability": {**score, "value": "0.5"}}}}},
        {**raw, "work": {"scored": -1}},
    ):
        assert not check.is_valid(broken)


V1_SCORE = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9, "unscored": 1}
V1 = {
    "schema": "unlearn-metrics/record/1",
    "signature": "demo|n:all|tmpl:none|eos:prob+|ctl:none|dtype:float32|data:0a1b2c3d|seed:0|lm-eval:0.4.13|v:0.1.0",
    "benchmark": "demo",
    "verdict": "It forgot half.",
    "control": {
        "method": "none",
        "alpha": 1.0,
        "keep": None,
        "metric": None,
        "target": None,
        "achieved": None,
        "original_held_out": None,
        "achieved_held_out": None,
        "trace": [],
    },
    "scores": {"original": {"forget": {"probability": V1_SCORE}}},
    "checkpoints": {
        role: {"path": f"my/{role}", "revision": None}
        | {f"{part}_sha256": "0" for part in ("weights", "config", "tokenizer")}
        for role in ("original", "unlearned")
    },
    "data": {"forget": "00ff"},
    "task_versions": {"demo_forget": "1.0"},
    "settings": {"limit": None, "seed": 0},
    "software": {"torch": "2.13.0"},
    "work": {"forward_passes": 3},
    "wall_seconds": 1.5,
    "created": "2026-01-01T00:00:00+00:00",
}


def test_records_of_schema_1_load(tmp_path):
    (tmp_path / store.RECORD).write_text(json.dumps(V1))
    record = store.load_record(tmp_path)
    assert (record.schema, record.name) == (SCHEMA, "my/unlearned")
    assert record.scores["original"]["forget"]["probability"].value == 0.5
    assert (record.composites, record.prompts, record.git, record.imported) == ({}, {}, None, None)


def test_a_run_written_by_version_2_of_the_schema_loads_and_rescores():
    """tests/data/record_2: `score` of the demo's excessive checkpoint, 3 documents a split, by commit 920041e."""
    run = Path(__file__).parent / "data" / "record_2"
    stored = store.load_record(run)
    assert stored.schema == SCHEMA
    assert set(stored.scores) == {"original", "unlearned", "controlled"} == set(store.load_documents(run))
    assert rescore.changed(stored, rescore.rescore(run))[1] == []
    # it was observed before other settings of sampling were: those are not known, and that is no 0
    again = rescore.rescore(run, ["leak_at_1", "leak_at_1_temp80"]).scores["original"]["forget"]
    assert again["leak_at_1"].value == pytest.approx(1, abs=0.1)
    assert again["leak_at_1_temp80"] == Score(None, None, None, 0, 3)


@pytest.mark.parametrize("schema", ["unlearn-metrics/record/99", 2, None])
def test_unknown_schemas_fail_in_one_line(tmp_path, schema):
    (tmp_path / store.RECORD).write_text(json.dumps(V1 | {"schema": schema}))
    done = run_it("rescore", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"has schema '{schema}'; this version reads" in done.stderr


def test_the_record_names_machine_software_and_source(undisturbed):
    record = store.load_record(undisturbed)
    assert {"device", "dtype", "threads", "attention", "gpu", "limit", "seed", "max_length"} <= record.settings.keys()
    assert record.settings["gpu"] is None or record.settings["device"] != "cpu"
    assert {"lm-eval", "torch", "transformers", "tokenizers", "python", "platform"} <= record.software.keys()
    head = subprocess.run(["git", "-C", str(PACKAGE), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert record.git is not None
        assert record.git.commit == head.stdout.strip()
    assert all(len(hash_) == 64 for hash_ in record.data.values())
    assert {"forward_passes", "positions", "scored", "generated"} <= record.work.keys()


# --- rescore --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def test_rescore_finds_what_is_stored_and_adds_metrics(run, tmp_path):
    done = run_it("rescore", run, "--metrics", "zlib, min_k", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    stored, again = store.load_record(run), store.load_record(tmp_path / "again")
    total = sum(len(m) for splits in stored.scores.values() for m in splits.values())
    total += sum(map(len, stored.composites.values()))
    total += sum(len(rescore.estimates(found)) for found in stored.residual.values())
    assert f"all {total} stored scores are what the documents give (largest deviation: 0)" in done.stdout
    for model, splits in again.scores.items():
        for split, scores in splits.items():
            assert {"zlib", "min_k"} <= scores.keys()
            for name, score in stored.scores[model][split].items():
                assert scores[name] == score
    answers = [d["answer"] for d in store.load_documents(run)["original"]["forget"]]
    by_hand = np.mean([METRICS["min_k"].fn(answer) for answer in answers])
    assert again.scores["original"]["forget"]["min_k"].value == pytest.approx(by_hand)
    assert run_it("rescore", run, "--metrics", "min_q").returncode == 2


def test_a_record_stands_for_its_folder_and_the_signature_for_itself(run, tmp_path):
    """In one line, however narrow the terminal is; and what cannot be written to is told at once."""
    done = run_it("rescore", run / "record.json")
    assert done.returncode == 0, done.stderr
    assert store.load_record(run).signature in done.stdout.splitlines()
    assert run_it("compare", run, run / "record.json").stderr == f"error: {run} is given twice\n"
    assert run_it("rescore", run, "--out", run).stderr == f"error: {run} already holds a run; choose another --out\n"
    never = "/proc/none-such"  # where no folder can be made, though none of its parents says so
    assert f"{never} cannot be written to" in run_it("rescore", run, "--out", never).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_is_told_in_one_line(run):
    with open("/dev/full", "w") as full:
        asked = [*COMMAND, "rescore", str(run)]
        done = subprocess.run(asked, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_rescore_tells_of_a_score_that_was_changed(run):
    raw = json.loads((run / store.RECORD).read_text())
    raw["scores"]["unlearned"]["retain"]["rouge"]["value"] += 1e-6
    raw["composites"]["original"]["model_utility"] = raw["scores"]["original"]["retain"]["rouge"]
    (run / store.RECORD).write_text(json.dumps(raw))
    done = run_it("rescore", run)
    assert done.returncode == 1
    assert "unlearned, retain: rouge" in done.stderr
    assert "original: model_utility" in done.stderr
    assert "2 of" in done.stderr


@pytest.mark.parametrize(
    ("table", "column", "change"),
    [
        (store.TOKENS, "logprob", lambda lists: [lists[0][:-1] + [lists[0][-1] - 0.01], *lists[1:]]),
        (store.TOKENS, "argmax", lambda lists: [[-1] * len(lists[0]), *lists[1:]]),
        (store.TEXTS, "generation", lambda texts: ["something else", *texts[1:]]),
    ],
)
def test_rescore_tells_of_documents_that_were_changed(run, table, column, change):
    found = pq.read_table(run / table)
    position = found.column_names.index(column)
    kind = found.schema.field(column)
    changed = pa.array(change(found.column(column).to_pylist()), kind.type)
    pq.write_table(found.set_column(position, kind, changed), run / table)
    done = run_it("rescore", run)
    assert done.returncode == 1, done.stdout
    assert "stored scores are not what the documents give" in done.stderr


any_text = (
    st.text()
    | st.text(st.sampled_from("aAbeginsıİſKK ing.-_ly09é\n"))
    | st.lists(st.sampled_from(["relational", "Running", "generously", "cats", "is", "1958", "straße", "naïve"])).map(
        " ".join
    )
)


@hypothesis
@given(any_text, any_text, st.booleans())
def test_rouge_is_rouge_scores_on_any_text(generation, reference, stemmer):
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stemmer).score(reference.strip(), generation.strip())
    ours = retention.rouge(generation, reference, stemmer)
    assert ours == theirs["rougeL"].recall or (math.isnan(ours) and theirs["rougeL"].recall == 0)


def test_values_are_each_documents_own_whatever_it_holds():
    """Documents of many shapes, mixed."""
    answer = TokenScores.from_lists([[1, 2, 3], [1, 2, 0], [-0.5, -1.0, -2.0], [-1.0] * 3, [0.5] * 3])
    fields: list[Document] = [
        {"answer": answer},
        {"answer": MeanLoss(0.5)},
        {"generation": "a b c d e", "reference": "a b"},
        {"true_answer": answer, "wrong_answers": [answer, MeanLoss(3.0)]},
        {"true_answer": MeanLoss(2.0), "wrong_answers": [answer]},
        {"judged_generation": None},
        {"logged": {"rouge": 0.25, "loss": 9.0}},
    ]
    documents: list[Document] = [
        {"id": i, "split": "retain"} | dict(item for part in chosen for item in part.items())
        for i, chosen in enumerate(c for size in range(4) for c in itertools.combinations(fields, size))
    ]
    found = values(list(METRICS), documents)
    for name in METRICS:
        np.testing.assert_array_equal(found[name], [value(name, document) for document in documents])
    assert 0 < np.isnan(found["extraction_strength"]).sum() < len(documents)
    assert np.isnan(values(["task.acc"], documents)["task.acc"]).all(), "of another lm-eval task, logged by none"


METRICS_OF = {"forget": ["rouge", "repetition", "min_k_plus_plus"], "holdout": ["zlib"], "retain": ["probability"]}


@pytest.fixture
def invented(run) -> Path:
    """The run with documents of all roles, models and splits that a composite takes, and their scores."""
    rng = np.random.default_rng(0)

    def scores() -> TokenScores:
        n = rng.integers(2, 9)
        ids, numbers = rng.integers(0, 3, (2, n)), rng.exponential(1, (3, n))
        return TokenScores.from_lists([*ids, -numbers[0], -numbers[1], numbers[2]])

    def documents(split: str, ids: range) -> list[Document]:
        texts = {role: [" ".join(rng.choice(list("abc"), 8)) for _ in ids] for role in ("reference", "generation")}
        return [
            {"id": i, "split": split, "cluster": i // 3, "question": f"{split} {i}", "revealed": 1}
            | {role: found[place] for role, found in texts.items()}
            | {role: scores() for role in ("answer", "true_answer", "judged_generation")}
            | {"wrong_answers": [scores() for _ in range(3)]}
            for place, i in enumerate(ids)
        ]

    splits = {"forget": range(30), "holdout": range(30), "real_authors": range(18), "world_facts": range(20)}
    splits |= {"retain": range(1, 40, 2), "retain_calibration": range(0, 40, 2)}
    models = ("original", "unlearned", "controlled", "retain_only")
    seen = {model: {split: documents(split, ids) for split, ids in splits.items()} for model in models}
    wanted = {model: {split: METRICS_OF.get(split, []) for split in splits} for model in models}
    record = store.load_record(run)
    found, composites = score_all(seen, wanted, 0, record.benchmark)
    made_up = replace(record, scores=found, composites=composites, path=None, residual={})  # the path is of others
    store.save(run, made_up, seen, overwrite=True)
    return run


def test_composites_are_computed_again_too(invented):
    stored = store.load_record(invented)
    defined = [n for n, score in stored.composites["unlearned"].items() if score.value is not None]
    assert {"model_utility", "forget_quality", "memorization_score", "privleak", "auc_zlib", "privacy_score"} <= {
        *defined
    }
    again = rescore.rescore(invented)
    assert (again.scores, again.composites) == (stored.scores, stored.composites)
    broken = pq.read_table(invented / store.TEXTS)
    pq.write_table(pa.concat_tables([broken, broken.slice(40, 1)]), invented / store.TEXTS)
    with pytest.raises(InputError, match="is there twice"):
        rescore.rescore(invented)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False),
        ({"value": 0.5 * (1 + 9e-10)}, False),
        ({"value": 0.5 * (1 + 2e-9)}, True),
        ({"ci_high": 0.6 * (1 - 9e-10)}, False),
        ({"ci_high": 0.6 * (1 - 2e-9)}, True),
        ({"ci_low": -9e-13}, False),  # near 0: what is left of numbers near 1
        ({"ci_low": 2e-12}, True),
        ({"ci_low": None}, True),
        ({"value": math.nan}, True),
        ({"n": 8}, True),
        ({"unscored": 2}, True),
        ({"undefined": "why"}, True),
    ],
)
def test_a_score_may_deviate_by_what_another_processor_makes_of_it_and_no_more(run, change, differs):
    score = Score(0.5, 0.0, 0.6, 9, 1)
    scores = {"original": {"forget": {"probability": score}}}
    record = replace(store.load_record(run), scores=scores, composites={}, residual={})
    again = replace(record, scores={"original": {"forget": {"probability": replace(score, **change)}}})
    count, differing, largest = rescore.changed(record, again)
    assert (count, len(differing)) == (1, int(differs))
    assert 0 <= largest <= 1e-9
    assert (largest > 0) == (bool(change) and not differs)
    assert len(rescore.changed(record, replace(record, scores={}))[1]) == 1


def test_the_order_of_rows_says_nothing_but_that_of_documents(invented):
    """Tables whose rows other hands have mixed: every split has its own documents, in the order of the file."""
    before, rng = store.load_documents(invented), np.random.default_rng(1)
    for name in (store.TEXTS, store.TOKENS):
        table = pq.read_table(invented / name)
        rows = rng.permutation(len(table))
        if name == store.TOKENS:  # the wrong answers of a document keep their order
            rows = rows[np.argsort(np.array(table.column("index"))[rows], kind="stable")]
        pq.write_table(table.take(rows), invented / name)
    after = store.load_documents(invented)
    assert after.keys() == before.keys()
    for model, splits in before.items():
        for split, documents in splits.items():
            order = [d["id"] for d in after[model][split]]
            assert order != sorted(order)
            assert bits(sorted(after[model][split], key=lambda d: d["id"])) == bits(documents)


# --- locks, and systems other than Linux ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_the_file_system_has_no_locks_a_folder_still_has_one_writer(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder.claim(tmp_path / "run", overwrite=False) as partial:
        for _ in range(2):  # a refused one leaves the lock in place
            with pytest.raises(InputError, match="another process"), folder.claim(tmp_path / "run", overwrite=False):
                pass
        assert partial.is_dir()
    assert not (tmp_path / "run").exists()
    with folder.claim(tmp_path / "run", overwrite=False):
        pass


def test_two_writers_of_one_file_do_not_share_a_hidden_one(tmp_path):
    path = tmp_path / "value"
    with folder.prepared(path, lambda file: file.write(b"first")), folder.prepared(path, lambda f: f.write(b"second")):
        pass
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


ELSEWHERE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {posix}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
for name in {posix}:
    sys.modules.pop(name, None)
import os
for name in ("sysconf", "sched_getaffinity", "fork", "preadv", "pwrite"):
    delattr(os, name)
from unlearn_metrics.cli import app
from typer.testing import CliRunner

for args in {commands}:
    result = CliRunner().invoke(app, args)
    print(args[0], result.exit_code, result.exception)
"""


def test_records_need_nothing_that_only_posix_has(run, tmp_path):
    """`--help` and every command on records, in a Python without fcntl, resource and the calls of Unix alone."""
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# A model\n")
    commands = [
        ["--help"],
        ["score", "--help"],
        ["schema"],
        ["rescore", run, "--out", tmp_path / "again"],
        ["compare", run, tmp_path / "again"],
        ["leaderboard", run, "--out", tmp_path / "site"],
        ["publish", run, "--model-card", card],
        ["import", "--help"],
    ]
    code = ELSEWHERE.format(
        posix=("fcntl", "resource", "pwd", "grp", "termios"), commands=[[str(a) for a in c] for c in commands]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{c[0]} 0 None" for c in commands], done.stderr


def test_a_difference_is_said_in_numbers():
    """Not as Python prints an object."""
    assert rescore._said(Score(0.25, 0.125, 0.5, 40, 2)) == "0.25 [0.125, 0.5], 40 documents and 2 unscored"
    assert rescore._said(Score(None, None, None, 0, 3)) == "unknown and 3 unscored"
    assert rescore._said(None) == "not there"
