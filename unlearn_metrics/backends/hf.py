"""Token scores and greedy text through lm-eval's Hugging Face backend.

The cost is one forward pass over each distinct (prompt, answer) pair, with the prompt's part shared by all the
answers to it, plus the tokens that truly have to be generated. Everything below serves that.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers.cache_utils import DynamicCache, DynamicLayer

from unlearn_metrics.types import InputError, TokenScores

log = logging.getLogger(__name__)

CPU_POSITIONS = 4096  # positions in one forward pass on a CPU, where more gains nothing
CHUNK_LOGITS = 1 << 22  # logits held at once (16 MiB of float32), or one row of 256 positions if that is more
CHUNK_POSITIONS = 256


@dataclass(frozen=True)
class Pair:
    """A tokenized request: context (prompt) and answer token ids, as lm-eval's loglikelihood splits them."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass
class _Row:
    """One row of a forward pass: model input, its scored positions, and where their results go.

    position p of the input predicts the token that out[p's index] names in the flat result arrays.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    out: Sequence[int]
    prompt: int = -1  # row of the prefilled prompt that comes before ids


@dataclass
class _Flat:
    """Results of all pairs, end to end; `tokens` are the targets."""

    tokens: Tensor
    argmax: NDArray[np.int32]
    logprob: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]


def work(lm: HFLM) -> Counter[str]:
    """What this model has done so far: forward_passes, positions (padding included), padding, scored, generated."""
    counter: Counter[str] = lm.__dict__.setdefault("unlearn_work", Counter())
    return counter


def encode(lm: HFLM, prompt: str, answer: str, where: str = "request", cut: int | None = None) -> Pair:
    """Tokenize as lm-eval's `TemplateLM.loglikelihood` does; cut: keep at most this many answer tokens.

    Raises InputError, naming `where`, if the answer has no tokens or more than the model can take.
    """
    if not answer.strip():
        raise InputError(f"{where}: the answer is empty")
    if prompt:
        context, continuation = lm._encode_pair(prompt, answer)
    else:
        context, continuation = [lm.prefix_token_id], lm.tok_encode(answer, add_special_tokens=False)
        if continuation and continuation[0] == lm.prefix_token_id:
            continuation = continuation[1:]
    continuation = continuation[:cut]
    if not continuation:
        raise InputError(f"{where}: the answer {answer!r} has no tokens")
    if len(continuation) > lm.max_length:
        raise InputError(f"{where}: the answer has {len(continuation)} tokens, more than the model's {lm.max_length}")
    return Pair(tuple(context), tuple(continuation))


def token_scores(lm: HFLM, pairs: Sequence[Pair], share_prompts: bool = True) -> list[TokenScores]:
    """Score every pair by teacher forcing; identical pairs once.

    The sum of an answer's log-probabilities and "all arg-max" equal what lm-eval's `loglikelihood` returns. A context
    too long for the model is cut from the left. share_prompts=False forwards every pair whole.
    """
    distinct = list(dict.fromkeys(pairs))
    offsets = np.cumsum([0, *(len(p.answer) + 1 for p in distinct)])
    eos = lm.eot_token_id
    tokens = np.fromiter((t for p in distinct for t in (*p.answer, eos)), np.int64, offsets[-1])
    flat = _Flat(
        torch.from_numpy(tokens).to(lm.device),
        np.empty(len(tokens), np.int32),
        *(np.empty(len(tokens), np.float32) for _ in range(3)),
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
        context, answer = distinct[i].context, distinct[i].answer
        first = len(context) - 1
        span = range(first, first + len(answer) + 1)
        return _Row(context + answer, span, range(offsets[i], offsets[i + 1]))

    shared = {c: group for c, group in by_prompt.items() if share_prompts and len(group) > 1}
    whole += [whole_row(i) for c, group in by_prompt.items() if c not in shared for i in group]
    with (
        tqdm(total=len(tokens), desc="Scoring tokens", disable=_no_bar(lm), leave=False) as bar,
        torch.no_grad(),
    ):
        for contexts in _batches(lm, list(shared), len):
            prompts = [_Row(c, [len(c) - 1] * len(shared[c]), [offsets[i] for i in shared[c]]) for c in contexts]
            cache = _forward(lm, prompts, flat, bar, keep_cache=True)
            if cache is None:  # not a cache that can be copied row by row: forward the pairs whole
                whole += [whole_row(i) for c in contexts for i in shared[c]]
                continue
            lengths = [len(c) for c in contexts]
            rows = [
                _Row(
                    distinct[i].answer,
                    range(len(distinct[i].answer)),
                    range(offsets[i] + 1, offsets[i + 1]),
                    prompt=g,
                )
                for g, c in enumerate(contexts)
                for i in shared[c]
            ]
            for batch in _batches(lm, rows, lambda row: len(row.ids)):
                _forward(lm, batch, flat, bar, cache=cache, lengths=lengths)
            del cache
        for batch in _batches(lm, whole, lambda row: len(row.ids)):
            _forward(lm, batch, flat, bar)

    if np.isnan(flat.logprob).any():
        raise InputError(
            f"the model gives NaN log-probabilities in {str(lm.model.dtype).removeprefix('torch.')}: an overflow, "
            "or broken weights; try float32"
        )
    scores = {
        pair: TokenScores(
            tokens[a:b].astype(np.int32),
            flat.argmax[a:b],
            flat.logprob[a:b],
            flat.mean[a:b],
            flat.variance[a:b],
        )
        for pair, a, b in zip(distinct, offsets[:-1], offsets[1:], strict=True)
    }
    return [scores[pair] for pair in pairs]


def _truncated_rows(pair: Pair, offset: int, max_length: int) -> list[_Row]:
    """lm-eval keeps max_length + 1 tokens of context + answer; scoring end-of-sequence needs a window one later."""
    n, ids = len(pair.answer), pair.context + pair.answer
    answer = ids[-(max_length + 1) : -1]
    return [
        _Row(answer, range(len(answer) - n, len(answer)), range(offset, offset + n)),
        _Row(ids[-max_length:], [max_length - 1], [offset + n]),
    ]


def _forward(
    lm: HFLM,
    rows: Sequence[_Row],
    flat: _Flat,
    bar: Any,
    keep_cache: bool = False,
    cache: DynamicCache | None = None,
    lengths: Sequence[int] = (),
) -> DynamicCache | None:
    """Run rows through the model, right-padded, and reduce their scored positions into flat.

    Causal attention keeps right padding from reaching real tokens, so no mask is needed unless a cache of prompts
    (which has holes where prompts were padded) comes before. Out of memory: halve the batch and go on.
    """
    width = max(len(row.ids) for row in rows)
    device = lm.device
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, : len(row.ids)] = torch.tensor(row.ids)
    kwargs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": keep_cache}
    index = torch.tensor([r * width + p for r, row in enumerate(rows) for p in row.positions], device=device)
    out = np.array([o for row in rows for o in row.out])
    try:
        if cache is not None:
            prompt = torch.tensor([row.prompt for row in rows], device=device)
            length = torch.tensor(lengths, device=device)[prompt]
            mask = torch.ones(len(rows), max(lengths) + width, dtype=torch.long, device=device)
            mask[:, : max(lengths)] = torch.arange(max(lengths), device=device) < length[:, None]
            kwargs |= {
                "past_key_values": DynamicCache([(layer.keys[prompt], layer.values[prompt]) for layer in cache.layers]),
                "attention_mask": mask,
                "position_ids": length[:, None] + torch.arange(width, device=device),
                "use_cache": True,
            }
        past = _score_positions(lm, kwargs, index, out, flat)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a plain one
        if "memory" not in str(error) or len(rows) == 1 or keep_cache:
            raise
        log.warning("out of memory at %d rows of %d tokens: halving the batch", len(rows), width)
        kwargs.clear()
        _free(device)
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            _forward(lm, half, flat, bar, cache=cache, lengths=lengths)
        return None
    counter = work(lm)
    counter["forward_passes"] += 1
    counter["positions"] += len(rows) * width
    counter["padding"] += len(rows) * width - sum(len(row.ids) for row in rows)
    counter["scored"] += len(out)
    bar.update(len(out))
    return past if keep_cache else None


def _score_positions(
    lm: HFLM, kwargs: dict[str, Any], index: Tensor, out: NDArray[np.int64], flat: _Flat
) -> DynamicCache | None:
    """Project only the positions in index (into the flattened batch) to the vocabulary, chunk by chunk, and reduce.

    The head's input is caught on its way; the model itself goes on with a single position, whose logits show
    whether the bare head is all there is. Where it is not (a soft cap, a scale), the model projects all of index.
    """
    head = lm.model.get_output_embeddings()
    caught: list[Tensor] = []
    bare = lm.__dict__.get("unlearn_bare_head", True)

    def catch(_module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(args[0].reshape(-1, args[0].shape[-1])[index])
        return (caught[0][None, :1] if bare else caught[0][None],)

    with _hooked(head, catch), _autocast(lm):
        output = lm.model(**kwargs)
        hidden = caught[0]
    with _autocast(lm):
        if bare and not torch.equal(head(hidden[None, :1]).float(), output.logits.float()):
            lm.__dict__["unlearn_bare_head"] = False
            return _score_positions(lm, kwargs, index, out, flat)
        target = flat.tokens[torch.from_numpy(out).to(hidden.device)]
        vocabulary = output.logits.shape[-1]
        step = max(CHUNK_POSITIONS, CHUNK_LOGITS // vocabulary)
        parts = [
            _reduce(head(hidden[i : i + step]) if bare else output.logits[0, i : i + step], target[i : i + step])
            for i in range(0, len(hidden), step)
        ]
    for array, values in zip(
        (flat.argmax, flat.logprob, flat.mean, flat.variance), zip(*parts, strict=True), strict=True
    ):
        array[out] = torch.cat(values).cpu().numpy()
    return _plain(output.past_key_values) if kwargs["use_cache"] else None


def _reduce(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[positions, vocabulary] -> arg-max, log p(target), mean and variance of log p under the model: [positions]."""
    argmax = logits.argmax(-1)
    logp = torch.log_softmax(logits, -1, dtype=torch.float32)
    p = logp.exp()
    mean = torch.linalg.vecdot(p, logp)
    # log p = -inf has p = 0 and adds nothing, but 0 * inf is NaN
    variance = torch.linalg.vecdot(p.mul_(logp), logp) - mean.square()
    return argmax, logp.gather(-1, target[:, None])[:, 0], mean, variance.clamp_(min=0)


