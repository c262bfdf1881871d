"""A sweep through the command line, on the embedded demo: what `score` gives for each cell, whoever scores it."""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import CHECKPOINTS, DATA
from tests.command import COMMAND, process, run
from tests.plain import heed_ctrl_c
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import opening, plan, score
from unlearn_metrics.record import RECORD_TYPE
from unlearn_metrics.records import store
from unlearn_metrics.settings import OwnData, Settings

NEVER_EQUAL = ("created", "wall_seconds")


def write_plan(path: Path, **more: object) -> Path:
    grid = {
        "original": str(CHECKPOINTS / "original"),
        "unlearned": [str(CHECKPOINTS / "excessive"), str(CHECKPOINTS / "moderate")],
        "benchmarks": "demo",
        "data": str(DATA),
        "retain_model": str(CHECKPOINTS / "retain"),
        "controls": ["none", {"keep": 0.9}],
        "limit": 6,
    }
    path.write_text(yaml.safe_dump(grid | more))
    return path


def read(out: Path) -> dict[str, dict]:
    """cell -> its record, but for when it was made and how long that took."""
    found = {}
    for path in sorted(out.rglob("record.json")):
        record = json.loads(path.read_text())
        found[str(path.parent.relative_to(out))] = {k: v for k, v in record.items() if k not in NEVER_EQUAL}
    return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    path = write_plan(folder / "plan.yaml")
    done = process("sweep", path, "--out", folder / "runs")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 cells" in done.stdout
    assert "left] demo/excessive/mix-keep0.9" in done.stderr
    assert "it/s" not in done.stderr  # no bars of lm-eval's and datasets' among our lines
    return path, folder / "runs"


def test_a_cell_is_what_score_gives(swept, tmp_path):
    """The last cell: by then the model has been four others, and most of what it says was said for other cells. The
    work counted is that of a run alone, too."""
    given = ("--original", CHECKPOINTS / "original", "--benchmark", "demo", "--data", DATA, "--limit", 6)
    given += ("--retain-model", CHECKPOINTS / "retain", "--unlearned", CHECKPOINTS / "moderate", "--keep", 0.9)
    assert run("score", *given, "--out", tmp_path / "alone").returncode == 0
    (alone,) = read(tmp_path / "alone").values()
    assert alone == read(swept[1])["demo/moderate/mix-keep0.9"]
    theirs, mine = (
        store.load_documents(p) for p in (tmp_path / "alone", swept[1] / "demo" / "moderate" / "mix-keep0.9")
    )
    assert repr(theirs) == repr(mine)


def test_finished_cells_are_skipped_and_a_broken_one_does_not_stop_the_rest(swept, tmp_path):
    out = swept[1]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("record.json")}
    broken = tmp_path / "broken"
    more = {"unlearned": [str(CHECKPOINTS / "excessive"), str(broken), str(CHECKPOINTS / "moderate")]}
    longer = write_plan(tmp_path / "plan.yaml", **more)
    done = run("sweep", longer, "--out", out)
    assert done.returncode == 1
    assert f"demo/broken/none: failed: checkpoint {broken} is not a folder" in done.stderr
    assert "4 of 6 cells" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("record.json")} == before
    states = {str(cell.folder): plan.state(out, cell) for cell in plan.read(longer)}
    assert list(states.values()).count("done") == 4
    assert states["demo/broken/mix-keep0.9"] == f"failed: checkpoint {broken} is not a folder"
    # the notes are not in the way of who globs runs
    assert len(glob.glob(f"{out}/*/*/*")) == 4
    done = run("compare", "--anyway", "--metrics", "extraction_strength", *glob.glob(f"{out}/*/*/*"))
    assert done.returncode == 0, done.stderr
    done = run("leaderboard", *glob.glob(f"{out}/demo/moderate/*"), "--strict", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    for note in (out / "demo").glob("broken/.*.json"):
        note.unlink()
    # another plan's cells are neither taken for these nor written over
    other = write_plan(tmp_path / "other.yaml", limit=5, unlearned=str(CHECKPOINTS / "excessive"))
    done = run("sweep", other, "--out", out)
    assert done.returncode == 1
    assert "holds a run of something else: limit is 6 there, 5 here" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in out.rglob("record.json")} == before


