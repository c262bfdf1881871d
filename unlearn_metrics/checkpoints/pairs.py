"""Two checkpoints that can be mixed: the same architecture and tokenizer, and tensors under the same names."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from unlearn_metrics.checkpoints.files import Checkpoint, read_config
from unlearn_metrics.checkpoints.tensors import LazyTensor, from_memory
from unlearn_metrics.checkpoints.tokenizers import check_tokenizers
from unlearn_metrics.errors import InputError, first_line

log = logging.getLogger(__name__)

# What may differ between two configs of one architecture without changing what the parameters mean.
HARMLESS = frozenset(
    [
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "dtype",
        "torch_dtype",
        "use_cache",
        "architectures",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "_attn_implementation",
        "output_attentions",
        "output_hidden_states",
    ]
)


def align(original: Checkpoint, unlearned: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """The two, with tensors of the same names; the second notes what was done, for the user.

    Names may lack the base model's prefix. An embedding that one model ties and the other does not is untied.
    Tensors of one alone that transformers has no use for are left out. The vocabulary may have more rows in one.
    Raises InputError naming the first other difference in architecture, tensors, shapes or tokenizer.
    """
    configs = read_config(original), read_config(unlearned)
    names = f"{original.name} and {unlearned.name}"
    handled = {"vocab_size", "tie_word_embeddings"}
    for key in ("model_type", *sorted((configs[0].keys() | configs[1].keys()) - HARMLESS - handled - {"model_type"})):
        a, b = (config.get(key) for config in configs)
        if a != b:
            raise InputError(f"{names} differ in architecture: {key} is {a} in one, {b} in the other")
    ties = [bool(config.get("tie_word_embeddings")) for config in configs]
    if original.tensors.keys() != unlearned.tensors.keys() or any(ties):
        original, unlearned = _same_names(original, unlearned, ties)
    o, u = original.tensors, unlearned.tensors
    for tensor in sorted(o.keys() | u.keys()):
        for checkpoint in (original, unlearned):
            if tensor not in checkpoint.tensors:
                raise InputError(f"{names} differ: {checkpoint.name} has no tensor {tensor}")
        if o[tensor].dtype.is_floating_point != u[tensor].dtype.is_floating_point:
            raise InputError(f"{names} differ: {tensor} is {o[tensor].dtype} in one, {u[tensor].dtype} in the other")
    rows = [config.get("vocab_size", 0) for config in configs]
    resized = []
    for tensor in sorted(o):
        a, b = o[tensor].shape, u[tensor].shape
        if a != b and a[:1] != b[:1] and rows == [*a[:1], *b[:1]] and a[1:] == b[1:]:
            resized.append(tensor)
        elif a != b:
            raise InputError(f"{names} differ: {tensor} has shape {list(a)} in one, {list(b)} in the other")
    if rows[0] != rows[1] and not resized:
        raise InputError(f"{names} differ in architecture: vocab_size is {rows[0]} in one, {rows[1]} in the other")
    if resized:
        note = (
            f"the vocabulary has {rows[0]} rows in the original, {rows[1]} in the unlearned model: the first "
            f"{min(rows)} are mixed, what the unlearned model has more is taken as it is ({', '.join(resized)})"
        )
        unlearned = replace(unlearned, notes=(*unlearned.notes, note))
    check_tokenizers(original, unlearned)
    return original, unlearned


def _same_names(original: Checkpoint, unlearned: Checkpoint, ties: list[bool]) -> tuple[Checkpoint, Checkpoint]:
    """Rename, untie and leave out, as far as transformers' own model of the architecture says that it is the same."""
    model = skeleton(unlearned)
    known, prefix = model.state_dict().keys(), f"{model.base_model_prefix}."
    tied: dict[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    pair, stored, notes = [original, unlearned], [], list(unlearned.notes)
    for i, checkpoint in enumerate(pair):
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            near = (name, prefix + name, name.removeprefix(prefix))
            tensors[next((n for n in near if n in known), name)] = tensor
        pair[i] = replace(checkpoint, tensors=tensors)
        stored.append(set(tensors))
        for target, source in tied.items() if ties[i] else ():
            if target in tensors and source in tensors and not _equal(tensors[target], tensors[source]):
                ties[i] = False  # as transformers decides when it loads such a checkpoint
            elif (there := tensors.get(source, tensors.get(target))) is not None:
                tensors |= {target: there, source: there}
    changes = unlearned.changes
    if not all(ties):
        changes = changes | {"tie_word_embeddings": False}
        if any(ties):
            notes.append(
                f"{pair[ties.index(False)].name} has a head of its own, the other shares its embedding's: untied"
            )
    else:
        for target in tied.keys() - stored[1]:
            for checkpoint in pair:
                checkpoint.tensors.pop(target, None)
    o, u = (checkpoint.tensors for checkpoint in pair)
    if all(name in o and name in u for name in known if name not in tied):
        for checkpoint, other in ((pair[0], u), (pair[1], o)):
            if spare := sorted(checkpoint.tensors.keys() - other.keys() - known):
                notes.append(f"left out, as transformers does: {', '.join(spare[:3])}{' ...' * (len(spare) > 3)}")
                for name in spare:
                    del checkpoint.tensors[name]
    return pair[0], replace(pair[1], changes=changes, notes=tuple(notes))


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    same = (a.shape, a.dtype) == (b.shape, b.dtype)
    return a is b or (same and all(torch.equal(a.rows(*part), b.rows(*part)) for part in a.parts()))


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """transformers' model of the architecture, without memory for its parameters."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.config.parent))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{checkpoint.name}: transformers has no such causal model: {first_line(error)}") from None


@functools.lru_cache(maxsize=2)
def in_memory(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as transformers loads it: tensors under the names, and fused into the shapes, of the loaded model.

    Holds all of it. The last two are kept. Raises InputError if transformers misses a parameter in it.
    """
    log.warning(
        "%s: transformers renames or fuses its tensors on load; it is kept in memory, not read from disk",
        checkpoint.name,
    )
    tensors = checkpoint.tensors
    dtype = Counter(t.dtype for t in tensors.values() if t.dtype.is_floating_point).most_common(1)[0][0]
    model, info = type(skeleton(checkpoint)).from_pretrained(
        None,
        config=AutoConfig.from_pretrained(checkpoint.config.parent, **checkpoint.changes),
        state_dict={name: tensor.read() for name, tensor in tensors.items()},
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise InputError(f"{checkpoint.name}: transformers finds no parameter {missing[0]} in it")
    return replace(checkpoint, tensors={name: from_memory(tensor) for name, tensor in model.state_dict().items()})