def _plain(cache: Any) -> DynamicCache | None:
    """The cache if its layers are plain key-value tensors (no sliding window, no recurrent state), else None."""
    layers = getattr(cache, "layers", None)
    return cache if layers and all(type(layer) is DynamicLayer for layer in layers) else None


@contextlib.contextmanager
def _hooked(head: torch.nn.Module, hook: Any) -> Iterator[None]:
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _autocast(lm: HFLM) -> torch.autocast:
    return torch.autocast(lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _no_bar(lm: HFLM) -> bool | None:
    return None if lm.rank == 0 else True  # None: only on a terminal


def _budget(lm: HFLM) -> int:
    """Positions in one batch, padding and cache included: from free memory on a GPU, a constant on a CPU."""
    if lm.device.type != "cuda":
        return CPU_POSITIONS
    c = lm.model.config.get_text_config()
    per_position = lm.model.dtype.itemsize * (
        4 * getattr(c, "intermediate_size", 4 * c.hidden_size)
        + 12 * c.hidden_size
        + 4 * c.num_hidden_layers * c.hidden_size
    )
    free, _ = torch.cuda.mem_get_info(lm.device)
    return int(min(max(0.4 * free / per_position, 1024), 1 << 17))


def _batches(lm: HFLM, items: Sequence[Any], length: Any) -> Iterator[list[Any]]:
    """Sorted by length, longest first (so that memory runs out at once or never), cut at the token budget.

    An lm-eval batch_size above 1 (its default, which says nothing) also bounds the rows.
    """
    budget = _budget(lm)
    rows = lm.batch_size if isinstance(lm.batch_size, int) and lm.batch_size > 1 else len(items)
    batch: list[Any] = []
    for item in sorted(items, key=length, reverse=True):
        if batch and (len(batch) >= rows or (len(batch) + 1) * length(batch[0]) > budget):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


# --- greedy generation -------------------------------------------------------------------------------------------


@dataclass
class _Line:
    """One text being generated: the prompt's ids, what is known of the text, its limit and its stop words."""

    prompt: Sequence[int]
    text: list[int]
    limit: int
    stops: tuple[str, ...]
    done: bool = False


def greedy(lm: HFLM, requests: Sequence[tuple[str, dict[str, Any]]], drafts: Sequence[TokenScores | None]) -> list[str]:
    """The text of plain greedy decoding for each (prompt, lm-eval's generation kwargs).

    A draft is the token scores of a reference answer after the same prompt: they tell where greedy decoding first
    leaves the reference, so decoding starts there. Penalties in a generation_config are not applied.
    """
    ends = {lm.eot_token_id} | set(_ids(getattr(lm.model.generation_config, "eos_token_id", None)))
    eos_text = lm.tok_decode([lm.eot_token_id], skip_special_tokens=False)
    lines: dict[tuple[str, int, tuple[str, ...]], _Line] = {}
    keys = []
    for (prompt, kwargs), draft in zip(requests, drafts, strict=True):
        settings = normalize_gen_kwargs(dict(kwargs), lm.max_gen_toks)
        limit = settings["max_gen_toks"]
        until = settings.get("until") or []
        stops = tuple(s for s in ([until] if isinstance(until, str) else until) if s and s != eos_text)
        room = lm.max_length - limit
        if room <= 0:
            raise InputError(f"max_gen_toks={limit} leaves no room for a prompt in the model's {lm.max_length} tokens")
        keys.append((prompt, limit, stops))
        if keys[-1] in lines:
            continue
        ids = lm.tok_encode(prompt) or [lm.prefix_token_id]
        line = lines[keys[-1]] = _Line(ids[-room:], [], limit, stops)
        if draft is not None and len(ids) <= room:
            # m_i holds up to the first miss, where the arg-max is what greedy decoding says instead
            miss = int(np.argmin(np.append(draft.argmax == draft.tokens, False)))
            known = [*draft.tokens[:miss].tolist(), *draft.argmax[miss : miss + 1].tolist()]
            for token in known:
                _extend(lm, line, token, ends)
    todo = [line for line in lines.values() if not line.done]
    with (
        tqdm(total=len(todo), desc="Generating", disable=_no_bar(lm), leave=False) as bar,
        torch.no_grad(),
        _autocast(lm),
    ):
        for batch in _batches(lm, todo, lambda line: len(line.prompt) + line.limit):
            _decode(lm, batch, ends, bar)
    return [_text(lm, lines[key]) for key in keys]


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _extend(lm: HFLM, line: _Line, token: int, ends: set[int]) -> None:
    if line.done:
        return
    if token in ends:
        line.done = True
        return
    line.text.append(token)
    line.done = len(line.text) >= line.limit or (
        bool(line.stops) and any(stop in lm.tok_decode(line.text) for stop in line.stops)
    )


def _text(lm: HFLM, line: _Line) -> str:
    return str(postprocess_generated_text(lm.tok_decode(line.text), list(line.stops), None))


def _decode(lm: HFLM, lines: list[_Line], ends: set[int], bar: Any) -> None:
    """Decode a left-padded batch to the end; finished lines leave it."""
    head, device, counter = lm.model.get_output_embeddings(), lm.device, work(lm)
    known = [[*line.prompt, *line.text] for line in lines]
    width = max(map(len, known))
    ids = torch.zeros(len(lines), width, dtype=torch.long)
    mask = torch.zeros(len(lines), width, dtype=torch.long)
    for r, row in enumerate(known):
        ids[r, width - len(row) :] = torch.tensor(row)
        mask[r, width - len(row) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=lm.model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    with _hooked(head, lambda _module, args: (args[0][:, -1:],)):
        while lines:
            output = lm.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            counter["forward_passes"] += 1
            counter["positions"] += ids.numel()
            counter["generated"] += len(lines)
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            for line, token in zip(lines, ids[:, 0].tolist(), strict=True):
                _extend(lm, line, token, ends)
            alive = [r for r, line in enumerate(lines) if not line.done]
            bar.update(len(lines) - len(alive))
            positions = positions[:, -1:] + 1
            if len(alive) < len(lines):
                lines = [lines[r] for r in alive]
                keep = torch.tensor(alive, dtype=torch.long, device=device)
                ids, mask, positions = ids[keep], mask[keep], positions[keep]
                cache.batch_select_indices(keep)
            mask = torch.cat([mask, mask.new_ones(len(lines), 1)], 1)


class _RoomyLayer(DynamicLayer):
    """transformers' DynamicLayer copies the whole cache at every token; this one keeps room to grow."""

    ROOM = 64
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room: list[Tensor] = []
        old, new = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        states = (key_states, value_states)
        if not self.room or self.room[0].shape[-2] < new:
            grown = [s.new_empty(*s.shape[:2], new + self.ROOM, s.shape[-1]) for s in states]
            if old:
                grown[0][:, :, :old], grown[1][:, :, :old] = self.keys, self.values
            self.room = grown
        for buffer, state in zip(self.room, states, strict=True):
            buffer[:, :, old:new] = state
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        old = self.get_seq_length()
        self.room = [buffer[indices] for buffer in self.room]
        self.keys, self.values = (buffer[:, :, :old] for buffer in self.room)
