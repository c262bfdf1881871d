"""Checkpoints as other people's trainers leave them: taken where no number depends on it, refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config

from tests import CHECKPOINTS
from unlearn_metrics.checkpoints.files import open_checkpoint, skeleton
from unlearn_metrics.checkpoints.pairs import _other_architecture, align
from unlearn_metrics.errors import InputError

ORIGINAL = CHECKPOINTS / "original"  # ties its embeddings


def with_config(tmp_path: Path, **changes: Any) -> str:
    folder = shutil.copytree(CHECKPOINTS / "moderate", tmp_path / "u")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"unsloth_version": "2025.9.7"},
        {"unsloth_fixed": True, "trained_by": {"someone": [1]}},
        {"attention_dropout": 0.1},
        {"hidden_dropout_prob": 0.1},
        {"id2label": {"0": "NO", "1": "YES"}, "label2id": {"NO": 0, "YES": 1}},
        {"initializer_range": 0.5},
        {"pad_token_id": 1024},  # one row beyond the embedding
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_trainers_leave_in_a_config_is_no_architecture(tmp_path, change):
    o, u = align(*(open_checkpoint(name) for name in (str(ORIGINAL), with_config(tmp_path, **change))))
    assert o.tensors.keys() == u.tensors.keys()
    skeleton(u)


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}],
)
def test_what_changes_a_number_is_an_architecture(tmp_path, change):
    with pytest.raises(InputError, match=f"differ in architecture: {next(iter(change))} is"):
        align(*(open_checkpoint(name) for name in (str(ORIGINAL), with_config(tmp_path, **change))))


def test_configurations_within_one_count_the_same_way():
    """Models of text and images have one in the other."""
    bare = Gemma3Config().to_dict()
    inner = bare["text_config"]
    left = bare | {"text_config": inner | {"unsloth_version": "1", "attention_dropout": 0.5}, "left": 1}
    assert _other_architecture(bare, left, bare) is None
    other = bare | {"text_config": inner | {"num_hidden_layers": 99}}
    assert str(_other_architecture(bare, other, bare)).startswith("text_config: num_hidden_layers is")


def adapted(tmp_path: Path, targets: list[str], save: bool | str, rows: int | None = None) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ORIGINAL)
    if rows:
        model.resize_token_embeddings(rows)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=save)
    return str(tmp_path / "adapter")


def test_an_adapter_with_the_unchanged_embedding_is_taken(tmp_path):
    """PEFT saves both ends of a tied embedding along when it is told to, or the vocabulary was touched."""
    base = open_checkpoint(str(ORIGINAL))
    with_, without = (open_checkpoint(adapted(tmp_path / str(save), ["q_proj"], save), base) for save in (True, False))
    assert with_.tensors.keys() == without.tensors.keys()
    assert all(tensor.equals(without.tensors[name]) for name, tensor in with_.tensors.items())


@pytest.mark.parametrize(
    ("targets", "save", "rows", "says"),
    [
        (["q_proj"], "auto", 1025, "has a vocabulary of 1025 rows, the original one of 1024; merge it"),
        (["q_proj", "lm_head"], False, None, r"changes lm_head\.weight, which is tied to another tensor"),
        (["embed_tokens"], False, None, r"changes model\.embed_tokens\.weight, which is tied to another tensor"),
    ],
)
def test_an_adapter_that_changes_a_tied_embedding_is_refused(tmp_path, targets, save, rows, says):
    name = adapted(tmp_path, targets, save, rows)
    with pytest.raises(InputError, match=says):
        open_checkpoint(name, open_checkpoint(str(ORIGINAL)))


@pytest.mark.parametrize("role", ["original", "unlearned"])
def test_a_model_with_an_adapter_beside_it_is_refused_in_either_role(tmp_path, role):
    """transformers, and so lm-eval, apply the adapter; nothing tells which of the two is meant."""
    folder = shutil.copytree(CHECKPOINTS / "moderate", tmp_path / "both")
    for file in Path(adapted(tmp_path, ["q_proj"], False)).glob("adapter_*"):
        shutil.copy(file, folder)
    with pytest.raises(InputError, match=r"whole model and, beside it, an adapter \(adapter_config\.json\)"):
        open_checkpoint(str(folder), None if role == "original" else open_checkpoint(str(ORIGINAL)))
