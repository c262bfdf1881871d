"""theta(alpha) = original + alpha * (unlearned - original): a checkpoint whose tensors are computed when read.

Such a checkpoint, of whatever control (controls.py), is put into a loaded model or written to disk here.
Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), model mixing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import PreTrainedModel

from unlearn_metrics.checkpoints.files import MAX_SHARD, Checkpoint, skeleton, write_checkpoint
from unlearn_metrics.checkpoints.pairs import in_memory, loaded
from unlearn_metrics.checkpoints.tensors import LazyTensor, free_on_card, from_memory
from unlearn_metrics.errors import InputError

# (original, unlearned, strength) -> the controlled checkpoint; strength 0 = original, 1 = unlearned
ControlFunction: TypeAlias = Callable[[Checkpoint, Checkpoint, float], Checkpoint]
Blend: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CARD_PART = 1 << 25  # elements mixed at once on a GPU: each call costs microseconds, whatever its size
BLOCKS, ROWS, STEPS = 8, 8, 2  # blocks of a tensor that are looked at; rows of a block; steps of the stored dtype
FINER = "`control mix --alpha 1 --out-dtype float32` gives a copy that mixes finely"
SPARE = 0.25  # of a GPU's memory, left to what the model computes


def mix(original: Checkpoint, unlearned: Checkpoint, alpha: float) -> Checkpoint:
    """The mix of two aligned checkpoints (pairs.align), in the unlearned one's dtypes. Nothing is read yet.

    alpha 0 and 1 are the inputs themselves, bit for bit.
    """
    if alpha in (0, 1):
        return unlearned if alpha else original
    return blended(original, unlearned, lambda name: lambda o, u: lerp(o, u, alpha))


def blended(original: Checkpoint, unlearned: Checkpoint, of: Callable[[str], Blend]) -> Checkpoint:
    """Each tensor of two aligned checkpoints made by its own function, of(name), of the same rows of both.

    Rows that the original lacks are the unlearned model's.
    """
    tensors = {n: _blended(original.tensors[n], tensor, of(n)) for n, tensor in unlearned.tensors.items()}
    return replace(unlearned, tensors=tensors)


def _blended(original: LazyTensor, unlearned: LazyTensor, blend: Blend) -> LazyTensor:
    def rows(start: int, stop: int) -> torch.Tensor:
        theirs = unlearned.rows(start, stop)
        common = min(stop, original.length) - start
        if common <= 0:
            return theirs
        mixed = blend(original.rows(start, start + common), theirs[:common])
        return mixed if common == len(theirs) else torch.cat([mixed, theirs[common:]])

    return LazyTensor(unlearned.shape, unlearned.dtype, rows)


def lerp(original: torch.Tensor, unlearned: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mix two tensors of one shape in float32; the result has the unlearned tensor's dtype.

    Tensors of integers can't be mixed and come from the unlearned model.
    """
    if alpha == 1 or not unlearned.is_floating_point():
        return unlearned
    if alpha == 0:  # torch.lerp would turn -0 into 0
        return original.to(unlearned.dtype)
    if original.dtype == unlearned.dtype:  # torch computes it in float32 and rounds once
        return torch.lerp(original, unlearned, alpha)
    return torch.lerp(original.float(), unlearned.float(), alpha).to(unlearned.dtype)


