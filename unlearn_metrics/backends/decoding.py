"""Greedy text through lm-eval's Hugging Face backend, drafted by the reference answer.

Teacher forcing has shown how far greedy decoding repeats the reference, and decoding starts after that. Where the text
later returns to the reference, prompt-lookup decoding proposes its next tokens and verifies them in one step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from unlearn_metrics.backends import batching, hf
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.progress import Bar

MAX_ROWS = 256
# A step over this many positions takes about as long as a step over one: room for proposals
FREE_POSITIONS = {"cpu": 16, "cuda": 256}
MAX_PROPOSED = 16


@dataclass
class _Line:
    """One text being generated: the prompt's ids, what is known of the text, its limit and its stop words.

    reference: the tokens of the reference answer; follows: where in it the text may go on, by the last one or two
    tokens of the text.
    """

    prompt: Sequence[int]
    text: list[int]
    limit: int
    stops: tuple[str, ...]
    done: bool = False
    reference: tuple[int, ...] = ()
    follows: dict[tuple[int, ...], int] = field(default_factory=dict)

    def expect(self, reference: tuple[int, ...]) -> None:
        self.reference = reference
        for i, token in enumerate(reference):
            self.follows[reference[max(0, i - 1) : i + 1]] = self.follows[(token,)] = i + 1

    def propose(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next."""
        most = min(most, self.limit - len(self.text) - 1)
        last = tuple(self.text[-2:])
        start = self.follows.get(last, self.follows.get(last[1:])) if last and most > 0 else None
        return () if start is None else self.reference[start : start + most]


@dataclass(frozen=True)
class Start:
    """Where a text goes on: after these ids comes `token`, and at most `limit` tokens with it. reference: see _Line."""

    ids: Sequence[int]
    token: int
    limit: int
    reference: tuple[int, ...]


def can_decode(lm: HFLM) -> bool:
    """Whether the model keeps a cache of keys and values, row by row. Recurrent and hybrid models do not."""
    if lm.think_end_token or hf.cache_name(lm) not in inspect.signature(lm.model.forward).parameters:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in _new_cache(lm).layers)


def _can_propose(lm: HFLM) -> bool:
    """Rejected proposals leave holes in the cache: attention must use rotary positions and a mask."""
    rotary = getattr(lm.model.config.get_text_config(), "rope_parameters", None)
    return bool(rotary) and all(type(layer) is DynamicLayer for layer in _new_cache(lm).layers)


def _new_cache(lm: HFLM) -> DynamicCache:
    return DynamicCache(config=lm.model.config)


def greedy(lm: HFLM, requests: Sequence[tuple[str, dict[str, Any]]], drafts: Sequence[TokenScores | None]) -> list[str]:
    """The text of plain greedy decoding for each (prompt, lm-eval's generation kwargs).

    A draft is the token scores of a reference answer after the same prompt: they show where greedy decoding first
    leaves the reference, so decoding starts there. Penalties in a generation_config are not applied. Raises InputError
    if max_gen_toks leaves no room for a prompt.
    """
    ends = _ends(lm)
    eos = hf.end_of_sequence(lm)
    eos_text = None if eos is None else lm.tok_decode([eos], skip_special_tokens=False)
    lines: dict[tuple[str, int, tuple[str, ...]], _Line] = {}
    keys = []
    for (prompt, kwargs), draft in zip(requests, drafts, strict=True):
        settings = normalize_gen_kwargs(dict(kwargs), lm.max_gen_toks)
        limit, until = settings["max_gen_toks"], settings.get("until") or []
        stops = tuple(s for s in ([until] if isinstance(until, str) else until) if s and s != eos_text)
        room = lm.max_length - limit
        if room <= 0:
            raise InputError(f"max_gen_toks={limit} leaves no room for a prompt in the model's {lm.max_length} tokens")
        keys.append((prompt, limit, stops))
        if keys[-1] in lines:
            continue
        ids = lm.tok_encode(prompt) or [lm.prefix_token_id]
        line = lines[keys[-1]] = _Line(ids[-room:], [], limit, stops, done=limit <= 0)
        if draft is not None and len(ids) <= room and len(ids) + len(draft) <= lm.max_length:
            # arg-max and reference agree up to the first miss, where greedy decoding gives the arg-max instead
            miss = int(np.argmin(np.append(draft.argmax == draft.tokens, False)))
            line.expect(tuple(draft.tokens.tolist()))
            for token in (*draft.tokens[:miss].tolist(), *draft.argmax[miss : miss + 1].tolist()):
                _extend(lm, line, token, ends)
    _run(lm, list(lines.values()), ends)
    return [_text(lm, lines[key]) for key in keys]


def continuations(lm: HFLM, starts: Sequence[Start]) -> list[list[int]]:
    """The token ids that plain greedy decoding gives from each start on, its token included, end-of-sequence not.

    Ids beyond the model's length are cut at the left, to the window that teacher forcing has. What we can't decode
    ourselves goes to transformers one by one.
    """
    ends = _ends(lm)
    lines = []
    for start in starts:
        line = _Line(start.ids[-(lm.max_length + 1 - start.limit) :], [], start.limit, ())
        line.expect(start.reference)
        _extend(lm, line, start.token, ends)
        lines.append(line)
    if can_decode(lm):
        _run(lm, lines, ends)
    else:
        for line in (line for line in lines if not line.done):
            for token in _generate(lm, [*line.prompt, *line.text], line.limit - len(line.text), ends):
                _extend(lm, line, token, ends)
    return [line.text for line in lines]


