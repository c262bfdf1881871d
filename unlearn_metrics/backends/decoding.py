"""Greedy text through lm-eval's Hugging Face backend, drafted by the reference answer and by the text itself.

Teacher forcing has shown how far greedy decoding repeats the reference, and decoding starts after that. Where the text
later returns to the reference, or repeats itself, prompt-lookup decoding proposes its next tokens, and one step of the
model verifies them.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from unlearn_metrics.backends import batching, caches, drafts, encoding, hf
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.progress import Bar

MAX_ROWS = 256
# What a step costs beside its positions, in positions: reading parameters, launching kernels
FREE_POSITIONS = {"cpu": 16, "cuda": 256}
STEP_LOGITS = 1 << 26  # logits of a step with drafts: 256 MiB of float32
FULL = 1.5  # times as long as the longest text: a cache that is packed


class _Scored(NamedTuple):
    """A position of a text: log p of the token chosen, mean and variance of log p, log p of end-of-sequence."""

    logprob: float
    mean: float
    variance: float
    end: float


@dataclass
class _Line:
    """One text being generated: the prompt's ids, its limit and stop words, what it may repeat, what is known of it.

    scored: whether to keep the scores of its tokens, and of what comes after the last one: `end`, the arg-max there.
    """

    prompt: Sequence[int]
    limit: int
    stops: tuple[str, ...] = ()
    reference: Sequence[int] = ()
    scored: bool = False
    done: bool = False
    text: list[int] = field(default_factory=list)
    scores: list[_Scored] = field(default_factory=list)
    end: int | None = None

    def __post_init__(self) -> None:
        self.drafts = drafts.Drafts(self.prompt, self.reference)

    @property
    def room(self) -> int:
        """Tokens that a draft may have: the step that verifies it gives one more, and if scored, what comes after."""
        return self.limit - len(self.text) - (not self.scored)


@dataclass(frozen=True)
class Start:
    """Where a text goes on: after these ids comes `token`, and at most `limit` tokens with it. reference: what
    the text may repeat."""

    ids: Sequence[int]
    token: int
    limit: int
    reference: tuple[int, ...]


def can_decode(lm: HFLM) -> bool:
    """Whether the model keeps a cache of keys and values, row by row. Recurrent and hybrid models do not."""
    if lm.think_end_token or hf.cache_name(lm) not in inspect.signature(lm.model.forward).parameters:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in caches.new(lm).layers)


def _can_propose(lm: HFLM) -> bool:
    """Rejected proposals leave holes in the cache: attention must use rotary positions and a mask."""
    rotary = getattr(lm.model.config.get_text_config(), "rope_parameters", None)
    return bool(rotary) and all(type(layer) is DynamicLayer for layer in caches.new(lm).layers)


def greedy(
    lm: HFLM,
    requests: Sequence[tuple[str, dict[str, Any]]],
    references: Sequence[TokenScores | None],
    said: dict[encoding.Pair, TokenScores] | None = None,
) -> list[str]:
    """The text of plain greedy decoding for each (prompt, lm-eval's generation kwargs).

    A reference is the token scores of an answer after the same prompt: they show where greedy decoding first leaves
    it, so decoding starts there. Penalties in a generation_config are not applied. said: where the token scores of the
    texts are put, as teacher forcing would give them for the same tokens. Raises InputError if max_gen_toks leaves no
    room for a prompt.
    """
    ends = _ends(lm)
    eos = hf.end_of_sequence(lm)
    eos_text = None if eos is None else lm.tok_decode([eos], skip_special_tokens=False)
    lines: dict[tuple[str, int, tuple[str, ...]], _Line] = {}
    keys = []
    for (prompt, kwargs), reference in zip(requests, references, strict=True):
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
        fits = reference is not None and len(ids) <= room and len(ids) + len(reference) <= lm.max_length
        repeats = reference.tokens.tolist() if reference is not None and fits else []
        line = _Line(ids[-room:], limit, stops, repeats, scored=said is not None and eos is not None)
        lines[keys[-1]] = line
        line.done = limit <= 0
        if reference is not None and fits:
            _repeat(lm, line, reference, ends)
    _run(lm, list(lines.values()), ends)
    if said is not None:
        said |= {pair: scores for line in lines.values() for pair, scores in _scores(line, eos)}
    return [_text(lm, lines[key]) for key in keys]


def _repeat(lm: HFLM, line: _Line, reference: TokenScores, ends: set[int]) -> None:
    """What teacher forcing has shown of the text: arg-max and reference agree up to the first miss, where greedy
    decoding gives the arg-max instead. Of that token the scores are not known."""
    miss = int(np.argmin(np.append(reference.argmax == reference.tokens, False)))
    columns = (reference.logprob, reference.mean, reference.variance, reference.logprob)
    shown = zip(reference.tokens.tolist(), *(column.tolist() for column in columns), strict=True)
    for i, (token, *score) in enumerate(itertools.islice(shown, miss)):
        if line.scored and i == line.limit and i < len(reference):
            return  # the text is cut here, and nothing is known of its end
        _extend(lm, line, token, ends, _Scored(*score))
    if not line.scored:
        for token in reference.argmax[miss : miss + 1].tolist():
            _extend(lm, line, token, ends)


def _scores(line: _Line, eos: int | None) -> Iterator[tuple[encoding.Pair, TokenScores]]:
    """The text and its token scores, if those of all its tokens and of its end are known."""
    if line.end is None or eos is None or not line.text:
        return
    logprob, mean, variance, end = np.array(line.scores, np.float32).T
    yield (
        encoding.Pair(tuple(line.prompt), tuple(line.text)),
        TokenScores(
            np.array([*line.text, eos], np.int32),
            np.array([*line.text, line.end], np.int32),
            np.append(logprob[:-1], end[-1]),
            mean,
            variance,
        ),
    )


def continuations(lm: HFLM, starts: Sequence[Start]) -> list[list[int]]:
    """The token ids that plain greedy decoding gives from each start on, its token included, end-of-sequence not.

    Ids beyond the model's length are cut at the left, to the window that teacher forcing has. What we can't decode
    ourselves goes to transformers one by one.
    """
    ends = _ends(lm)
    lines = []
    for start in starts:
        line = _Line(start.ids[-(lm.max_length + 1 - start.limit) :], start.limit, reference=start.reference)
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


def _extend(lm: HFLM, line: _Line, token: int, ends: set[int], score: _Scored | None = None) -> None:
    if line.done:
        return
    if line.scored and score is not None:
        line.scores.append(score)
    if token in ends or len(line.text) >= line.limit:
        line.end, line.done = token, True
        return
    line.text.append(token)
    line.drafts.append(token)
    line.done = (len(line.text) >= line.limit and not line.scored) or (
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

    A line's input is its last token and the tokens drafted after it. Rejected ones stay in the cache, masked, until
    they are many.
    """
    if not lines:
        return
    head, counter = lm.model.get_output_embeddings(), hf.work(lm)
    known = [[*line.prompt, *line.text] for line in lines]
    mask = torch.zeros(len(lines), max(map(len, known)), dtype=torch.long)
    ids = torch.zeros_like(mask)
    for r, row in enumerate(known):
        ids[r, -len(row) :] = torch.tensor(row)
        mask[r, -len(row) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    free = FREE_POSITIONS.get(lm.device.type, 1) if _can_propose(lm) else 0
    most = min(batching.budget(lm), STEP_LOGITS // len(head.weight))
    guesses: list[list[int]] = [[]] * len(lines)
    drafted = 0
    cache = caches.roomy(caches.new(lm))
    with hf.hooked(head, lambda _module, args: (args[0][:, -1 - drafted :],)):
        while True:
            output = lm.model(
                input_ids=ids.to(lm.device),
                attention_mask=mask.to(lm.device),
                position_ids=positions.to(lm.device),
                use_cache=True,
                **{hf.cache_name(lm): cache},
            )
            counter["forward_passes"] += 1
            counter["positions"] += ids.numel()
            taken = 1
            # position i of the last 1 + drafted gives what follows the line's last token and i drafted ones
            for r, (line, guess, found) in enumerate(
                zip(lines, guesses, _found(lm, output.logits, lines), strict=True)
            ):
                if line.done:
                    continue
                draft = guess[:drafted]
                accepted = next((i for i, token in enumerate(draft) if token != found[i][0]), len(draft))
                line.drafts.learn(guess, [token for token, _ in found[: accepted + 1]])
                for token, score in found[: accepted + 1]:
                    counter["generated"] += not line.done
                    _extend(lm, line, token, ends, score)
                if draft:
                    mask[r, mask.shape[1] - drafted + accepted :] = 0
                    counter["proposed"] += len(draft)
                    counter["accepted"] += accepted
                if not line.done:
                    taken = max(taken, 1 + accepted)
            alive = [r for r, line in enumerate(lines) if not line.done]
            if not alive:
                return
            if taken <= drafted:  # nobody has taken the last columns
                mask = mask[:, : taken - 1 - drafted]
                caches.crop(cache, mask.shape[1])
            if len(alive) <= len(lines) * 7 // 8:
                lines = [lines[r] for r in alive]
                keep = torch.tensor(alive)  # on the CPU: layers may lie on several devices
                mask = mask[keep]
                cache.batch_select_indices(keep)
            if free and mask.shape[1] > FULL * max(len(line.prompt) + len(line.text) for line in lines):
                mask = caches.pack(cache, mask)
            guesses = [[] if line.done else line.drafts.propose(min(drafts.LENGTHS[-1], line.room)) for line in lines]
            going = [
                (line.drafts.trust, len(guess)) for line, guess in zip(lines, guesses, strict=True) if not line.done
            ]
            drafted = drafts.length(going, rows=len(lines), free=free, most=most)
            ids = torch.zeros(len(lines), 1 + drafted, dtype=torch.long)
            new = torch.zeros_like(ids)
            for r, (line, guess) in enumerate(zip(lines, guesses, strict=True)):
                fed = [line.text[-1] if line.text else 0, *guess[:drafted]]
                ids[r, : len(fed)] = torch.tensor(fed)
                new[r, : len(fed)] = 1
            mask = torch.cat([mask, new], 1)
            places = torch.tensor([len(line.prompt) + len(line.text) - 1 for line in lines])[:, None]
            positions = (places + torch.arange(1 + drafted)).clamp(max=lm.max_length - 1)


def _found(lm: HFLM, logits: Tensor, lines: Sequence[_Line]) -> list[list[tuple[int, _Scored | None]]]:
    """For each line and position, the token chosen and, if a line is scored, its scores. Overwrites the logits."""
    eos = hf.end_of_sequence(lm)
    if eos is None or not lines[0].scored:
        return [[(token, None) for token in row] for row in logits.argmax(-1).tolist()]
    found: list[tuple[int, _Scored | None]] = []
    for part in torch.split(logits.flatten(0, 1), max(1, hf.REDUCE_LOGITS // logits.shape[-1])):
        chosen = hf.largest(part)[0]
        below = part[:, eos].float() - part.gather(-1, chosen[:, None])[:, 0].float()
        _, logprob, mean, variance = hf.reduce(part, chosen, drawn=False)
        table = torch.stack([logprob, mean, variance, below + logprob], -1).tolist()
        found += zip(chosen.tolist(), (_Scored(*row) for row in table), strict=True)
    width = logits.shape[1]
    return [found[i : i + width] for i in range(0, len(found), width)]
