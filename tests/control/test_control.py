"""Control: mixing is exact, calibration finds the edge without assuming monotony, bad checkpoints are named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests import CHECKPOINTS
from unlearn_metrics.checkpoints import files
from unlearn_metrics.checkpoints import tensors as tensors_of_files
from unlearn_metrics.checkpoints.files import check_finite, open_checkpoint
from unlearn_metrics.checkpoints.pairs import align
from unlearn_metrics.checkpoints.tensors import from_memory
from unlearn_metrics.control import mixing
from unlearn_metrics.control.controls import family
from unlearn_metrics.control.mixing import lerp, mix_into, write_mix
from unlearn_metrics.errors import InputError


@pytest.fixture
def pair():
    return open_checkpoint(str(CHECKPOINTS / "original")), open_checkpoint(str(CHECKPOINTS / "excessive"))


@pytest.fixture
def broken(tmp_path):
    """A copy of a demo checkpoint to break."""
    return Path(shutil.copytree(CHECKPOINTS / "excessive", tmp_path / "broken"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


# --- mixing


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, [1.0, -2.0, 0.5]), (0.25, [1.5, -1.5, 0.5]), (0.5, [2.0, -1.0, 0.5]), (1.0, [3, 0, 0.5])],
)
def test_mix_by_hand(alpha, expected):
    o, u = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.0, 0.5])
    assert lerp(o, u, alpha).tolist() == expected


@given(st.lists(st.floats(-1e4, 1e4, width=16), min_size=2, max_size=20), st.floats(0, 1), st.booleans())
def test_mix_lies_between(values, alpha, half):
    dtype = torch.bfloat16 if half else torch.float32
    o, u = torch.tensor(values).to(dtype), torch.tensor(values[::-1]).to(dtype)
    mixed = lerp(o, u, alpha)
    assert mixed.dtype == dtype
    assert ((mixed >= torch.minimum(o, u)) & (mixed <= torch.maximum(o, u))).all()


def test_mix_rounds_once():
    # 1 + 2^-8 lies between two bfloat16 numbers; mixing in bfloat16 itself would lose the step
    o, u = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.015625], dtype=torch.bfloat16)
    exact = (o.double() + 0.6 * (u.double() - o.double())).to(torch.bfloat16)
    assert torch.equal(lerp(o, u, 0.6), exact)


@pytest.mark.parametrize(("steps", "said"), [((1, 2, 2, 9), "75%"), ((1, 2, 9, 9), None), ((), None)])
def test_changes_that_rounding_loses_are_said(pair, steps, said):
    """Of four weights that differ by so many steps of bfloat16, 2^-7 between 1 and 2."""
    o, u = torch.full((2, 4), 1.25, dtype=torch.bfloat16), torch.full((2, 4), 1.25, dtype=torch.bfloat16)
    for i, n in enumerate(steps):
        u[1, i] += n / 128
    original, unlearned = (replace(pair[0], tensors={"w": from_memory(t)}) for t in (o, u))
    wide_o, wide_u = (replace(c, tensors={"w": c.tensors["w"].cast(torch.float32)}) for c in (original, unlearned))
    for of in (original, wide_o):  # mixes have the unlearned model's dtype
        note = family("mix", of, unlearned).rounding()
        assert (note is None) if said is None else note.startswith(f"about {said} of the weights that unlearning")
        assert note is None or "steps of bfloat16" in note
    assert family("mix", original, unlearned).rounding(1) is None
    assert family("trim", original, unlearned).rounding() is None
    assert family("mix", wide_o, wide_u).rounding() is family("mix", original, wide_u).rounding() is None
    if said:  # a change of one step is lost below the middle, and whole above
        below, above = (lerp(o, u, alpha)[1, 0].item() for alpha in (0.49, 0.51))
        assert (below, above) == (o[1, 0].item(), u[1, 0].item())


def test_rounding_is_of_the_tensors_that_are_mixed_and_of_all_their_rows(pair):
    one = torch.ones(1000, 4, dtype=torch.bfloat16)
    near, later = one + 1 / 128, one.clone()
    later[:64] += 1 / 128
    later[64:] *= 1.5
    of = {"h.0.w": later, "h.1.w": near, "h.2.w": near}
    original, unlearned = (
        replace(pair[0], tensors={name: from_memory(t) for name, t in made.items()})
        for made in (dict.fromkeys(of, one), of)
    )
    assert family("layers", original, unlearned, "0").rounding() is None
    assert family("layers", original, unlearned, "1").rounding().startswith("about 100%")
    assert family("layers", original, unlearned).rounding().startswith("about 7")  # 2 of 3, and a few rows


def test_the_packaged_checkpoints_mix_finely(pair):
    assert family("mix", *pair).rounding() is None


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loaded_model_equals_written_checkpoint(pair, tmp_path, alpha):
    """Rewriting a float32 model in place = writing the bfloat16 mix and loading it."""
    original, unlearned = pair
    write_mix(original, unlearned, alpha, tmp_path / "mixed")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.float32)
    mix_into(model, original, unlearned, alpha)
    mine = model.state_dict()
    assert mine.keys() == fresh.state_dict().keys()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in fresh.state_dict().items())
    if alpha in (0.0, 1.0):
        source = tensors(CHECKPOINTS / ("original" if alpha == 0 else "excessive"))
        written = tensors(tmp_path / "mixed")
        assert all(torch.equal(written[name].view(torch.int16), t.view(torch.int16)) for name, t in source.items())


@pytest.fixture
def roomy(monkeypatch):
    """A CPU that holds checkpoints as a GPU does: [bytes of room], to be changed; and the files' reads, counted."""
    room, reads = [1 << 40], []
    keep = tensors_of_files._read_at
    monkeypatch.setattr(mixing, "_room", lambda device: room[0])
    monkeypatch.setattr(tensors_of_files, "_read_at", lambda *args: (reads.append(args[0]), keep(*args)))
    return room, reads


