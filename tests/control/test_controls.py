"""Every control against a twin by hand from whole state dicts; its ends are the two checkpoints, bit for bit."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests import CHECKPOINTS, DATA
from tests.command import process, refused, run, score
from unlearn_metrics.checkpoints import tensors
from unlearn_metrics.checkpoints.tensors import from_memory
from unlearn_metrics.control.controls import CONTROLS, family, steps, trim
from unlearn_metrics.control.mixing import mix_into, write_mix
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.controlled_lm import ControlledLM
from unlearn_metrics.jobs.opening import open_pair
from unlearn_metrics.record import Control
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import claim


@pytest.fixture(scope="module")
def pair():
    return open_pair(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "excessive"))


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(CHECKPOINTS / name / "model.safetensors")


def trimmed(o, u, strength):
    """Sort the changes; keep the largest."""
    change = (u.float() - o.float()).abs().flatten()
    kept = math.ceil(strength * len(change))
    least = change.sort(descending=True).values[kept - 1]
    return torch.where((u.float() - o.float()).abs() >= least, u, o)


def weighted(alpha_of):
    return lambda o, u, name: torch.lerp(o.float(), u.float(), alpha_of(name)).to(u.dtype)


def edge(strength):
    """The demo has three layers: at 0.5 the first is the unlearned model's, the second is half-way."""

    def alpha_of(name):
        found = re.match(r"model\.layers\.(\d)\.", name)
        return {0: 1.0, 1: 0.5, 2: 0.0}[int(found[1])] if found else strength

    return alpha_of


TWINS = {
    ("mix", None, 0.3): weighted(lambda name: 0.3),
    ("trim", None, 0.3): lambda o, u, name: trimmed(o, u, 0.3),
    ("trim", None, 0.01): lambda o, u, name: trimmed(o, u, 0.01),
    ("layers", None, 0.5): weighted(edge(0.5)),
    ("layers", "0,2", 0.4): weighted(lambda name: 0.4 * (".layers.0." in name or ".layers.2." in name)),
    ("layers", r"mlp\.(up|down)", 1.0): weighted(lambda name: float("mlp.up" in name or "mlp.down" in name)),
}


def test_every_control_has_a_twin_and_a_name_on_the_command_line():
    assert {name for name, _, _ in TWINS} | {"temperature", "select"} >= CONTROLS.keys()
    assert [CONTROLS[name].fn.__name__ for name in CONTROLS] == [*CONTROLS]  # each is what its name says


@pytest.mark.parametrize(("method", "layers", "strength"), TWINS)
def test_written_and_loaded_are_the_twin(pair, tmp_path, monkeypatch, method, layers, strength):
    monkeypatch.setattr(tensors, "PART", 1 << 12)  # tensors of many parts
    models = family(method, *pair, layers)
    write_mix(*pair, strength, tmp_path / "m", control=models.fn)
    written = load_file(tmp_path / "m" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.float32)
    mix_into(model, *pair, strength, models.fn)
    loaded = model.state_dict()
    o, u, twin = weights("original"), weights("excessive"), TWINS[method, layers, strength]
    assert written.keys() == u.keys()
    changed = 0
    for name, tensor in written.items():
        expected = twin(o[name], u[name], name)
        assert torch.equal(tensor, expected), name
        assert torch.equal(loaded[name], expected.float()), name
        changed += int((expected != u[name]).sum())
    assert changed > 0


@pytest.mark.parametrize("method", [name for name in CONTROLS if name != "select"])  # which needs a trajectory, below
def test_ends_are_the_two_checkpoints(pair, method):
    models = family(method, *pair)
    assert models.at(0) is pair[0]
    assert models.at(1) is pair[1]


