"""What a run depends on, and what it must not: the day, the dtype of either checkpoint, how it was launched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM

from tests import CHECKPOINTS, DATA
from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.checkpoints.files import open_checkpoint, precision
from unlearn_metrics.control.mixing import cast
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import identity, whole
from unlearn_metrics.jobs.controlled_lm import ControlledLM
from unlearn_metrics.jobs.opening import build_lm
from unlearn_metrics.settings import Settings

ORIGINAL, MODERATE = (open_checkpoint(str(CHECKPOINTS / name)) for name in ("original", "moderate"))
YAML = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: {text}
doc_to_target: 0
doc_to_choice: ["yes", "no"]
metric_list: [{{metric: acc}}]
"""


# --- dtype


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_models_are_measured_in_the_unlearned_checkpoints_dtype(stored, asked):
    """The dtype that `control` writes and `unlearn-mix` loads, whichever the original has (here bfloat16)."""
    assert precision(ORIGINAL) == "bfloat16"
    unlearned = cast(MODERATE, stored)
    lm = build_lm(ORIGINAL, unlearned, Settings(device="cpu", dtype=asked))
    assert str(lm.model.dtype) == f"torch.{precision(unlearned) if asked == 'auto' else asked}"
    assert precision(unlearned) == str(stored).removeprefix("torch.")


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [({"avx512_bf16": True}, "bfloat16"), ({"bf16": True}, "bfloat16"), ({"avx512_bf16": False}, "float32")],
)  # fmt: skip
def test_auto_is_bfloat16_where_the_cpu_has_it(monkeypatch, capabilities, wanted):
    """And never by default; of a checkpoint in another dtype it is that dtype."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for dtype, checkpoint, expected in (
        ("auto", MODERATE, wanted),
        ("auto", cast(MODERATE, torch.float16), "float16"),
        (None, MODERATE, "float32"),
    ):
        lm = build_lm(ORIGINAL, checkpoint, Settings(device="cpu", dtype=dtype))
        assert str(lm.model.dtype) == f"torch.{expected}"


# --- what is sent to the models


def fingerprints(lm: HFLM, settings: Settings, folder: Path | None = None) -> list[str]:
    """Of the demo beside a task of the user's in a folder."""
    tasks = suites.load("demo", DATA)
    others = {} if folder is None else other_tasks.load(["mine"], folder)
    requests = identity.requests_hash(tasks, lm, settings, others)
    return [identity.fingerprint(tasks, lm, {}, settings, others, requests), requests]


def mine(folder: Path, text: str, code: str | None = None) -> Path:
    folder.mkdir()
    (folder / "data.jsonl").write_text(json.dumps({"q": "Is it?"}) + "\n")
    (folder / "mine.yaml").write_text(YAML.format(text=text, data=folder / "data.jsonl"))
    if code is not None:
        (folder / "utils.py").write_text(code)
    return folder


def test_stages_of_another_template_of_another_task_are_not_used(lm, tmp_path):
    """Its data, name and version stay; its prompt is another. Code beside the YAML counts by what it renders."""
    settings = Settings(limit=1, utility_tasks=("mine",))
    one, two = (fingerprints(lm, settings, mine(tmp_path / t, f"'{t}: {{{{q}}}}'")) for t in ("a", "b"))
    assert one[0] != two[0]
    assert one[1] != two[1]
    helper = "def word():\n    return {!r}\n\ndef text(doc):\n    return word() + doc['q']\n"
    found = [fingerprints(lm, settings, mine(tmp_path / w, "!function utils.text", helper.format(w))) for w in "xy"]
    assert found[0][1] != found[1][1]


def test_stages_of_another_rendering_are_not_used():
    settings = Settings(limit=2, device="cpu", apply_chat_template=True)
    lm = build_lm(ORIGINAL, MODERATE, settings)
    plain = lm.tokenizer.chat_template

    def on(day: str) -> list[str]:
        lm.tokenizer.chat_template = day + plain
        return fingerprints(lm, settings)

    one, two = on("1 May"), on("2 May")
    assert one[0] != two[0]
    assert one[1] != two[1]
    assert on("1 May") == one


def test_a_limit_is_part_of_what_is_sent(lm):
    one, two = (fingerprints(lm, Settings(limit=n))[1] for n in (1, 2))
    assert one != two


# --- launchers


def test_one_process_is_told_from_many(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    names = [str(CHECKPOINTS / name) for name in ("original", "moderate")]
    with pytest.raises(InputError, match="a launcher started 2 processes for a job of one"):
        whole.score(*names, "demo", DATA, Settings(), None, False, print)
    with pytest.raises(InputError, match="a launcher started 2 processes for a job of one"):
        whole.control(*names, None, None, Settings(keep=None, alpha=0.5), None, None, print)


@pytest.fixture
def second_of_two(monkeypatch):
    """Every HFLM takes itself for the second process of two, as under `accelerate launch`."""
    build = HFLM.__init__

    def launched(self: HFLM, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        self._rank, self._world_size = 1, 2

    return lambda: monkeypatch.setattr(HFLM, "__init__", launched)


def test_unlearn_mix_calibrates_in_every_process(second_of_two, monkeypatch):
    given = {"benchmark": "demo", "data": str(DATA), "limit": 6, "keep": 0.95, "device": "cpu"}
    names = [str(CHECKPOINTS / name) for name in ("original", "moderate")]
    one = ControlledLM(*names, **given)
    second_of_two()
    other = ControlledLM(*names, **given)
    assert (other.rank, other.world_size) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    # where rounding led them apart, the first one's strength is everybody's
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda found, src: found.__setitem__(0, 0.25))
    told = ControlledLM(*names, **given)
    fixed = ControlledLM(*names, alpha=0.25, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(told.model.parameters(), fixed.model.parameters(), strict=True))


def test_each_process_evaluates_all_documents(lm, monkeypatch):
    tasks = suites.load("demo", DATA)
    alone = suites.evaluate(lm, tasks, limit=3)
    monkeypatch.setattr(lm, "_rank", 1)
    monkeypatch.setattr(lm, "_world_size", 2)
    among = suites.evaluate(lm, tasks, limit=3)
    assert [d["id"] for d in among["forget"]] == [d["id"] for d in alone["forget"]] == [0, 1, 2]
    assert (lm.rank, lm.world_size) == (1, 2)


# --- lm-eval's cache of requests


def test_requests_are_not_taken_from_a_cache_that_goes_by_the_tasks_name(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    asked = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"question": f"What is in {name}?", "answer": "Nothing."}) + "\n")
        manager = suites.OurTaskManager(include_defaults=False, metadata={"forget_file": str(path)})
        task = manager.load(["custom_forget"])["tasks"]["custom_forget"]
        task.build_all_requests(limit=None, rank=0, world_size=1, cache_requests=True)
        asked.append(task.instances[0].args[0])
    assert asked == [f"Question: What is in {name}?\nAnswer:" for name in ("a", "b")]