def interrupted(path: Path, out: Path, at: str, how: signal.Signals) -> tuple[int, str]:
    """(exit status, what was said after the line in which the signal was sent)."""
    command = [*COMMAND, "sweep", str(path), "--out", str(out), "--verbose"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    assert process.stderr is not None
    for line in process.stderr:
        if at in line:
            process.send_signal(how)
            break
    said = process.stderr.read()
    return process.wait(), said


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_and_killed_goes_on(swept, tmp_path):
    path, whole = swept
    out = tmp_path / "runs"
    status, said = interrupted(path, out, "demo/excessive/mix-keep0.9: alpha 0.75", signal.SIGINT)
    assert status == 130
    assert "interrupted: 1 of 4 cells done; the same command goes on" in said
    assert "Traceback" not in said
    assert read(out).keys() == {"demo/excessive/none"}
    assert [plan.state(out, cell) for cell in plan.read(path)] == ["done", "unfinished", "to do", "to do"]
    status, said = interrupted(path, out, "demo/moderate/mix-keep0.9: alpha 0.9375", signal.SIGKILL)
    assert status == -signal.SIGKILL
    done = run("sweep", path, "--out", out, "--verbose")
    assert done.returncode == 0, done.stderr
    assert "demo/moderate/mix-keep0.9: alpha 0.9375: taken from an unfinished run" in done.stderr
    assert read(out) == read(whole)


@pytest.mark.slow
def test_two_processes_give_the_records_of_one(swept, tmp_path):
    """By --shard, at the same time in the same folder: what both need is computed by one of them."""
    path, whole = swept
    out = tmp_path / "runs"
    started = [subprocess.Popen([*COMMAND, "sweep", str(path), "--out", str(out), "--shard", f"{i}/2"]) for i in (1, 2)]
    assert [process.wait() for process in started] == [0, 0]
    assert read(out) == read(whole)
    assert len(list((out / ".observed").glob("*/value.npz"))) == 4  # the original, the retain-only model, two unlearned
    site = tmp_path / "site"
    assert run("leaderboard", out, "--out", site).returncode == 0
    assert len(json.loads((site / "leaderboard.json").read_text())["groups"]) >= 1


@pytest.mark.slow
def test_accelerate_gives_the_records_of_one(swept, tmp_path):
    """Each process takes its part. One of them fails early, and does not take the other with it."""
    whole, out = swept[1], tmp_path / "runs"
    failing = write_plan(
        tmp_path / "plan.yaml",
        unlearned=[str(CHECKPOINTS / "excessive"), str(tmp_path / "none-such")],
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port), "-m", "unlearn_metrics", "sweep"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the launcher's own choice is 1
    done = subprocess.run(
        [*launcher, str(failing), "--out", str(out)], capture_output=True, text=True, env=os.environ | threads
    )
    assert done.returncode != 0
    assert "shard 1 of 2: 2 cells" in done.stderr
    assert "demo/none-such/none: failed" in done.stderr
    assert read(out) == {k: v for k, v in read(whole).items() if "excessive" in k}


@pytest.mark.slow
def test_ray_gives_the_records_of_one(swept, tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra")
    path, whole = swept
    done = process("sweep", path, "--out", tmp_path / "runs", "--ray", 1)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "runs") == read(whole)


def test_a_vocabulary_that_a_cell_resizes_does_not_reach_the_next(swept, tmp_path):
    """The model is swapped in place; a longer vocabulary and a head of its own change its structure."""
    longer = tmp_path / "longer"
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "excessive", dtype=torch.float32)
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 3, mean_resizing=False)
    model.save_pretrained(longer)
    AutoTokenizer.from_pretrained(CHECKPOINTS / "original").save_pretrained(longer)
    warm, settings = opening.Warm(), Settings(keep=0.9, limit=6, retain_model=str(CHECKPOINTS / "retain"))
    given = ("demo", DATA, settings)
    score.run(str(CHECKPOINTS / "original"), str(longer), *given, warm=warm)
    record, _ = score.run(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "moderate"), *given, warm=warm)
    found = json.loads(RECORD_TYPE.dump_json(record))
    assert {k: v for k, v in found.items() if k not in NEVER_EQUAL} == read(swept[1])["demo/moderate/mix-keep0.9"]


# --- plans


def cells(tmp_path: Path, **more: object) -> list[plan.Cell]:
    return plan.read(write_plan(tmp_path / "plan.yaml", **more))


def test_plan_is_the_grid(tmp_path):
    for name in ("a/checkpoint-9", "a/checkpoint-10", "b/checkpoint-9"):
        (tmp_path / name).mkdir(parents=True)
    found = cells(
        tmp_path,
        unlearned=[f"{tmp_path}/?/checkpoint-*", "someone/model@main"],
        benchmarks=["tofu_forget05", "muse_news"],
        data={"muse_news": "muse"},
        controls=["none", {"control": "mix", "alpha": 0.5}, {}],
        batch_size=4,
        keep=0.8,
    )
    assert [str(cell.folder) for cell in found[:4]] == [
        "tofu_forget05/a_checkpoint-9/none",
        "tofu_forget05/a_checkpoint-9/mix-alpha0.5",
        "tofu_forget05/a_checkpoint-9/mix",
        "tofu_forget05/checkpoint-10/none",  # nothing else ends so: one more checkpoint leaves its folder alone
    ]
    assert len(found) == len({cell.folder for cell in found}) == 2 * 4 * 3
    assert [(c.settings.keep, c.settings.alpha) for c in found[:3]] == [(None, None), (None, 0.5), (0.8, None)]
    assert {cell.settings.batch_size for cell in found} == {4}
    assert [(c.data, c.unlearned) for c in (found[0], found[-1])] == [
        (None, f"{tmp_path}/a/checkpoint-9"),
        (Path("muse"), "someone/model@main"),
    ]