@given(
    st.lists(st.tuples(st.floats(-9, 9, width=16), st.floats(-9, 9, width=16)), min_size=1, max_size=60),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.booleans(),
)
def test_trim_keeps_the_largest_share(values, strength, half):
    """At least the share; beyond it only ties; nothing dropped is larger than anything kept."""
    dtype = torch.bfloat16 if half else torch.float32
    o, u = (torch.tensor(side).to(dtype) for side in zip(*values, strict=True))
    found = trim(checkpoint(o), checkpoint(u), strength).tensors["w"].read()
    change = (u.float() - o.float()).abs()
    kept = found == u
    assert torch.equal(torch.where(kept, u, o), found)
    least = change[kept & (change > 0)].min() if (kept & (change > 0)).any() else 0
    assert int(kept.sum()) >= min(math.ceil(strength * len(o)), int((change > 0).sum()))
    assert int((change > least).sum()) < math.ceil(strength * len(o)) or not (change > 0).any()
    assert not (change[~kept] > least).any()


def checkpoint(tensor):
    from unlearn_metrics.checkpoints.files import Checkpoint

    return Checkpoint("c", Path(), None, Path(), (), {"w": from_memory(tensor)})


@pytest.mark.parametrize(
    ("method", "layers", "says"),
    [
        ("layers", "0-7", "the model has layers 0 to 2"),
        ("layers", "3", "the model has layers 0 to 2"),
        ("layers", "convolution", "matches no tensor; there are"),
        ("layers", "mlp(", "no regular expression"),
        ("trim", "0-1", "--layers is not for control trim"),
        ("squeeze", None, "unknown control 'squeeze'; there are mix"),
    ],
)
def test_bad_options(pair, method, layers, says):
    with pytest.raises(InputError, match=re.escape(says)):
        family(method, *pair, layers)


# --- through the command line


def test_score_and_control_by_name(tmp_path):
    """`score --control trim --keep` scores what `control trim --keep` writes, and its record says which it was."""
    kept = score(tmp_path / "a", "--control", "trim", "--limit", 20, unlearned=CHECKPOINTS / "moderate")
    assert kept.returncode == 0, kept.stderr
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["control"]["method"] == "trim"
    assert "|ctl:trim.es.keep0.95|" in record["signature"]
    assert "(trim, alpha 0." in record["verdict"]
    given = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "moderate", "--limit", 20)
    done = run("control", "trim", *given, "--benchmark", "demo", "--data", DATA, "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert f"alpha {record['control']['alpha']:g}: wrote" in done.stdout
    models = family("trim", *open_pair(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "moderate")))
    expected = models.at(record["control"]["alpha"]).tensors
    for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].read()), name


def test_layers_are_in_the_record_and_set_its_signature_apart(tmp_path):
    done = score(tmp_path / "a", "--control", "layers", "--layers", "0-1", "--alpha", 1, "--limit", 4)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["control"]["parameters"] == {"layers": "0-1"}
    assert re.search(r"\|ctl:layers-\w{8}\.alpha1\|", record["signature"])
    es = {m: record["scores"][m]["forget"]["extraction_strength"]["value"] for m in record["scores"]}
    assert es["controlled"] != es["unlearned"]  # one layer of three, embeddings and head are the original's


# --- temperature


@pytest.mark.parametrize("tied", [True, False])
def test_temperature_divides_logits_and_leaves_the_likeliest_token(tmp_path, tied):
    """In the model: exactly the unlearned logits times alpha; written: the same of alpha 1/2, bit for bit."""
    o, u = random_pair(tmp_path, tied)
    models = family("temperature", o, u)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    mix_into(model, o, u, 1, models.fn)
    ids = torch.arange(40).reshape(4, 10)
    raw = model(ids).logits
    mix_into(model, o, u, 0.3, models.fn)
    assert torch.equal(model(ids).logits, raw * 0.3)
    assert torch.equal(model(ids).logits.argmax(-1), raw.argmax(-1))
    mix_into(model, o, u, 0.5, models.fn)
    write_mix(o, u, 0.5, tmp_path / "m", control=models.fn)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(written(ids).logits, model(ids).logits)
    mix_into(model, o, u, 1, models.fn)
    assert torch.equal(model(ids).logits, raw)
    with pytest.raises(InputError, match="can't be stored exactly in float32: choose a power of two"):
        write_mix(o, u, 0.3, tmp_path / "n", control=models.fn)
    assert not (tmp_path / "n").exists()


