"""Token scores through lm-eval's Hugging Face backend.

The cost is one forward pass over each distinct (prompt, answer) pair, the prompt's part shared by all the answers to
it, and the vocabulary projection only where something is scored. Everything below serves that.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from unlearn_metrics.backends import batching
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.documents import SAMPLINGS, UNKNOWN, Sampling, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.progress import Bar

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_LOGITS = 1 << 22  # logits held at once (16 MiB of float32), or CHUNK_POSITIONS rows of them if that is more
CHUNK_POSITIONS = 256
REDUCED = 4 + len(SAMPLINGS)  # numbers that `reduce` makes of a position
LEAST = -87.0  # nats below the largest logit: e to that is the smallest normal float32
TOP = 41  # likeliest tokens of a position that are put in order, one more than any top_k; most nuclei end among them
HALVINGS = 16  # of where the logits of a nucleus may end
REDUCE_LOGITS = 1 << 18  # logits reduced at once on a CPU: they stay in its cache


@dataclass
class _Row:
    """One row of a forward pass: model input, its scored positions, and where their results go.

    Position positions[i] of the input predicts the token that out[i] names in the flat result arrays.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    out: Sequence[int]
    prompt: int = -1  # index of the prompt, already in the cache, that comes before ids


@dataclass
class _Prompts:
    """Keys and values of prompts, left-padded to one width: a list over layers of [prompts, heads, width, size]."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: Tensor


@dataclass
class _Flat:
    """Results of all pairs, end to end; `tokens` are the targets."""

    tokens: Tensor
    argmax: NDArray[np.int32]
    values: list[NDArray[np.float32]]  # what else `reduce` gives, in its order


def work(lm: HFLM) -> Counter[str]:
    """What this model has done so far: forward_passes, positions (padding included), padding, scored; tokens generated,
    of which proposed by drafts and accepted."""
    counter: Counter[str] = lm.__dict__.setdefault("unlearn_work", Counter())
    return counter


def end_of_sequence(lm: HFLM) -> int | None:
    """The token that ends a text: the tokenizer's, else the first that the model itself names; None: there is none."""
    if lm.eot_token_id is not None:
        return int(lm.eot_token_id)
    configs = (getattr(lm.model, "generation_config", None), lm.model.config)
    named = [ids for config in configs if (ids := getattr(config, "eos_token_id", None)) is not None]
    first = named[0] if named else None
    return first[0] if isinstance(first, list) else first


def cache_name(lm: HFLM) -> str:
    """What the model's forward calls its keys and values; transformers 5.24 renamed them."""
    return "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"


