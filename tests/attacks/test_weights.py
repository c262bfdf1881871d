"""Attacks on weights by hand, against twins from whole state dicts, and against bitsandbytes, bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests import CHECKPOINTS
from tests.command import refused, run
from unlearn_metrics.attacks import ATTACKS, ON_WEIGHTS, known
from unlearn_metrics.attacks.weights import FP4_LEVELS, NF4_LEVELS
from unlearn_metrics.checkpoints import tensors
from unlearn_metrics.checkpoints.files import open_checkpoint
from unlearn_metrics.checkpoints.tensors import from_memory
from unlearn_metrics.control.mixing import mix, mix_into
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.controlled_lm import ControlledLM

NAME = "model.layers.0.mlp.down_proj.weight"  # of the demo


@pytest.fixture(scope="module")
def model():
    return open_checkpoint(str(CHECKPOINTS / "original"))


def after(model, attack: str, matrix: torch.Tensor) -> torch.Tensor:
    """What an attack makes of one matrix."""
    return ATTACKS[attack].fn(replace(model, tensors={NAME: from_memory(matrix)})).tensors[NAME].read()


def test_every_attack_is_what_its_name_says():
    assert [name for name in ATTACKS if ATTACKS[name].on == "weights"] == [*ON_WEIGHTS]
    for name in ATTACKS:
        assert ATTACKS[name].what
    with pytest.raises(InputError, match="unknown attack 'int3'; did you mean int8 or int4"):
        known("int3")
    with pytest.raises(InputError, match="the attack prefix is on prompts; on weights there are int8, int4"):
        known("prefix", on=("weights",))


@pytest.mark.parametrize("attack", ON_WEIGHTS)
def test_only_matrices_of_linear_layers_change(model, attack):
    found = ATTACKS[attack].fn(model).tensors
    linear = {name for name in found if name.endswith("_proj.weight")}
    assert len(linear) == 7 * 3
    assert {name for name in found if found[name] is not model.tensors[name]} == linear
    for name in linear:
        assert not found[name].equals(model.tensors[name]), name
        assert found[name].dtype == model.tensors[name].dtype


# --- by hand


def test_int8_by_hand(model):
    row = torch.tensor([[127.0, 63.4, -0.6, 0.4], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.0, 0.03, 0.0]])
    assert after(model, "int8", row).tolist() == [
        [127, 63, -1, 0],
        [0, 0, 0, 0],
        pytest.approx([-2.54, 1.0, 0.04, 0], abs=1e-6),  # steps of 0.02: 1.5 of them are rounded to the even 2
    ]


def test_int4_by_hand(model):
    """Two groups of 64 along the input, each with its own absmax."""
    row = torch.zeros(1, 100)
    row[0, :4] = torch.tensor([7.0, 3.4, 2.6, -0.4])
    row[0, 64:67] = torch.tensor([-0.7, 0.34, 0.26])
    found = after(model, "int4", row)
    assert found[0, :4].tolist() == [7, 3, 3, 0]
    assert found[0, 64:67].tolist() == pytest.approx([-0.7, 0.3, 0.3])
    assert found[0, 4:64].eq(0).all()


@pytest.mark.parametrize(("attack", "levels"), [("nf4", NF4_LEVELS), ("fp4", FP4_LEVELS)])
def test_levels_are_the_published_ones(model, attack, levels):
    """Each level stays; a value half-way to the next becomes the lower one; absmax scales them."""
    assert list(levels) == sorted(levels)
    block = torch.zeros(1, 64)
    block[0, : len(levels)] = 8 * torch.tensor(levels)
    assert torch.equal(after(model, attack, block), block)
    middle = (block[0, 7] + block[0, 8]) / 2
    block[0, 20], block[0, 21] = middle, torch.nextafter(middle, torch.tensor(9.0))
    assert after(model, attack, block)[0, 20:22].tolist() == block[0, 7:9].tolist()


def test_the_levels_of_fp4_are_floats():
    """Sign, exponent 1 to 3 and one bit of mantissa, 2^e (1 + m / 2), and bitsandbytes' subnormal 1/16; over 12."""
    positive = [0.0, 1 / 16, *(2**e * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1))]
    assert sorted({sign * value / 12 for sign in (-1, 1) for value in positive}) == list(FP4_LEVELS)
    assert len(FP4_LEVELS) == 15  # 0 and -0 are one


def test_prune_by_hand(model):
    matrix = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0], [-6.0, 7.0, -8.0, 9.0, 10.0]])
    expected = matrix.clone()
    expected[0, :3] = 0
    assert torch.equal(after(model, "prune_30", matrix), expected)
    expected[0] = 0
    assert torch.equal(after(model, "prune_50", matrix), expected)
    assert torch.equal(after(model, "prune_50", torch.ones(2, 2)), torch.ones(2, 2))  # equals of what is kept are kept


# --- against twins