def random_pair(folder, tied, names=("o", "u")):
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return open_pair(str(folder / names[0]), str(folder / names[1]))


def test_temperature_is_not_calibrated_on_what_it_can_not_change(tmp_path):
    says = "temperature can't be calibrated on extraction_strength: no temperature changes which token is likeliest"
    refused(score(tmp_path / "out", "--control", "temperature"), says, tmp_path / "out")


# --- select


@pytest.fixture
def trajectory(tmp_path):
    """checkpoint-2 keeps everything, -10 less, -30 is collapsed; and what is none of them."""
    for n, name in ((2, "moderate"), (10, "moderate"), (30, "excessive")):
        shutil.copytree(CHECKPOINTS / name, tmp_path / "t" / f"checkpoint-{n}")
    models = family("mix", *open_pair(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "moderate")))
    shutil.rmtree(tmp_path / "t" / "checkpoint-2")
    write_mix(models.original, models.unlearned, 0.1, tmp_path / "t" / "checkpoint-2")
    (tmp_path / "t" / "checkpoint-best").mkdir()
    (tmp_path / "t" / "checkpoint-7").write_text("a file")
    return tmp_path / "t"


def test_select_is_a_step_function_of_the_share_of_steps(trajectory):
    assert [*steps(trajectory)] == [2, 10, 30]
    pair = open_pair(str(CHECKPOINTS / "original"), str(trajectory / "checkpoint-30"))
    models = family("select", *pair, trajectory=trajectory)
    assert models.strengths == (2 / 30, 10 / 30, 1.0)
    expected = {0: None, 0.06: None, 2 / 30: 2, 0.3: 2, 1 / 3: 10, 0.99: 10, 1: 30}
    for strength, n in expected.items():
        name = str(CHECKPOINTS / "original" if n is None else trajectory / f"checkpoint-{n}")
        assert models.at(strength).name == name
    assert models.at(0) is pair[0]
    assert models.at(1) is pair[1]
    shorter = family(
        "select", *open_pair(str(CHECKPOINTS / "original"), str(trajectory / "checkpoint-10")), trajectory=trajectory
    )
    assert shorter.strengths == (0.2, 1.0)
    with pytest.raises(InputError, match="is none of the checkpoints in"):
        family(
            "select", *open_pair(str(CHECKPOINTS / "original"), str(CHECKPOINTS / "moderate")), trajectory=trajectory
        )
    with pytest.raises(InputError, match="needs --trajectory"):
        family("select", *pair)


