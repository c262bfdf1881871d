"""LoRA adapters (PEFT) as checkpoints: base + scaling * B A, computed by rows when it is read, no merged copy.

Source: Hu et al. 2021 (arXiv 2106.09685); file format and arithmetic as PEFT's merge_and_unload, whose result this is,
in the base's dtype, but for float32's rounding where the BLAS adds up a part of a product otherwise than the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from unlearn_metrics.checkpoints.tensors import LazyTensor
from unlearn_metrics.errors import InputError

CONFIG = "adapter_config.json"
# Read here, or without effect on merged weights. Anything else that is set is refused by name.
UNDERSTOOD = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules
    exclude_modules layers_to_transform layers_pattern r lora_alpha lora_dropout rank_pattern alpha_pattern
    use_rslora fan_in_fan_out bias modules_to_save init_lora_weights runtime_config megatron_core qalora_group_size
    eva_config ensure_weight_tying
""".split()  # noqa: SIM905
# Other initialisations change the base's weights, which the adapter then no longer fits.
NEUTRAL_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def lora(
    name: str,
    config: Mapping[str, Any],
    adapter: Mapping[str, LazyTensor],
    base: Mapping[str, LazyTensor],
    tied: Mapping[str, str],
) -> dict[str, LazyTensor]:
    """The base's tensors with the adapter merged in. tied: parameter -> the one that it is, in a base that ties some.

    Raises InputError, naming it, for anything that can't be merged exactly.
    """
    if config.get("peft_type") != "LORA":
        raise InputError(f"{name} is an adapter of type {config.get('peft_type')}; only LoRA can be mixed")
    unknown = sorted(key for key, value in config.items() if value and key not in UNDERSTOOD)
    if unknown:
        raise InputError(f"{name} is a LoRA adapter with {unknown[0]}, which can't be mixed exactly")
    if config.get("init_lora_weights", True) not in NEUTRAL_INITS:
        raise InputError(f"{name} was initialised by {config['init_lora_weights']}, which changes the base; merge it")
    merged: dict[str, LazyTensor] = dict(base)
    factors: dict[tuple[str, str, bool], dict[str, LazyTensor]] = {}
    for key, tensor in adapter.items():
        path = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", path)
        changed = f"{found[1]}.weight" if found else path
        target = _find(changed, base) or _find(tied.get(changed, ""), base)
        if target is None:
            raise InputError(f"{name}: {key} has no place in the original model; is it another base's adapter?")
        if any(_find(end, base) == target for end in tied.values()):
            if not found and tensor.shape[:1] != base[target].shape[:1]:
                raise InputError(
                    f"{name} has a vocabulary of {tensor.shape[0]} rows, the original one of {base[target].shape[0]}; "
                    "merge it into its base"
                )
            if found or not tensor.cast(base[target].dtype).equals(base[target]):
                raise InputError(
                    f"{name} changes {changed}, which is tied to another tensor in the original; merge it into its base"
                )
            continue  # as PEFT saves the embedding layers along, unchanged
        if found:
            factors.setdefault((found[1], target, bool(found[2])), {})[found[3]] = tensor
        elif tensor.shape != base[target].shape:
            raise InputError(
                f"{name}: {key} has shape {list(tensor.shape)}, in the original {list(base[target].shape)}"
            )
        else:
            merged[target] = tensor.cast(base[target].dtype)
    for (module, target, embedding), pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise InputError(f"{name}: {module} has only one of lora_A and lora_B")
        merged[target] = _merge(f"{name}: {module}", merged[target], pair["A"], pair["B"], embedding, module, config)
    return merged


def _find(name: str, base: Mapping[str, LazyTensor]) -> str | None:
    """The base on disk may lack the prefix that the loaded model's names have."""
    return next((n for n in (name, name.partition(".")[2]) if n in base), None)


def _merge(
    where: str,
    base: LazyTensor,
    a: LazyTensor,
    b: LazyTensor,
    embedding: bool,
    module: str,
    config: Mapping[str, Any],
) -> LazyTensor:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InputError(f"{where} has lora_A and lora_B of shapes {list(a.shape)}, {list(b.shape)}")
    straight, turned = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
    # PEFT turns the product for embeddings and for Conv1D; only a square shape leaves open which it is
    turn = embedding or (base.shape == turned and (base.shape != straight or bool(config.get("fan_in_fan_out"))))
    if base.shape != (turned if turn else straight):
        raise InputError(f"{where} changes a tensor of shape {list(straight)}, in the original {list(base.shape)}")
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    of_pattern = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), None)
    alpha = config.get("lora_alpha", 8) if of_pattern is None else of_pattern
    rank = a.shape[0]
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def rows(start: int, stop: int) -> torch.Tensor:
        if turn:
            delta = (b.read().float() @ a.read().float()[:, start:stop]).T * scaling
        else:
            delta = b.rows(start, stop).float() @ a.read().float() * scaling
        if embedding:  # of which PEFT rounds the difference too
            delta = delta.to(base.dtype).float()
        return (base.rows(start, stop).float() + delta).to(base.dtype)

    return LazyTensor(base.shape, base.dtype, rows)