def rounding(original: Checkpoint, unlearned: Checkpoint, names: Iterable[str]) -> str | None:
    """A sentence, if most of what unlearning changed is at most two steps of the dtype that mixes are rounded to.

    A change of one step is lost in every mix below alpha 0.5, and whole above: the path is a staircase. names: the
    tensors that are mixed; a sample of their rows is looked at.
    """
    steps, changed = Counter[torch.dtype](), 0
    for name in names:
        theirs, mine = original.tensors[name], unlearned.tensors[name]
        if mine.dtype not in (torch.bfloat16, torch.float16):
            continue
        common = min(mine.length, theirs.length)
        for start in {(common - min(ROWS, common)) * block // (BLOCKS - 1) for block in range(BLOCKS)}:
            part = start, min(start + ROWS, common)
            o, u = (tensor.rows(*part).to(mine.dtype).contiguous() for tensor in (theirs, mine))
            apart = (o.view(torch.int16).int() - u.view(torch.int16).int()).abs()
            changed += int((apart > 0).sum())
            steps[mine.dtype] += int(((apart > 0) & (apart <= STEPS)).sum())
    if not steps.total() or steps.total() <= changed / 2:
        return None
    dtype = str(steps.most_common(1)[0][0]).removeprefix("torch.")
    return (
        f"about {steps.total() / changed:.0%} of the weights that unlearning changed are one or two steps of "
        f"{dtype} apart, to which mixes are rounded: the path is a staircase"
    )


def mix_into(
    model: PreTrainedModel,
    original: Checkpoint,
    unlearned: Checkpoint,
    alpha: float,
    control: ControlFunction = mix,
    attack: Callable[[Checkpoint], Checkpoint] | None = None,
) -> None:
    """Rewrite the parameters of a loaded model in place, as loading the controlled checkpoint would: see load_into.

    Where transformers renames or fuses tensors on load (mixture-of-experts, for one), both checkpoints are loaded by
    it once and kept in memory. A model on a GPU keeps both there, if they fit, from the first mix of them on.

    attack: what is done to the controlled checkpoint; to its tensors as they are stored, also where they are fused.
    """
    fused = _misfit(model, original) and _misfit(model, unlearned)
    if attack is not None and fused:
        load_into(model, loaded(attack(control(original, unlearned, alpha))))
        return
    if fused:
        original, unlearned = in_memory(original), in_memory(unlearned)
    original, unlearned = _held(model, original, unlearned, mixed=0 < alpha < 1)
    controlled = control(original, unlearned, alpha)
    load_into(model, controlled if attack is None else attack(controlled))


def _held(model: PreTrainedModel, original: Checkpoint, unlearned: Checkpoint, mixed: bool) -> list[Checkpoint]:
    """The two with their tensors beside the parameters, where those are on a GPU: all, or none if there is no room.

    One pair is held at a time, by the model. mixed=False: taken if it is held, but not read for a single use.
    """
    pair = [original, unlearned]
    known, held = model.__dict__.get("unlearn_held", (None, None))
    if known == pair:
        return held or pair
    if not mixed:
        return pair
    known = held = None
    model.__dict__.pop("unlearn_held", None)  # frees the last pair first
    devices = {_on_disk(model, original, name): tensor.device for name, tensor in _tensors(model).items()}
    beside = {name: devices.get(name, model.device) for name in unlearned.tensors}
    need: Counter[torch.device] = Counter()
    for checkpoint in pair:
        for name, tensor in checkpoint.tensors.items():
            need[beside[name]] += tensor.nbytes
    if all(size <= _room(device) for device, size in need.items()):
        held = [
            replace(c, tensors={n: from_memory(t.read().to(beside[n])) for n, t in c.tensors.items()}) for c in pair
        ]
    model.__dict__["unlearn_held"] = pair, held
    return held or pair


def _room(device: torch.device) -> int:
    """Bytes that checkpoints may occupy: of a GPU's memory."""
    if device.type != "cuda":
        return 0
    total = torch.cuda.get_device_properties(device).total_memory
    return int(free_on_card(device) - SPARE * total)


def load_into(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Rewrite the parameters of a loaded model in place, part by part, as loading the checkpoint would.

    The vocabulary is resized, and a tied head given weights of its own, where the checkpoint has it so.
    Raises InputError, before anything is rewritten, if a parameter has no tensor of its name and shape in it.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    name = next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)
    stored, shape = checkpoint.tensors.get(_on_disk(model, checkpoint, name)), embedding.weight.shape
    resized = stored is not None and stored.shape[0] != shape[0] and stored.shape[1:] == shape[1:]
    untied = checkpoint.changes.get("tie_word_embeddings") is False
    if (resized or untied) and (embedding.weight.is_meta or head.weight.is_meta):
        raise InputError(f"{checkpoint.name} changes the vocabulary or the head, which can't be done while offloaded")
    if stored is not None and resized:
        model.resize_token_embeddings(stored.shape[0], mean_resizing=False)
    if misfit := _misfit(model, checkpoint):
        raise InputError(
            f"{checkpoint.name}: parameter {misfit} of the loaded model is not in it under its name and shape"
        )
    head = model.get_output_embeddings()
    if checkpoint.changes.get("tie_word_embeddings") is False and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    _scale_logits(head, checkpoint.logit_scale)
    with torch.no_grad():
        for name, target in _tensors(model).items():
            tensor = checkpoint.tensors.get(_on_disk(model, checkpoint, name))
            if tensor is None:  # tied to another, which is there
                continue
            flat = target.view(tensor.length, tensor.width)
            for start, stop in tensor.parts(None if target.device.type == "cpu" else CARD_PART):
                flat[start:stop].copy_(tensor.rows(start, stop))


def _scale_logits(head: torch.nn.Module, scale: float) -> None:
    """Multiply what the head gives, in float32: in a coarser dtype two logits could become equal."""
    if (before := head.__dict__.pop("unlearn_scale", None)) is not None:
        before.remove()
    if scale != 1:
        head.__dict__["unlearn_scale"] = head.register_forward_hook(lambda _, args, logits: logits.float() * scale)


def _scaled_head(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its logit scale in the weights of its head, which gets some of its own if it was tied.

    InputError, once it is read, if a product can't be stored exactly.
    """
    model, scale, tensors = skeleton(checkpoint), checkpoint.logit_scale, dict(checkpoint.tensors)
    names = {module: name for name, module in model.named_modules()}
    head, embedding = (names[m] + ".weight" for m in (model.get_output_embeddings(), model.get_input_embeddings()))
    bias = head.removesuffix("weight") + "bias"
    tensors.setdefault(head, tensors[_on_disk(model, checkpoint, embedding)])

    def scaled(tensor: LazyTensor) -> LazyTensor:
        def rows(start: int, stop: int) -> torch.Tensor:
            part = tensor.rows(start, stop)
            product = (part.double() * scale).to(part.dtype)
            if not torch.equal(product.double(), part.double() * scale):
                raise InputError(
                    f"the head times {scale:g} can't be stored exactly in {str(part.dtype).removeprefix('torch.')}: "
                    "choose a power of two (0.5, 0.25, ...), or --out-dtype float32"
                )
            return product

        return LazyTensor(tensor.shape, tensor.dtype, rows)

    tensors |= {name: scaled(tensors[name]) for name in (head, bias) if name in tensors}
    changes = checkpoint.changes | {"tie_word_embeddings": False}
    return replace(checkpoint, tensors=tensors, changes=changes, logit_scale=1.0)


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Name -> parameter or buffer; of what accelerate has offloaded, the tensor that it copies to the device when the
    module runs. InputError if that lies on disk."""
    tensors: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if not (offloaded := [name for name, tensor in tensors.items() if tensor.is_meta]):
        return tensors
    maps = {}  # where accelerate keeps the tensors of a module, by the module's place
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if getattr(one, "weights_map", None) is not None:
                maps[f"{path}." if path else ""] = one.weights_map
    for name in offloaded:
        above = [(kept, name.removeprefix(place)) for place, kept in maps.items() if name.startswith(place)]
        found = [(kept[inner], kept[inner]) for kept, inner in above if inner in kept]
        once, again = found[-1] if found else (tensors[name], tensors[name])
        if once.is_meta or once.data_ptr() != again.data_ptr():  # what lies on disk is read anew each time
            raise InputError(
                f"parameter {name} of the loaded model is offloaded to disk, where it can't be rewritten: give it more "
                "memory (max_memory_per_gpu, max_cpu_memory), or a smaller dtype"
            )
        tensors[name] = once
    return tensors


def _on_disk(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> str:
    return name if name in checkpoint.tensors else name.removeprefix(f"{model.base_model_prefix}.")


def _misfit(model: PreTrainedModel, checkpoint: Checkpoint) -> str | None:
    """The first tensor of the model that the checkpoint does not have, by name and, the vocabulary aside, shape."""
    there, missing = set(), {}
    vocabulary = len(model.get_input_embeddings().weight)
    for name, tensor in _tensors(model).items():
        stored, shape = checkpoint.tensors.get(_on_disk(model, checkpoint, name)), tuple(tensor.shape)
        if stored is not None and (stored.shape == shape or (shape[0] == vocabulary and stored.shape[1:] == shape[1:])):
            there.add(tensor.data_ptr())
        else:
            missing[name] = tensor.data_ptr()
    return next((name for name, tensor in missing.items() if tensor not in there), None)


def write_mix(
    original: Checkpoint,
    unlearned: Checkpoint,
    alpha: float,
    out: Path,
    note: str = "",
    dtype: torch.dtype | None = None,
    max_shard: str = MAX_SHARD,
    control: ControlFunction = mix,
    what: str = "original + {alpha} * (unlearned - original), in float32 per tensor",
) -> None:
    """Write theta(alpha) as a checkpoint that transformers loads, with the original's tokenizer and a README.

    dtype: of its floating-point tensors, instead of the unlearned model's. what: the control's formula, for the README.
    """
    mixed = control(original, unlearned, alpha)
    if dtype is not None:  # rounded as the unlearned model stores it first: what is written is what was measured
        mixed = cast(mixed, dtype)
    if mixed.logit_scale != 1:
        mixed = _scaled_head(mixed)
    stored = "the unlearned checkpoint's dtype" if dtype is None else str(dtype).removeprefix("torch.")
    notes = "".join(f"- {note}\n" for note in unlearned.notes)
    readme = (
        f"# Controlled checkpoint\n\nParameters = {what.format(alpha=repr(alpha))}; "
        f"stored in {stored}.\n\n- original: {original.name}\n- unlearned: {unlearned.name}\n"
        f"- alpha: {alpha!r} (0 = original, 1 = unlearned)\n{note}{notes}\nMade by unlearn-metrics, `control`.\n"
    )
    write_checkpoint(out, mixed, original, readme, max_shard)


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The checkpoint with its floating-point tensors in another dtype."""
    changes = checkpoint.changes | {"dtype": str(dtype).removeprefix("torch.")}
    tensors = {
        name: tensor.cast(dtype) if tensor.dtype.is_floating_point else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, changes=changes)