def token_scores(lm: HFLM, pairs: Sequence[Pair], share_prompts: bool = True) -> list[TokenScores]:
    """Score every pair by teacher forcing; identical pairs once.

    The sum of an answer's log-probabilities and "all arg-max" equal what lm-eval's `loglikelihood` returns. A context
    too long for the model is cut from the left. share_prompts=False forwards every pair whole. Raises InputError if
    the model gives NaN.
    """
    distinct = list(dict.fromkeys(pairs))
    offsets = np.cumsum([0, *(len(p.answer) + 1 for p in distinct)])
    eos = end_of_sequence(lm)
    end = 0 if eos is None else eos
    tokens = np.fromiter((t for p in distinct for t in (*p.answer, end)), np.int64, offsets[-1])
    flat = _Flat(
        torch.from_numpy(tokens).to(lm.device),
        np.empty(len(tokens), np.int32),
        [np.empty(len(tokens), np.float32) for _ in range(REDUCED - 1)],
    )
    whole: list[_Row] = []
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    truncated = 0
    for i, pair in enumerate(distinct):
        if len(pair.context) + len(pair.answer) > lm.max_length:
            truncated += 1
            whole += _truncated_rows(pair, int(offsets[i]), lm.max_length)
        else:
            by_prompt.setdefault(pair.context, []).append(i)
    if truncated:
        log.warning("%d prompts did not fit the model's %d tokens: cut from the left", truncated, lm.max_length)
        work(lm)["truncated"] += truncated

    def whole_row(i: int) -> _Row:
        context, answer = distinct[i].context, distinct[i].read
        first = len(context) - 1
        return _Row(context + answer, range(first, first + len(answer) + 1), range(offsets[i], offsets[i + 1]))

    share = share_prompts and _can_share(lm)
    groups = {c: group for c, group in by_prompt.items() if share and len(group) > 1}
    whole += [whole_row(i) for c, group in by_prompt.items() if c not in groups for i in group]
    with Bar(total=len(tokens), desc="Scoring tokens", disable=no_bar(lm), leave=False) as bar, torch.no_grad():
        for contexts in batching.batches(list(groups), len, batching.prompt_budget(lm)):
            rows = [_Row(c, [len(c) - 1] * len(groups[c]), [int(offsets[i]) for i in groups[c]]) for c in contexts]
            prompts = _prefill(lm, rows, flat, bar)
            if prompts is None:
                whole += [whole_row(i) for c in contexts for i in groups[c]]
                continue
            rows = [
                _Row(answer, range(len(answer)), range(offsets[i] + 1, offsets[i + 1]), prompt=g)
                for g, c in enumerate(contexts)
                for i in groups[c]
                for answer in [distinct[i].read]
            ]
            for batch in batching.batches(rows, lambda row: len(row.ids), batching.budget(lm), batching.max_rows(lm)):
                _forward(lm, batch, flat, bar, prompts)
            del prompts
        for batch in batching.batches(whole, lambda row: len(row.ids), batching.budget(lm), batching.max_rows(lm)):
            _forward(lm, batch, flat, bar)

    if np.isnan(flat.values[0]).any():
        dtype = str(lm.model.dtype).removeprefix("torch.")
        raise InputError(
            f"the model gives NaN log-probabilities in {dtype}: an overflow, or broken weights; try float32"
        )
    if eos is None:  # nothing ends a sequence, so nothing is known of its end
        ends = offsets[1:] - 1
        tokens[ends], flat.argmax[ends] = -1, UNKNOWN
        for result in flat.values:
            result[ends] = np.nan
    scores = {
        pair: TokenScores(tokens[a:b].astype(np.int32), flat.argmax[a:b], *(values[a:b] for values in flat.values))
        for pair, a, b in zip(distinct, offsets[:-1], offsets[1:], strict=True)
    }
    return [scores[pair] for pair in pairs]


def _truncated_rows(pair: Pair, offset: int, max_length: int) -> list[_Row]:
    """lm-eval keeps max_length + 1 tokens of context + answer; scoring end-of-sequence needs a window one later."""
    n, ids = len(pair.answer), pair.context + pair.read
    answer = ids[-(max_length + 1) : -1]
    return [
        _Row(answer, range(len(answer) - n, len(answer)), range(offset, offset + n)),
        _Row(ids[-max_length:], [max_length - 1], [offset + n]),
    ]


# --- forward passes ------------------------------------------------------------------------------------------------


def _prefill(lm: HFLM, rows: list[_Row], flat: _Flat, bar: Any) -> _Prompts | None:
    """Forward prompts, score the first token of every answer, and keep keys and values. None: they can't be kept.

    Left-padded, so that there are no holes between a prompt and what follows it. `rows` keeps its order in the result.
    """
    kept: list[tuple[list[int], list[tuple[Tensor, Tensor]]]] = []
    order = {id(row): i for i, row in enumerate(rows)}
    for batch in batching.batches(rows, lambda row: len(row.ids), batching.budget(lm), batching.max_rows(lm)):
        layers = _forward(lm, batch, flat, bar, keep=True)
        if layers is None:
            return None
        kept.append(([order[id(row)] for row in batch], layers))
    width = max(len(row.ids) for row in rows)
    back = torch.tensor([i for indices, _ in kept for i in indices]).argsort()

    def merge(states: list[Tensor]) -> Tensor:
        joined = torch.cat([pad(s, (0, 0, width - s.shape[2], 0)) for s in states])
        return joined[back.to(joined.device)]

    layers = [
        (merge([layers[n][0] for _, layers in kept]), merge([layers[n][1] for _, layers in kept]))
        for n in range(len(kept[0][1]))
    ]
    return _Prompts(layers, torch.tensor([len(row.ids) for row in rows], device=lm.device))