def test_folders_of_controls_are_short_and_tell_them_apart(tmp_path):
    """A path has its end in the name, and more of it where two end alike."""
    more = {"unlearned": "ga/checkpoint-2", "control": "select"}
    one = {"trajectory": "/far/away/one/ga", "keep": 0.8, "retain_model": "org/retain@main"}
    (cell,) = cells(tmp_path, **more, controls=[one])
    assert cell.folder.name == "select-keep0.8-retain_model=retain_main-trajectory=ga"
    alike = [{"trajectory": f"/far/away/{path}"} for path in ("one/ga", "two/ga/", "npo")]
    found = [cell.folder.name for cell in cells(tmp_path, **more, controls=alike)]
    assert found == [f"select-trajectory={end}" for end in ("one_ga", "two_ga", "npo")]
    with pytest.raises(InputError, match=r"controls.1: the same as another control, select-trajectory=ga$"):
        cells(tmp_path, **more, controls=[{"trajectory": "ga"}, {"trajectory": "./ga/"}])


def test_plan_of_own_data(tmp_path):
    """The same that `score` makes of its options."""
    own = {"forget": "f.jsonl", "retain": "r.csv", "fields": "text=body,cluster=c", "prefix": 12}
    (cell,) = cells(tmp_path, **own, benchmarks=None, data=None, unlearned="u", controls=["mix"])
    assert cell.folder == Path("custom/u/mix")
    files = {"forget": Path("f.jsonl"), "retain": Path("r.csv")}
    assert (cell.benchmark, cell.data) == ("custom", OwnData(files, {"text": "body", "cluster": "c"}, 12))
    assert cell.arguments()["data"]["files"]["retain"] == "r.csv"  # what is noted beside the run, as JSON


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark": "demo"}, "benchmark: no such key; did you mean benchmarks?"),
        ({"unlearned": "nowhere/*"}, "unlearned: no folder matches nowhere/*"),
        ({"unlearned": []}, "unlearned: "),
        ({"limit": 0}, "limit: input should be greater than or equal to 1, not 0"),
        ({"dtype": "int8"}, "dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'"),
        (
            {"controls": [{"control": "mixx"}]},
            "controls.0: control: there is no control 'mixx'; did you mean mix?",
        ),
        ({"controls": [{"keep": 0.9, "alpha": 0.5}]}, "controls.0: keep and alpha exclude each other"),
        ({"controls": [{"control": "none", "keep": 0.9}]}, "controls.0: control none has no keep"),
        ({"controls": [{"keep": 0.9}, {"keep": 0.9}]}, "controls.1: the same as another control, mix-keep0.9"),
        ({"controls": [{"keep": 2}]}, "controls.0: keep: input should be less than or equal to 1, not 2"),
        ({"data": {"demoo": "x"}}, "data.demoo: not among the benchmarks, demo"),
        ({"unlearned": {"a b": "x", "a_b": "y"}}, "2 cells would be written to demo/a_b/none; name the checkpoints"),
        ({"control": "none", "controls": [{"alpha": 0.5}]}, "controls.0: control none has no alpha"),
        ({"controls": [{"alpha": 0.5, "retention_metric": "rouge"}]}, "controls.0: retention_metric and alpha exclude"),
        ({"forget": "f.jsonl"}, "benchmarks and your own data (forget and retain and holdout, fields) exclude"),
        (
            {"benchmarks": None, "data": None},
            "or your own data (forget and retain and holdout) names what to score",
        ),
        ({"benchmarks": None, "forget": "f"}, "data goes with benchmarks; your own files are named one by one"),
        ({"benchmarks": None, "data": None, "forget": "f", "fields": "text"}, "fields 'text' is neither question=COL"),
        ({"retain_model": "a", "reference_record": "b"}, "retain_model and reference_record exclude each other"),
    ],
)
def test_what_is_no_plan_is_one_line(tmp_path, more, message):
    with pytest.raises(InputError) as error:
        cells(tmp_path, **more)
    assert str(error.value).startswith(str(tmp_path / "plan.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "3", "original: x"])
def test_what_is_no_yaml_is_one_line(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    done = run("sweep", tmp_path / "plan.yaml", "--out", tmp_path / "runs")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "plan.yaml" in done.stderr


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12))
def test_shards_are_all_cells_once(checkpoints, controls, count):
    grid = [
        plan.Cell(Path(f"b/{u}/{c}"), "o", str(u), "b", None, Settings(seed=c))
        for u in range(checkpoints)
        for c in range(controls)
    ]
    parts = [plan.shard(grid, i, count) for i in range(1, count + 1)]
    assert sorted(cell.folder for part in parts for cell in part) == sorted(cell.folder for cell in grid)
    if checkpoints >= count:  # controls of one checkpoint stay together: what it says as it is, is asked once
        assert all(len({c.unlearned for c in part}) * controls == len(part) for part in parts)