def test_select_scores_the_latest_that_holds_and_draws_the_curve(trajectory, tmp_path):
    given = ("--control", "select", "--trajectory", trajectory, "--original", CHECKPOINTS / "original", "--limit", 20)
    done = run("score", *given, "--benchmark", "demo", "--data", DATA, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    control = record["control"]
    assert record["checkpoints"]["unlearned"]["path"] == str(trajectory / "checkpoint-30")
    trace = {round(30 * p["alpha"]): (p["retention"], p["forget"]) for p in control["trace"]}
    assert [*trace] == [30, 10, 2]  # all of them, from the latest backwards
    holding = [n for n, (retention, _) in trace.items() if retention >= control["target"]]
    assert round(30 * control["alpha"]) == max(holding, default=0)
    assert control["alpha"] > 0
    assert control["parameters"]["checkpoint"] == str(trajectory / f"checkpoint-{max(holding)}")
    left = record["scores"]["controlled"]["forget"]["extraction_strength"]["value"]
    assert trace[max(holding)][1] == pytest.approx(left, abs=1e-6)
    picture = (tmp_path / "run" / "trajectory.svg").read_text()
    labels = re.findall(r">([\d, ]+)</text>", picture)
    assert {"2", "10", "30"} <= {name for label in labels for name in label.split(", ")}
    assert "extraction_strength on the forget set" in picture
    # a cell of a sweep is the same run, picture included
    plan = {
        "original": str(CHECKPOINTS / "original"),
        "unlearned": str(trajectory / "checkpoint-30"),
        "benchmarks": "demo",
    }
    plan |= {"data": str(DATA), "controls": [{"control": "select", "trajectory": str(trajectory)}], "limit": 20}
    (tmp_path / "plan.json").write_text(json.dumps(plan))  # which is YAML
    done = run("sweep", tmp_path / "plan.json", "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    (cell,) = (path.parent for path in (tmp_path / "runs" / "demo").glob("*/*/record.json"))
    assert sorted(path.name for path in cell.iterdir()) == sorted(path.name for path in (tmp_path / "run").iterdir())
    assert (cell / "trajectory.svg").read_text() == picture
    # and a run without a trajectory in its place has none
    found = store.load_record(cell)
    with claim(cell, overwrite=True):
        store.put(cell, replace(found, control=Control("none", 1.0)), store.load_documents(cell))
    assert not (cell / "trajectory.svg").exists()


# --- as a model of lm-eval


def lm_eval(tmp_path: Path, model: str, args: str) -> dict:
    out = tmp_path / str(len([*tmp_path.iterdir()]))
    done = run(
        *("lm-eval", "run", "--model", model, "--model_args", args, "--tasks", "demo_forget,demo_retain"),
        *("--limit", 6, "--device", "cpu", "--metadata", f"data_dir={DATA}", "--output_path", out),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    return {task: {k: v for k, v in found.items() if "stderr" not in k} for task, found in results.items()}


@pytest.mark.slow
def test_unlearn_mix_is_the_checkpoint_that_would_be_written(tmp_path):
    """0: the original's parameters; 1: the unlearned's; 0.6: results of what `control mix` writes; keep: calibrated."""
    names = ("original", "moderate")
    for alpha, name in enumerate(names):
        found = ControlledLM(*(str(CHECKPOINTS / n) for n in names), alpha=alpha, device="cpu").model.state_dict()
        for key, tensor in load_file(CHECKPOINTS / name / "model.safetensors").items():
            assert torch.equal(found[key], tensor), (alpha, key)
    given = ("--original", CHECKPOINTS / "original", "--unlearned", CHECKPOINTS / "moderate")
    done = run("control", "mix", *given, "--alpha", 0.6, "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    pair = f"original={CHECKPOINTS / 'original'},unlearned={CHECKPOINTS / 'moderate'}"
    mixed = lm_eval(tmp_path, "unlearn-mix", f"{pair},alpha=0.6")
    assert mixed == lm_eval(tmp_path, "hf", f"pretrained={tmp_path / 'm'}")
    assert mixed != lm_eval(tmp_path, "unlearn-mix", f"{pair},keep=0.5,benchmark=demo,data={DATA},limit=8")
    refused = process("lm-eval", "run", "--model", "unlearn-mix", "--model_args", pair, "--tasks", "demo_forget")
    assert refused.returncode == 2
    assert "error: unlearn-mix needs alpha, or benchmark" in refused.stderr


# --- an adapter as the unlearned side, end to end


def test_score_of_an_adapter_is_that_of_the_merged_model(tmp_path):
    """`score --unlearned ADAPTER` = `score --unlearned MERGED`, raw and under control."""
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "original")
    peft = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, tensor in peft.named_parameters():
        if "lora_B" in name:
            tensor.data.normal_(0, 0.1)
    peft.save_pretrained(tmp_path / "adapter")
    peft.merge_and_unload().save_pretrained(tmp_path / "merged")
    records = []
    for name in ("adapter", "merged"):
        done = score(tmp_path / f"run-{name}", "--alpha", 0.5, "--limit", 6, unlearned=tmp_path / name)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / f"run-{name}" / "record.json").read_text()))
    assert records[0]["scores"] == records[1]["scores"]
    assert records[0]["scores"]["unlearned"] != records[0]["scores"]["original"]
