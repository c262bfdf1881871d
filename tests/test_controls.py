"""Every control against a twin by hand from whole state dicts; its ends are the two checkpoints, bit for bit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from unlearn_metrics.cli.models import ControlChoice, Method
from unlearn_metrics.control import tensors
from unlearn_metrics.control.controls import CONTROLS, family, trim
from unlearn_metrics.control.mixing import mix_into, write_mix
from unlearn_metrics.control.tensors import from_memory
from unlearn_metrics.score import open_pair
from unlearn_metrics.types import InputError

DEMO = Path(__file__).parent.parent / "unlearn_metrics" / "demo" / "checkpoints"


@pytest.fixture(scope="module")
def pair():
    return open_pair(str(DEMO / "original"), str(DEMO / "excessive"))


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(DEMO / name / "model.safetensors")


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
    assert [*CONTROLS] == [*Method.__members__] == [*ControlChoice.__members__][:-1]


@pytest.mark.parametrize(("method", "layers", "strength"), TWINS)
def test_written_and_loaded_are_the_twin(pair, tmp_path, monkeypatch, method, layers, strength):
    monkeypatch.setattr(tensors, "PART", 1 << 12)  # tensors of many parts
    models = family(method, *pair, layers)
    write_mix(*pair, strength, tmp_path / "m", control=models.fn)
    written = load_file(tmp_path / "m" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "retain", dtype=torch.float32)
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


@pytest.mark.parametrize("method", CONTROLS)
def test_ends_are_the_two_checkpoints(pair, method):
    if CONTROLS[method].option == "trajectory":
        pytest.skip("tested below, on a trajectory")
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
    from unlearn_metrics.control.checkpoints import Checkpoint

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
    from test_score import DATA, run, score

    kept = score(tmp_path / "a", "--control", "trim", "--limit", 20, unlearned=DEMO / "moderate")
    assert kept.returncode == 0, kept.stderr
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["control"]["method"] == "trim"
    assert "|ctl:trim.es.keep0.95|" in record["signature"]
    assert "controlled by trim at alpha" in record["verdict"]
    given = ("--original", DEMO / "original", "--unlearned", DEMO / "moderate", "--limit", 20)
    done = run("control", "trim", *given, "--benchmark", "demo", "--data", DATA, "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert f"alpha {record['control']['alpha']:g}: wrote" in done.stdout
    models = family("trim", *open_pair(str(DEMO / "original"), str(DEMO / "moderate")))
    expected = models.at(record["control"]["alpha"]).tensors
    for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].read()), name


def test_layers_are_in_the_record_and_set_its_signature_apart(tmp_path):
    from test_score import score

    done = score(tmp_path / "a", "--control", "layers", "--layers", "0-1", "--alpha", 1, "--limit", 4)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["control"]["parameters"] == {"layers": "0-1"}
    assert re.search(r"\|ctl:layers-\w{8}\.alpha1\|", record["signature"])
    es = {m: record["scores"][m]["forget"]["extraction_strength"]["value"] for m in record["scores"]}
    assert es["controlled"] != es["uncontrolled"]  # one layer of three, embeddings and head are the original's