def _forward(
    lm: HFLM, rows: Sequence[_Row], flat: _Flat, bar: Any, prompts: _Prompts | None = None, keep: bool = False
) -> list[tuple[Tensor, Tensor]] | None:
    """Run rows through the model and reduce their scored positions into flat.

    Rows are right-padded, and causal attention keeps padding from reaching real tokens, so no mask is needed unless
    prompts come before. keep=True (prompts): left-padded, and keys and values are returned, or None if the model
    has none to keep. Out of memory: halve the batch and go on; prompts give up (None).
    """
    width = max(len(row.ids) for row in rows)
    shift = [width - len(row.ids) if keep else 0 for row in rows]
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, shift[r] : shift[r] + len(row.ids)] = torch.tensor(row.ids)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": keep or prompts is not None}
    if any(shift):
        places = torch.arange(width) - torch.tensor(shift)[:, None]
        inputs |= {"attention_mask": (places >= 0).long(), "position_ids": places.clamp(min=0)}
    inputs = {k: v.to(lm.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    index = torch.tensor([r * width + shift[r] + p for r, row in enumerate(rows) for p in row.positions])
    out = np.array([o for row in rows for o in row.out])
    layers = None
    failed = False
    try:
        if prompts is not None:
            _put_before(lm, inputs, prompts, [row.prompt for row in rows])
        cache = _score_positions(lm, inputs, index, out, flat)
        layers = _plain(cache) if keep else None
    except RuntimeError as error:
        if not batching.out_of_memory(error) or (len(rows) == 1 and not keep):
            raise
        failed = True
    if failed:  # outside `except`, whose traceback keeps the tensors of the failed pass alive
        log.warning("out of memory at %d rows of %d tokens: halving the batch", len(rows), width)
        inputs.clear()
        if lm.device.type == "cuda":
            torch.cuda.empty_cache()
        for half in () if keep else (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            _forward(lm, half, flat, bar, prompts)
        return None
    counter = work(lm)
    counter["forward_passes"] += 1
    counter["positions"] += len(rows) * width
    counter["padding"] += len(rows) * width - sum(len(row.ids) for row in rows)
    counter["scored"] += len(out)
    bar.update(len(out))
    return layers


def _put_before(lm: HFLM, inputs: dict[str, Any], prompts: _Prompts, chosen: list[int]) -> None:
    """Put a prompt's keys and values before each row of the input."""
    rows, width = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    which = torch.tensor(chosen, device=device)
    lengths = prompts.lengths[which][:, None]
    longest = int(lengths.max())
    mask = torch.ones(rows, longest + width, dtype=torch.long, device=device)
    mask[:, :longest] = torch.arange(longest, device=device) >= longest - lengths
    layers = [  # of a model on several devices, each layer's lie on its own
        tuple(states[which.to(states.device), :, -longest:] for states in layer) for layer in prompts.layers
    ]
    inputs |= {
        cache_name(lm): DynamicCache(layers),
        "attention_mask": mask,
        # padding behind an answer may lie beyond the model's last position
        "position_ids": (lengths + torch.arange(width, device=device)).clamp(max=lm.max_length - 1),
    }


def _score_positions(lm: HFLM, inputs: dict[str, Any], index: Tensor, out: NDArray[np.int64], flat: _Flat) -> Any:
    """Project only the positions in index (into the flattened batch) to the vocabulary, chunk by chunk, and reduce.

    The head's input is caught on its way, and the model itself goes on with a single position. Where its logits are
    not the head's output as it is (a soft cap, a scale), it projects all of index itself.
    Returns the cache.
    """
    head = lm.model.get_output_embeddings()
    if "unlearn_bare_head" not in lm.__dict__:
        lm.__dict__["unlearn_bare_head"] = _head_is_bare(lm, head)
    bare = lm.__dict__["unlearn_bare_head"]
    caught: list[Tensor] = []

    def catch(_module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden = args[0].reshape(-1, args[0].shape[-1])[index.to(args[0].device)]
        caught.append(hidden)
        return (hidden[None, :1] if bare else hidden[None],)

    with hooked(head, catch), autocast(lm):
        output = lm.model(**inputs)
    (hidden,) = caught
    vocabulary = output.logits.shape[-1]
    step = max(CHUNK_POSITIONS, CHUNK_LOGITS // vocabulary)
    target = flat.tokens[torch.from_numpy(out).to(flat.tokens.device)].to(output.logits.device)
    # written at once: small tensors that outlive the large ones around them would fragment the CPU's heap
    dtypes = (torch.int32, *[torch.float32] * (REDUCED - 1))
    results = [torch.empty(len(hidden), dtype=dtype, device=target.device) for dtype in dtypes]
    for i in range(0, len(hidden), step):
        if bare:
            with autocast(lm):
                logits = head(hidden[i : i + step])
        else:
            logits = output.logits[0, i : i + step]
        small = max(1, REDUCE_LOGITS // vocabulary) if logits.device.type == "cpu" else step
        for j in range(0, len(logits), small):
            here = slice(i + j, min(i + j + small, i + step))
            # the head of a model on several devices may lie on another than where the model's own logits end
            reduced = reduce(logits[j : j + small], target[here].to(logits.device))
            for result, values in zip(results, reduced, strict=True):
                result[here] = values
        del logits
    for array, result in zip((flat.argmax, *flat.values), results, strict=True):
        array[out] = result.cpu().numpy()
    return getattr(output, cache_name(lm), None)


def _head_is_bare(lm: HFLM, head: torch.nn.Module) -> bool:
    """Whether the model's logits are the head's output as it is. Asked once, of three tokens."""
    caught: list[Tensor] = []
    with hooked(head, lambda _module, args: caught.append(args[0])), autocast(lm):
        logits = lm.model(input_ids=torch.tensor([[0, 1, 2]], device=lm.device), use_cache=False).logits
        return torch.equal(head(caught[0]).to(logits.device).float().nan_to_num(), logits.float().nan_to_num())


def reduce(logits: Tensor, target: Tensor, drawn: bool = True) -> tuple[Tensor, ...]:
    """[positions, vocabulary] -> arg-max, log p(target), mean and variance of log p under the model, and, if `drawn`,
    log p(target) under each of SAMPLINGS: [positions].

    Few passes over the logits: one exponential, below the largest logit, serves the normaliser and both moments.
    Overwrites the logits.
    """
    argmax, top = largest(logits)
    below = logits.float().sub_(top.float())
    score = below.gather(-1, target[:, None])[:, 0]
    below.clamp_(min=LEAST)  # less weighs nothing, is slow to compute with, and 0 * -inf would be NaN
    found: list[Tensor] = []
    if drawn:
        likeliest = likeliest_of(below, min(TOP, below.shape[-1]))
        found = [sampled(below, score, likeliest, sampling) for sampling in SAMPLINGS.values()]
    weight = below.exp()
    total = weight.sum(-1)
    log_total = total.log()
    first = weight.mul_(below).sum(-1) / total
    second = weight.mul_(below).sum(-1) / total
    return argmax, score - log_total, first - log_total, (second - first.square()).clamp_(min=0), *found


def sampled(below: Tensor, score: Tensor, likeliest: Tensor, sampling: Sampling) -> Tensor:
    """log p of tokens when texts are drawn so: [n]; -inf where a token is never drawn.

    below: [n, vocabulary] logits less the largest; score: [n] those of the tokens; likeliest: [n, TOP] the largest of
    below, descending. Tokens as likely as the last of a set are in it.
    """

    def cooled(logits: Tensor) -> Tensor:
        return logits if sampling.temperature == 1 else logits / sampling.temperature

    kept, own, least = cooled(likeliest), cooled(score), torch.full_like(score, -torch.inf)
    if sampling.top_k is None:
        every = cooled(below)
        total = every.clamp(min=LEAST).exp_().sum(-1)
    else:
        every, kept = kept, kept[:, : sampling.top_k]
        least, total = kept[:, -1], kept.exp().sum(-1)
        if (every[:, kept.shape[1] :] == least[:, None]).any():  # as likely as the last of the set
            alike = (cooled(below) == least[:, None]).sum(-1) - (kept == least[:, None]).sum(-1)
            total = total + alike * least.exp()
        every = kept
    if sampling.top_p < 1:
        total, least = _nucleus(every, kept, sampling.top_p * total)
    inside = (own >= least) | (least <= LEAST)  # below it the order is not known, and hardly anything is drawn
    return torch.where(inside, own - total.log(), -torch.inf)


def _nucleus(every: Tensor, kept: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(weight of the fewest likeliest tokens that weigh `wanted`, logit of the last of them): [n].

    kept: the largest of `every`, descending. Where they do not settle it, the last logit is found by halving: those
    3e-4 nats apart may count as equal.
    """
    weight = kept.exp()
    needed = (weight.cumsum(-1) - weight < wanted[:, None]).sum(-1, keepdim=True)
    least = kept.gather(-1, (needed - 1).clamp(min=0))[:, 0]  # 0 are needed of NaN
    held = torch.where(kept >= least[:, None], weight, 0).sum(-1)
    open_ = (least == kept[:, -1]) & (kept.shape[-1] < every.shape[-1])
    if open_.any():
        every, wanted = every[open_], wanted[open_]
        weight = every.exp()
        # all below `low` weigh 1e-3 of the likeliest at most, and `wanted` is known to lie further up
        low, high = torch.full_like(wanted, -math.log(1e3 * every.shape[-1])), least[open_]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = torch.where(every >= middle[:, None], weight, 0).sum(-1) >= wanted
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        held[open_], least[open_] = torch.where(every >= low[:, None], weight, 0).sum(-1), low
    return held, least


def likeliest_of(logits: Tensor, count: int, block: int = 64) -> Tensor:
    """The largest of each row, descending: [n, count].

    On a CPU they are looked for in the blocks with the largest maxima, where a vocabulary is large three times as fast.
    """
    if logits.device.type == "cpu" and logits.shape[1] % block == 0 and logits.shape[1] > 4 * count * block:
        blocks = logits.view(len(logits), -1, block)
        which = blocks.amax(-1).topk(count, sorted=False).indices
        logits = blocks.gather(1, which[..., None].expand(-1, -1, block)).flatten(1)
    return logits.topk(count).values


def largest(logits: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    """(arg-max [n], maximum [n, 1]) of [n, vocabulary].

    On a CPU by way of the largest of each block: there torch's maximum is six times as fast as its arg-max.
    """
    if logits.device.type != "cpu" or logits.shape[1] % block:
        argmax = logits.argmax(-1)
    else:
        blocks = logits.reshape(len(logits), -1, block)
        which = blocks.amax(-1).argmax(-1)
        argmax = which * block + blocks[torch.arange(len(logits)), which].argmax(-1)
    return argmax, logits.gather(-1, argmax[:, None])


# --- what the model can do, and how much at once ------------------------------------------------------------------


def _can_share(lm: HFLM) -> bool:
    """Not where rotary frequencies depend on the length of the whole sequence."""
    config = lm.model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {rope.get("rope_type"), rope.get("type")} if isinstance(rope, dict) else set()
    return not kinds & {"longrope", "dynamic"}


def _plain(cache: Any) -> list[tuple[Tensor, Tensor]] | None:
    """Keys and values by layer, if that is all the cache holds (no sliding window, no recurrent state), else None."""
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return [(layer.keys, layer.values) for layer in layers]


@contextlib.contextmanager
def hooked(head: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Let hook see, and replace, what goes into the language-model head."""
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def autocast(lm: HFLM) -> torch.autocast:
    return torch.autocast(lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None)


def no_bar(lm: HFLM) -> bool | None:
    """tqdm's `disable`: one bar, and only on a terminal."""
    return None if lm.rank == 0 else True