def _generate(lm: HFLM, ids: list[int], limit: int, ends: set[int]) -> list[int]:
    """By transformers, with no setting of the checkpoint's own."""
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0)
    )
    prompt = torch.tensor([ids], device=lm.device)
    with torch.no_grad(), hf.autocast(lm):
        out = lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    new: list[int] = out[0, len(ids) :].tolist()
    hf.work(lm)["generated"] += len(new)
    return new


def _run(lm: HFLM, lines: Sequence[_Line], ends: set[int]) -> None:
    """Decode all lines to their ends."""
    todo = [line for line in lines if not line.done]
    with (
        Bar(total=len(todo), desc="Generating", disable=hf.no_bar(lm), leave=False) as bar,
        torch.no_grad(),
        hf.autocast(lm),
    ):
        for batch in batching.batches(todo, lambda line: len(line.prompt) + line.limit, _budget(lm), decode_rows(lm)):
            _decode(lm, batch, ends, bar)


def _ends(lm: HFLM) -> set[int]:
    named = _ids(hf.end_of_sequence(lm)) + _ids(getattr(lm.model.generation_config, "eos_token_id", None))
    return set(named)


def decode_rows(lm: HFLM) -> int:
    return batching.max_rows(lm) or MAX_ROWS


def _budget(lm: HFLM) -> int:
    """Positions of keys and values to hold at once; growing and dropping rows copies them."""
    return max(1024, int(0.2 * batching.free_memory(lm) / max(1, batching.cache_bytes(lm))))


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
        bool(line.stops)
        and any(
            stop in text
            for text in (lm.tok_decode(line.text, skip_special_tokens=skip) for skip in (True, False))
            for stop in line.stops
        )
    )


def _text(lm: HFLM, line: _Line) -> str:
    # a stop word may be a special token, which decoding leaves out: it ended the text all the same
    return str(postprocess_generated_text(lm.tok_decode(line.text), list(line.stops), None))


def _decode(lm: HFLM, lines: list[_Line], ends: set[int], bar: Any) -> None:
    """Decode a batch to the end. Out of memory: halve it and go on from what each line has by then."""
    failed = False
    try:
        _decode_batch(lm, lines, ends)
    except RuntimeError as error:
        if not batching.out_of_memory(error) or len(lines) == 1:
            raise
        failed = True
    if failed:
        hf.log.warning("out of memory at %d texts: halving the batch", len(lines))
        for half in (lines[: len(lines) // 2], lines[len(lines) // 2 :]):
            _decode(lm, [line for line in half if not line.done], ends, bar)
    else:
        bar.update(len(lines))


def _decode_batch(lm: HFLM, lines: list[_Line], ends: set[int]) -> None:
    """Left-padded; finished lines leave the batch, an eighth of it at a time, since leaving copies the cache.

    A line's input is its last token and the tokens proposed after it. Rejected ones stay in the cache, masked.
    """
    if not lines:
        return
    head, device, counter = lm.model.get_output_embeddings(), lm.device, hf.work(lm)
    known = [[*line.prompt, *line.text] for line in lines]
    width = max(map(len, known))
    ids = torch.zeros(len(lines), width, dtype=torch.long)
    mask = torch.zeros(len(lines), width, dtype=torch.long)
    for r, row in enumerate(known):
        ids[r, width - len(row) :] = torch.tensor(row)
        mask[r, width - len(row) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    free = FREE_POSITIONS.get(device.type, 1) if _can_propose(lm) else 1
    proposals: list[tuple[int, ...]] = [()] * len(lines)
    cache = _new_cache(lm)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    with hf.hooked(head, lambda _module, args: (args[0][:, -1 - max(map(len, proposals)) :],)):
        while True:
            output = lm.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{hf.cache_name(lm): cache},
            )
            counter["forward_passes"] += 1
            counter["positions"] += ids.numel()
            counter["generated"] += sum(not line.done for line in lines)
            # position i of the last 1 + proposals gives what follows the line's last token and i proposed ones
            found = output.logits.argmax(-1).tolist()
            for r, (line, proposed, tokens) in enumerate(zip(lines, proposals, found, strict=True)):
                agrees = [p == t for p, t in zip(proposed, tokens, strict=False)]
                accepted = [*agrees, False].index(False)
                for token in tokens[: accepted + 1]:
                    _extend(lm, line, token, ends)
                if proposed:
                    mask[r, mask.shape[1] - len(tokens) + 1 + accepted :] = 0
                    counter["proposed"] += len(proposed)
                    counter["accepted"] += accepted
            alive = [r for r, line in enumerate(lines) if not line.done]
            if not alive:
                return
            if len(alive) <= len(lines) * 7 // 8:
                lines = [lines[r] for r in alive]
                keep = torch.tensor(alive)  # on the CPU: layers may lie on several devices
                mask = mask[keep]
                cache.batch_select_indices(keep)
            most = min(MAX_PROPOSED, free // len(lines) - 1)
            proposals = [() if line.done else line.propose(most) for line in lines]
            width = 1 + max(map(len, proposals))
            ids = torch.zeros(len(lines), width, dtype=torch.long)
            new = torch.zeros_like(ids)
            places = torch.tensor([len(line.prompt) + len(line.text) - 1 for line in lines])[:, None]
            for r, (line, proposed) in enumerate(zip(lines, proposals, strict=True)):
                ids[r, : 1 + len(proposed)] = torch.tensor([line.text[-1] if line.text else 0, *proposed])
                new[r, : 1 + len(proposed)] = 1
            ids, mask = ids.to(device), torch.cat([mask, new.to(device)], 1)
            positions = (places + torch.arange(width)).clamp(max=lm.max_length - 1).to(device)


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