@pytest.mark.parametrize("method", ["mix", "trim", "layers", "temperature"])
def test_held_checkpoints_give_the_mix_of_the_files_and_are_read_once(pair, roomy, method):
    room, reads = roomy
    held, plain = (AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.float32) for _ in range(2))
    models = family(method, *pair)
    for i, alpha in enumerate((0.3, 1, 0.7, 0, 0.3)):
        room[0] = 1 << 40
        reads.clear()
        mix_into(held, *pair, alpha, models.fn)
        assert bool(reads) == (i == 0)
        room[0] = 0
        mix_into(plain, *pair, alpha, models.fn)
        there = plain.state_dict()
        assert all(torch.equal(tensor, there[name]) for name, tensor in held.state_dict().items())
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(held(ids).logits, plain(ids).logits)  # the temperature, too


def test_checkpoints_are_held_where_they_fit_both_and_one_pair_at_a_time(pair, roomy):
    room, reads = roomy
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.float32)
    both = sum(tensor.nbytes for checkpoint in pair for tensor in checkpoint.tensors.values())

    def reads_of(alpha, original, unlearned):
        reads.clear()
        mix_into(model, original, unlearned, alpha)
        return {path.parent.name for path in reads}

    room[0] = both - 1
    assert reads_of(0.5, *pair) == reads_of(0.5, *pair) == {"original", "excessive"}
    again = open_checkpoint(str(CHECKPOINTS / "original")), pair[1]
    room[0] = both
    assert reads_of(1, *again) == {"excessive"}  # once is not worth holding
    assert reads_of(0.5, *again) == {"original", "excessive"}
    assert reads_of(0.5, *again) == reads_of(0, *again) == set()
    (o, u), _ = model.__dict__["unlearn_held"]
    assert (o, u) == again
    assert reads_of(0.5, *pair) == {"original", "excessive"}
    assert model.__dict__["unlearn_held"][0] == [*pair]  # the last pair is let go


def test_written_mix_is_a_whole_checkpoint(pair, tmp_path):
    out = tmp_path / "deep" / "mixed"
    write_mix(*pair, 0.5, out, note="- note\n")
    o, u, m = tensors(CHECKPOINTS / "original"), tensors(CHECKPOINTS / "excessive"), tensors(out)
    for name, tensor in m.items():
        assert torch.equal(tensor, ((o[name].float() + u[name].float()) / 2).to(torch.bfloat16)), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (
        tokenizer("Question: who?").input_ids
        == AutoTokenizer.from_pretrained(CHECKPOINTS / "original")("Question: who?").input_ids
    )
    readme = (out / "README.md").read_text()
    assert "alpha: 0.5" in readme
    assert str(CHECKPOINTS / "excessive") in readme
    assert not list(tmp_path.rglob(".*"))  # no partial folder left
    with pytest.raises(InputError, match="already exists"):
        write_mix(*pair, 0.5, out)


