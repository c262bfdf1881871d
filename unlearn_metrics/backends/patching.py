"""What the layers of one model lack of an answer that another model gives: activation patching, and logit lens.

Both read the output of a decoder layer (its block) at the positions that predict the answer. Patching puts it in place
of the original's own output of that layer, and the original goes on from there; logit lens goes from it straight to the
original's last norm and head. A layer's drop is what the answer's log-probability loses by that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearn_metrics.backends import batching, hf
from unlearn_metrics.documents import Floats
from unlearn_metrics.errors import InputError
from unlearn_metrics.progress import Bar

LENS_POSITIONS = 256  # states that logit lens reads at once


@dataclass(frozen=True)
class Span:
    """A text as token ids, and which of them, ids[start:stop], are scored."""

    ids: tuple[int, ...]
    start: int
    stop: int


def readings(lm: HFLM, spans: Sequence[Span]) -> dict[str, Floats]:
    """What a model as it is gives to the spans, which `drops` compares with: two forward passes over the texts.

    Args:
        lm, spans: as in `drops`.

    Returns:
        Log-probabilities of all tokens of the spans: "plain", [tokens], and "lens", [layers, tokens], read from each
        layer's states.
    """
    spans = [_cut(span, lm.max_length) for span in spans]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        states = _states(lm, spans, Path(folder, "states"))
        return {"plain": _logprobs(lm, spans), "lens": np.array([_lens(lm, spans, layer) for layer in states])}


def drops(
    lm: HFLM,
    spans: Sequence[Span],
    of_target: Mapping[str, Floats],
    source: Callable[[], None],
    target: Callable[[], None],
) -> dict[str, Floats]:
    """By how much each layer of a source model lowers what a target model gives to the spans.

    Args:
        lm: the model whose parameters the two functions rewrite.
        spans: of the texts. Cut at the left where they are too long for the model.
        of_target: the target's `readings` of them.
        source, target: make lm the model that the states are from, and the one that they are put into.

    Returns:
        "patched" and "lens": [spans, layers] in nats per token, the mean over a span's tokens. The lens's are between
        the source's and the target's states at that layer. The states of all layers lie on disk; in memory are one
        layer's. For patching it is one forward pass over the texts for each layer, and one more.

    Source: Lee, Kim & Jo 2026 (arXiv 2605.24614); logit lens: nostalgebraist 2020.
    """
    spans = [_cut(span, lm.max_length) for span in spans]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        source()
        theirs = _states(lm, spans, Path(folder, "states"))
        target()
        patched, lens = [], []
        for layer in Bar(range(len(theirs)), desc="Layers", disable=hf.no_bar(lm), leave=False):
            patched.append(of_target["plain"] - _logprobs(lm, spans, layer, theirs[layer]))
            lens.append(of_target["lens"][layer] - _lens(lm, spans, theirs[layer]))
    starts = np.cumsum([0, *(span.stop - span.start for span in spans)])
    return {
        name: np.add.reduceat(np.array(found, np.float64), starts[:-1], axis=1).T / np.diff(starts)[:, None]
        for name, found in (("patched", patched), ("lens", lens))
    }


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The decoder's blocks, first to last: the outermost list of as many modules as the config has layers."""
    return list(model.get_submodule(_place_of_layers(model)).children())


def _place_of_layers(model: nn.Module) -> str:
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise InputError(f"depth: {type(model).__name__} has no list of {count} decoder layers")
    return min(lists, key=lambda name: name.count("."))


def _cut(span: Span, longest: int) -> Span:
    """lm-eval keeps max_length + 1 tokens of a text whose last is only predicted."""
    over = max(0, span.stop - (longest + 1))
    if span.start - over < 1:
        raise InputError(f"depth: an answer does not fit the model's {longest} tokens")
    return Span(span.ids[over : span.stop], span.start - over, span.stop - over)


def _batches(lm: HFLM, spans: Sequence[Span]) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """(input ids, where in the flattened batch the spans are predicted, which of all scored tokens these are).

    Rows are padded on the right, where causal attention keeps padding from reaching real tokens.
    """
    starts = np.cumsum([0, *(span.stop - span.start for span in spans)])
    order = batching.batches(range(len(spans)), lambda i: spans[i].stop - 1, batching.budget(lm), batching.max_rows(lm))
    for batch in order:
        width = spans[batch[0]].stop - 1
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : spans[i].stop - 1] = torch.tensor(spans[i].ids[:-1])
        where = [row * width + p for row, i in enumerate(batch) for p in range(spans[i].start - 1, spans[i].stop - 1)]
        which = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
        hf.work(lm)["forward_passes"] += 1
        hf.work(lm)["positions"] += ids.numel()
        yield ids.to(lm.device), torch.tensor(where), which


