"""theta(alpha) = original + alpha * (unlearned - original): on tensors, in a loaded model, and on disk.

Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), model mixing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from unlearn_metrics.control.checkpoints import Checkpoint, write_checkpoint
from unlearn_metrics.types import InputError


def mix(original: torch.Tensor, unlearned: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mix two tensors of one shape in float32; the result has the unlearned tensor's dtype.

    alpha 0 and 1 return the inputs themselves, bit for bit. Tensors of integers can't be mixed and come from the
    unlearned model (from the original at alpha 0).
    """
    if alpha == 0:
        return original
    if alpha == 1 or not unlearned.is_floating_point():
        return unlearned
    return torch.lerp(original.float(), unlearned.float(), alpha).to(unlearned.dtype)


def mix_into(model: PreTrainedModel, original: Checkpoint, unlearned: Checkpoint, alpha: float) -> None:
    """Rewrite the parameters of a loaded model in place, tensor by tensor, as loading the mixed checkpoint would.

    Raises InputError, before anything is rewritten, if a parameter has no tensor of its name in the checkpoint.
    """
    targets = _targets(model, original)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(mix(original.read(name), unlearned.read(name), alpha))


def _targets(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """tensor name on disk -> the model's own tensor. Tied weights count once; tensors the model has no use for, not."""
    wanted = {
        **dict(model.named_parameters()),
        **{n: b for n, b in model.named_buffers() if n in model.state_dict()},
    }
    prefix = f"{model.base_model_prefix}."
    targets = {}
    for name, target in wanted.items():
        on_disk = name if name in checkpoint.tensors else name.removeprefix(prefix)
        if on_disk not in checkpoint.tensors or checkpoint.shape(on_disk) != tuple(target.shape):
            raise InputError(
                f"{checkpoint.name}: parameter {name} of the loaded model is not on disk under its name and shape "
                "(transformers renames or fuses tensors of this architecture on load); it can't be mixed in place"
            )
        targets[on_disk] = target
    return targets


def write_mix(original: Checkpoint, unlearned: Checkpoint, alpha: float, out: Path, note: str = "") -> None:
    """Write theta(alpha) as a checkpoint that transformers loads, with the original's tokenizer and a README."""
    readme = (
        f"# Mixed checkpoint\n\nParameters = original + {alpha!r} * (unlearned - original), in float32 per tensor, "
        f"stored in the unlearned checkpoint's dtype.\n\n- original: {original.name}\n- unlearned: {unlearned.name}\n"
        f"- alpha: {alpha!r} (0 = original, 1 = unlearned)\n{note}\nMade by unlearn-metrics, `control mix`.\n"
    )
    write_checkpoint(
        out,
        original if alpha == 0 else unlearned,
        original,
        lambda name: mix(original.read(name), unlearned.read(name), alpha),
        readme,
    )
