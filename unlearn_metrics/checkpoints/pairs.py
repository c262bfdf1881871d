"""Two checkpoints that can be mixed: the same architecture and tokenizer, and tensors under the same names."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import AutoConfig

from unlearn_metrics.checkpoints.files import Checkpoint, read_config, skeleton, tied_names
from unlearn_metrics.checkpoints.tensors import from_memory
from unlearn_metrics.checkpoints.tokenizers import check_tokenizers
from unlearn_metrics.errors import InputError

log = logging.getLogger(__name__)

# What may differ between two configs of one architecture without changing what the parameters mean: how a model is
# stored, trained, initialised and asked, and the labels of a classifier that it is not
HARMLESS = re.compile(
    r"transformers_version|_?name_or_path|(torch_)?dtype|use_cache|architectures|(pad|bos|eos)_token_id"
    r"|_attn_implementation|output_attentions|output_hidden_states|output_router_logits|return_dict|problem_type"
    r"|id2label|label2id|num_labels|initializer_range|chunk_size_feed_forward|router_aux_loss_coef"
    r"|(.*_)?(dropout|pdrop|layerdrop)(_prob)?"
)


def align(original: Checkpoint, unlearned: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """The two, with tensors of the same names; the second notes what was done, for the user.

    Names may lack the base model's prefix. An embedding that one model ties and the other does not is untied.
    Tensors of one alone that transformers has no use for are left out. The vocabulary may have more rows in one.
    Raises InputError naming the first other difference in architecture, tensors, shapes or tokenizer.
    """
    configs = read_config(original), read_config(unlearned)
    names = f"{original.name} and {unlearned.name}"
    if difference := _other_architecture(*configs, known=_understood(original)):
        raise InputError(f"{names} differ in architecture: {difference}")
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


def _understood(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the architecture's own configuration class has, with its defaults; None where it can't be built bare."""
    try:
        bare: dict[str, Any] = type(AutoConfig.from_pretrained(checkpoint.config.parent))().to_dict()
    except Exception:  # whatever a class without defaults raises
        return None
    return bare


def _other_architecture(a: Mapping[str, Any], b: Mapping[str, Any], known: Mapping[str, Any] | None) -> str | None:
    """The first difference that means other parameters, in words. What the class does not have (`known`), trainers left
    behind, and transformers does not read it."""
    handled = {"vocab_size", "tie_word_embeddings", "model_type"}
    for key in ("model_type", *sorted((a.keys() | b.keys()) - handled)):
        one, other = a.get(key), b.get(key)
        if one == other or HARMLESS.fullmatch(key) or (known is not None and key not in known):
            continue
        if key.endswith("_config") and isinstance(one, dict) and isinstance(other, dict):
            inner = known.get(key) if known else None
            if found := _other_architecture(one, other, inner if isinstance(inner, dict) else None):
                return f"{key}: {found}"
            continue
        return f"{key} is {one} in one, {other} in the other"
    return None


def _same_names(original: Checkpoint, unlearned: Checkpoint, ties: list[bool]) -> tuple[Checkpoint, Checkpoint]:
    """Rename, untie and leave out, as far as transformers' own model of the architecture shows it to be the same."""
    model = skeleton(unlearned)
    known, prefix = model.state_dict().keys(), f"{model.base_model_prefix}."
    tied = tied_names(model)
    pair, stored, notes = [original, unlearned], [], list(unlearned.notes)
    for i, checkpoint in enumerate(pair):
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            near = (name, prefix + name, name.removeprefix(prefix))
            tensors[next((n for n in near if n in known), name)] = tensor
        pair[i] = replace(checkpoint, tensors=tensors)
        stored.append(set(tensors))
        for target, source in tied.items() if ties[i] else ():
            if target in tensors and source in tensors and not tensors[target].equals(tensors[source]):
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


@functools.lru_cache(maxsize=2)
def in_memory(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as transformers loads it, see `loaded`. The last two are kept."""
    log.warning(
        "%s: transformers renames or fuses its tensors on load; it is kept in memory, not read from disk",
        checkpoint.name,
    )
    return loaded(checkpoint)


def loaded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as transformers loads it: tensors under the names, and fused into the shapes, of the loaded model.

    Holds all of it. Raises InputError if transformers misses a parameter in it.
    """
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