def test_prune_and_noise_on_a_real_matrix(model):
    weight = load_file(CHECKPOINTS / "original" / "model.safetensors")[NAME]
    flat = weight.float().abs().flatten()
    for percent in (10, 30, 50):
        least = flat.sort().values[percent * len(flat) // 100]
        twin = torch.where(weight.float().abs() >= least, weight, 0)
        assert torch.equal(after(model, f"prune_{percent}", weight), twin)
    large = torch.randn(700, 300, generator=torch.Generator().manual_seed(0)) + 3  # the mean is not deviation
    for percent in (1, 5):
        noise = (after(model, f"noise_{percent}", large) - large) / (percent / 100 * large.std())
        assert abs(noise.mean()) < 5 / math.sqrt(noise.numel())
        assert noise.std() == pytest.approx(1, abs=0.01)
        assert abs(noise[:256].flatten() @ noise[256:512].flatten()) < 5 * math.sqrt(256 * 300)  # blocks differ
    one, five = (after(model, f"noise_{percent}", large) - large for percent in (1, 5))
    assert torch.allclose(5 * one, five, atol=1e-4)


@pytest.mark.parametrize("attack", ON_WEIGHTS)
@settings(max_examples=15)
@given(start=st.integers(0, 299), count=st.integers(1, 300), width=st.sampled_from([1, 36, 64, 100]))
def test_rows_are_those_of_the_whole(model, attack, start, count, width):
    """Whatever rows are asked for: blocks of nf4 go over several rows, noise is drawn by hundreds of them."""
    matrix = torch.randn(300, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    tensor = ATTACKS[attack].fn(replace(model, tensors={NAME: from_memory(matrix)})).tensors[NAME]
    whole = tensor.rows(0, 300)
    assert torch.equal(tensor.rows(start, min(300, start + count)), whole[start : start + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attack", ["nf4", "fp4"])
def test_four_bits_are_bitsandbytes_bit_for_bit(model, attack, dtype):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 256), (7, 36), (3, 64), (5, 2)):  # blocks over several rows, and a last one that is not full
        for scale in (1.0, 1e-3, 300.0):
            matrix = (scale * torch.randn(shape, generator=generator)).to(dtype)
            matrix[0] = 0
            quantized, state = functional.quantize_4bit(matrix, quant_type=attack, blocksize=64)
            expected = functional.dequantize_4bit(quantized, state)
            assert torch.equal(after(model, attack, matrix), expected), (shape, scale)


def test_a_matrix_stored_the_other_way_round_is_turned(tmp_path):
    """GPT-2's layers hold inputs in rows: an output is a column."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path)
    model = open_checkpoint(str(tmp_path))
    found = ATTACKS["int8"].fn(model).tensors
    changed = {name for name in found if found[name] is not model.tensors[name]}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.0.{layer}.weight" for layer in layers}  # no wte, no wpe
    weight = model.tensors["transformer.h.0.mlp.c_fc.weight"].read()
    step = weight.abs().amax(0, keepdim=True) / 127
    twin = (weight / step).round() * step
    assert torch.allclose(found["transformer.h.0.mlp.c_fc.weight"].read(), twin, atol=1e-7)


# --- what rounding and pruning undo


@pytest.mark.parametrize("attack", ["int8", "int4", "nf4", "fp4", "prune_30"])
def test_a_patch_below_what_is_rounded_away_is_undone(model, attack):
    """Unlearning that is a small patch on weights: signs of an outer product, as large as the attack does not see."""
    before = after(model, attack, model.tensors[NAME].read().float())
    generator = torch.Generator().manual_seed(0)
    signs = [torch.randn(n, generator=generator).sign() for n in before.shape]
    # the largest of a group would move its scale, and a magnitude above what is pruned its place
    absmax = before.abs().unfold(1, 32, 32).amax(2).repeat_interleave(32, 1)
    free = before == 0 if attack == "prune_30" else before.abs() < 0.9 * absmax
    size = {"int8": 0.001, "int4": 0.06, "nf4": 0.03, "fp4": 0.002, "prune_30": 0.0001}[attack]
    patched = before + torch.where(free, size * absmax * torch.outer(*signs), 0)
    assert not torch.equal(patched, before)
    assert torch.allclose(after(model, attack, patched), before, atol=1e-7)


# --- on disk, in a model, as a model of lm-eval


def test_written_loaded_and_asked_are_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "PART", 1 << 12)  # tensors of many parts
    given = ("--model", CHECKPOINTS / "original", "--out", tmp_path / "a")
    done = run("attack", "nf4", *given)
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "a" / "model.safetensors")
    assert "after the attack nf4: weights rounded to 4-bit NormalFloat" in (tmp_path / "a" / "README.md").read_text()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"]
    attacked = ATTACKS["nf4"].fn(model)
    assert written.keys() == attacked.tensors.keys()
    assert all(torch.equal(written[name], tensor.read()) for name, tensor in attacked.tensors.items())
    loaded = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.bfloat16)
    mix_into(loaded, model, model, 0, mix, ATTACKS["nf4"].fn)
    pair = (str(CHECKPOINTS / "moderate"), str(CHECKPOINTS / "original"))
    asked = ControlledLM(*pair, alpha=1, attack="nf4", device="cpu").model
    for found in (loaded.state_dict(), asked.state_dict()):
        assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
    with pytest.raises(InputError, match="the attack prefix is on prompts"):
        ControlledLM(*pair, alpha=1, attack="prefix", device="cpu")


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    given = ("--model", CHECKPOINTS / "original", "--out", tmp_path / "a")
    refused(run("attack", "nf5", *given), "unknown attack 'nf5'; did you mean nf4", tmp_path / "a")
    refused(run("attack", "fewshot_3", *given), "the attack fewshot_3 is on prompts", tmp_path / "a")
    broken = replace(ATTACKS["int8"], fn=lambda model: replace(model, tensors=_nan(model.tensors)))
    monkeypatch.setitem(ATTACKS, "int8", broken)
    refused(
        run("attack", "int8", *given),
        "after int8: tensor model.embed_tokens.weight has NaN or infinite",
        tmp_path / "a",
    )


def _nan(tensors):
    return {name: from_memory(tensor.read() * math.nan) for name, tensor in sorted(tensors.items())}
