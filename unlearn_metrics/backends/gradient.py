"""How large the gradient of an answer's loss is: a backward pass for each answer, and nothing is changed by it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from unlearn_metrics.backends import batching, encoding, hf
from unlearn_metrics.errors import InputError
from unlearn_metrics.progress import Bar


def norms(lm: HFLM, pairs: Sequence[encoding.Pair]) -> list[float]:
    """For each pair the mean, over the model's parameter tensors, of the L2 norm of the gradient of the answer's mean
    negative log-likelihood, end-of-sequence not counted. Identical pairs once.

    A context too long for the model is cut at the left. Each gradient is freed as soon as its norm is known, so
    that beside the model it needs the activations of one text. InputError for weights that have no gradient
    (quantized ones), and where memory does not suffice.
    """
    distinct = list(dict.fromkeys(pairs))
    found = dict[encoding.Pair, float]()
    with _collected(lm.model) as collected, torch.enable_grad():
        for pair in Bar(distinct, desc="Gradients", disable=hf.no_bar(lm), leave=False):
            try:
                torch.autograd.backward(_loss(lm, pair))
            except RuntimeError as error:
                if not batching.out_of_memory(error):
                    raise
                length = len(pair.context) + len(pair.answer)
                raise InputError(f"gradnorm: not enough memory for the gradient of {length} tokens") from None
            hf.work(lm)["backward_passes"] += 1
            found[pair] = float(torch.stack([norm.cpu() for norm in collected]).mean())
            collected.clear()
    return [found[pair] for pair in pairs]


def _loss(lm: HFLM, pair: encoding.Pair) -> Tensor:
    ids = torch.tensor([(pair.context + pair.answer)[-(lm.max_length + 1) :]], device=lm.device)
    n = len(pair.answer)
    with hf.hooked(lm.model.get_output_embeddings(), lambda _module, args: (args[0][:, -n:],)), hf.autocast(lm):
        logits = lm.model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0].float(), ids[0, -n:].to(logits.device))


@contextlib.contextmanager
def _collected(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """A list to which a backward pass adds the norm of each parameter's gradient instead of keeping the gradient."""
    parameters = list(model.parameters())
    if not all(parameter.is_floating_point() for parameter in parameters):
        raise InputError("gradnorm: quantized weights have no gradient")
    norms: list[Tensor] = []

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        parameter.grad = None

    before = [parameter.requires_grad for parameter in parameters]
    handles = [p.requires_grad_().register_post_accumulate_grad_hook(take) for p in parameters]  # type: ignore[no-untyped-call]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in zip(parameters, before, strict=True):
            parameter.grad = None
            parameter.requires_grad_(required)