def test_failed_write_leaves_nothing(pair, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mix(*pair, 0.5, tmp_path / "mixed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [True, False])
def test_shards_untied_and_other_splits(tmp_path, tied):
    """Two models sharded differently, tied or not: the mix in place equals the mix written and loaded."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    for name, size, seed in (("o", "10KB", 0), ("u", "30KB", 1)):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name, max_shard_size=size)
    original, unlearned = open_checkpoint(str(tmp_path / "o")), open_checkpoint(str(tmp_path / "u"))
    assert 1 < len(unlearned.files) < len(original.files)
    original, unlearned = align(original, unlearned)
    write_mix(original, unlearned, 0.25, tmp_path / "m", max_shard="10KB")
    model = LlamaForCausalLM(config)
    mix_into(model, original, unlearned, 0.25)
    fresh = LlamaForCausalLM.from_pretrained(tmp_path / "m")
    by_hand = {n: torch.lerp(t, tensors(tmp_path / "u")[n], 0.25) for n, t in tensors(tmp_path / "o").items()}
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        if name in by_hand:
            assert torch.allclose(tensor, by_hand[name], atol=1e-7), name


def test_parameter_that_is_not_on_disk_is_refused_before_anything_changes(pair):
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "retain", dtype=torch.float32)
    model.extra = torch.nn.Parameter(torch.zeros(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="extra"):
        mix_into(model, *pair, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- what is wrong is named, in one line


def check(folder: Path | str) -> None:
    checkpoint = open_checkpoint(str(folder))
    align(open_checkpoint(str(CHECKPOINTS / "original")), checkpoint)
    check_finite(checkpoint)


def fails(match: str, folder: Path | str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        check(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["model", "model.layers.0"])
def test_offloaded_parameters_are_rewritten_where_accelerate_keeps_them(pair, part):
    """The whole model, or a layer of it, on a device without memory: the CPU's, brought there module by module."""
    plain, offloaded = (AutoModelForCausalLM.from_pretrained(pair[0].folder) for _ in range(2))
    if part == "model":
        accelerate.cpu_offload(offloaded, torch.device("cpu"))
    else:
        accelerate.cpu_offload(offloaded.get_submodule(part), torch.device("cpu"))
    assert any(p.is_meta for p in offloaded.parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    before = plain(ids).logits
    for alpha in (0.5, 1.0, 0.0):
        for model in (plain, offloaded):
            mix_into(model, *pair, alpha)
        assert torch.equal(offloaded(ids).logits, plain(ids).logits)
        assert torch.equal(plain(ids).logits, before) == (alpha == 0)


def test_what_is_offloaded_to_disk_is_refused(pair, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pair[0].folder)
    accelerate.disk_offload(model, tmp_path, torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    with pytest.raises(InputError, match="is offloaded to disk, where it can't be rewritten"):
        mix_into(model, *pair, 0.5)
    assert torch.equal(model(ids).logits, before)


def test_an_offloaded_vocabulary_is_not_resized(pair):
    model = AutoModelForCausalLM.from_pretrained(pair[0].folder)
    accelerate.cpu_offload(model, torch.device("cpu"))
    longer = {"model.embed_tokens.weight": torch.zeros(2000, model.config.hidden_size)}
    checkpoint = replace(pair[0], tensors=pair[0].tensors | {n: from_memory(t) for n, t in longer.items()})
    with pytest.raises(InputError, match="changes the vocabulary or the head, which can't be done while offloaded"):
        mixing.load_into(model, checkpoint)


def test_missing_folder(tmp_path):
    fails("not a folder", tmp_path / "nowhere")


def test_unreachable_hub_id(monkeypatch):
    monkeypatch.setattr(
        files.huggingface_hub,
        "model_info",
        lambda *a, **k: (_ for _ in ()).throw(OSError("offline\nmore")),
    )
    fails(r"neither a folder here nor to be had from the hub \(offline\)", "someone/something@v1")


def test_folder_without_config(tmp_path):
    fails(r"no config\.json", tmp_path)


def test_no_weights(broken):
    (broken / "model.safetensors").rename(broken / "model.gguf")
    fails("no weights: no model.safetensors", broken)


def test_not_a_safetensors_file(broken):
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    fails("no whole safetensors file", broken)


def test_truncated_file(broken):
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    fails("no whole safetensors file", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_parameters(broken, value):
    weights = load_file(broken / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = value
    save_file(weights, broken / "model.safetensors")
    fails(f"{name} has NaN or infinite", broken)


def test_quantized(broken):
    config = json.loads((broken / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (broken / "config.json").write_text(json.dumps(config))
    fails("quantized", broken)


def test_index_that_points_elsewhere(broken):
    (broken / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../original/model.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    fails("outside the checkpoint", broken)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("num_hidden_layers", 4, "num_hidden_layers is 3 in one, 4"), ("model_type", "mistral", "model_type is llama")],
)
def test_other_architecture(broken, key, value, says):
    config = json.loads((broken / "config.json").read_text()) | {key: value}
    (broken / "config.json").write_text(json.dumps(config))
    fails(says, broken)


def test_other_shape_and_missing_tensor(broken):
    weights = load_file(broken / "model.safetensors")
    name = "model.norm.weight"
    save_file(weights | {name: torch.ones(7)}, broken / "model.safetensors")
    fails(rf"{name} has shape \[96\] in one, \[7\]", broken)
    save_file({k: v for k, v in weights.items() if k != name}, broken / "model.safetensors")
    fails(f"has no tensor {name}", broken)


def test_other_tokenizer(broken):
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = [t for t in vocab if vocab[t] in (600, 601)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    fails("tokenizers of .* differ: token", broken)


def test_a_checkpoint_without_tokenizer_uses_the_originals(broken):
    for file in broken.glob("tokenizer*"):
        file.unlink()
    align(open_checkpoint(str(CHECKPOINTS / "original")), open_checkpoint(str(broken)))