def _states(lm: HFLM, spans: Sequence[Span], file: Path) -> NDArray[np.float32]:
    """The outputs of all layers at the scored positions, on disk: [layers, tokens, width]."""
    blocks = decoder_layers(lm.model)
    tokens = sum(span.stop - span.start for span in spans)
    shape = len(blocks), tokens, lm.model.config.get_text_config().hidden_size
    states = np.memmap(file, np.float32, "w+", shape=shape)
    for ids, where, which in _batches(lm, spans):

        def keep(layer: int, where: Tensor = where, which: NDArray[np.int64] = which) -> Callable[[Tensor], None]:
            def see(output: Tensor) -> None:
                found = output.reshape(-1, output.shape[-1])[where.to(output.device)]
                states[layer, which] = found.float().cpu().numpy()

            return see

        with ExitStack() as stack:
            for layer, block in enumerate(blocks):
                stack.enter_context(_output_of(block, keep(layer)))
            with hf.hooked(lm.model.get_output_embeddings(), lambda _module, args: (args[0][:, :1],)), hf.autocast(lm):
                lm.model(input_ids=ids, use_cache=False)
    return states


def _logprobs(
    lm: HFLM, spans: Sequence[Span], layer: int | None = None, states: NDArray[np.float32] | None = None
) -> Floats:
    """Log-probabilities of the scored tokens, [tokens]; with the output of a layer replaced by states there."""
    targets = torch.tensor([t for span in spans for t in span.ids[span.start : span.stop]])
    found = np.empty(len(targets), np.float64)
    for ids, where, which in _batches(lm, spans):

        def put(output: Tensor, where: Tensor = where, which: NDArray[np.int64] = which) -> Tensor:
            assert states is not None
            flat = output.clone().reshape(-1, output.shape[-1])
            flat[where.to(flat.device)] = torch.from_numpy(states[which]).to(flat)
            return flat.reshape(output.shape)

        def scored(_module: nn.Module, args: tuple[Tensor], where: Tensor = where) -> tuple[Tensor]:
            return (args[0].reshape(-1, args[0].shape[-1])[where.to(args[0].device)][None],)

        with ExitStack() as stack:
            if layer is not None:
                stack.enter_context(_output_of(decoder_layers(lm.model)[layer], put))
            stack.enter_context(hf.hooked(lm.model.get_output_embeddings(), scored))
            with hf.autocast(lm):
                logits = lm.model(input_ids=ids, use_cache=False).logits[0]
        found[which] = _of(logits, targets[torch.from_numpy(which)])
    return found


def _lens(lm: HFLM, spans: Sequence[Span], states: NDArray[np.float32]) -> Floats:
    """Log-probabilities of the scored tokens where states are the output of the last layer, [tokens]. The other layers
    are not run."""
    targets = torch.tensor([t for span in spans for t in span.ids[span.start : span.stop]])
    found = np.empty(len(targets), np.float64)
    step = min(LENS_POSITIONS, lm.max_length)
    for start in range(0, len(targets), step):
        part = torch.from_numpy(states[start : start + step])

        def put(output: Tensor, part: Tensor = part) -> Tensor:
            return part[None].to(output)

        # what the tokens are does not matter, since the last layer's output is replaced
        ids = targets[start : start + step][None].to(lm.device)
        with _last_layer_alone(lm.model) as last, _output_of(last, put), hf.autocast(lm):
            logits = lm.model(input_ids=ids, use_cache=False).logits[0]
        found[start : start + step] = _of(logits, targets[start : start + step])
    return found


def _of(logits: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """[n, vocabulary], [n] -> log-probabilities, [n]."""
    chosen: Tensor = torch.log_softmax(logits.float(), -1).gather(-1, targets.to(logits.device)[:, None])[:, 0]
    if chosen.isnan().any():
        raise InputError("depth: the model gives NaN log-probabilities: an overflow, or broken weights; try float32")
    array: NDArray[np.float32] = chosen.cpu().numpy()
    return array


@contextmanager
def _last_layer_alone(model: nn.Module) -> Iterator[nn.Module]:
    """The model with no decoder layer but its last, which is given."""
    outer, _, name = _place_of_layers(model).rpartition(".")
    owner = model.get_submodule(outer)
    layers = getattr(owner, name)
    setattr(owner, name, nn.ModuleList([layers[-1]]))
    try:
        yield layers[-1]
    finally:
        setattr(owner, name, layers)


@contextmanager
def _output_of(block: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let see look at, and replace, what a decoder layer puts out: a tensor, or a tuple that begins with it."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        new = see(states)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
