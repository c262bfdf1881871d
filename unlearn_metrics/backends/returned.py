"""Token scores from log-probabilities that another engine returns: OpenAI-compatible completion servers, and vLLM.

lm-eval's own `_loglikelihood_tokens` of the backend sends the requests (batches, concurrency, retries, truncation);
only its parser is replaced, by one that keeps each token instead of the sum. The end-of-sequence token is sent as the
last token of the answer, so that its log-probability comes back too. Mean and variance of log p never do: NaN.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
from lm_eval.api.model import CacheHook, TemplateLM

from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.documents import OTHER, UNKNOWN, TokenScores
from unlearn_metrics.errors import InputError

# log-probability of a token in nats (NaN: not known), and the arg-max in its place (an id, OTHER or UNKNOWN)
Position: TypeAlias = tuple[float, int]
NOTHING: Position = (math.nan, UNKNOWN)


def server_scores(lm: TemplateLM, pairs: Sequence[Pair]) -> list[TokenScores]:
    """Scores by an lm-eval `LocalCompletionsAPI`, whose server echoes the prompt with log-probabilities.

    Where its tokens are not those that were sent, or its values are not those of these tokens, nothing is known.
    """
    return _token_scores(lm, pairs, lm.max_length, "parse_logprobs", partial(parse_completions, lm), believed)


def vllm_scores(lm: TemplateLM, pairs: Sequence[Pair]) -> list[TokenScores]:
    """Scores by lm-eval's `VLLM`, from `prompt_logprobs`."""
    return _token_scores(lm, pairs, lm.max_length - 1, "_parse_logprobs", parse_prompt_logprobs, list)


def _token_scores(
    lm: TemplateLM,
    pairs: Sequence[Pair],
    window: int,
    name: str,
    parse: Callable[..., Any],
    settle: Callable[[list[Any]], list[list[Position]]],
) -> list[TokenScores]:
    """window: how many tokens of a request lm-eval keeps, from the right. name: of the parser that `parse` replaces.
    settle: what it returned of all requests -> their positions."""
    distinct = list(dict.fromkeys(pairs))
    eos = lm.eot_token_id
    requests: list[tuple[None, list[int], list[int]]] = []
    for pair in distinct:
        context, answer = list(pair.context), list(pair.answer)
        if eos is None:
            requests.append((None, context, answer))
        elif len(context) + len(answer) < window:
            requests.append((None, context, [*answer, eos]))
        else:  # as lm-eval cuts a prompt that is too long: at the answer, and for end-of-sequence one token later
            requests += [(None, context, answer), (None, context + answer, [eos])]
    reader = copy.copy(lm)  # the user's model keeps its parser, and its cache the sums that lm-eval expects there
    setattr(reader, name, parse)
    reader.set_cache_hook(CacheHook(None))
    found = iter(settle(reader._loglikelihood_tokens(requests)))
    scores = {}
    for pair in distinct:
        positions = list(next(found))
        if eos is None:
            positions.append(NOTHING)
        elif len(positions) == len(pair.answer):
            positions += next(found)
        scores[pair] = _scores([*pair.answer, -1 if eos is None else eos], positions)
    return [scores[pair] for pair in pairs]


def _scores(tokens: Sequence[int], positions: Sequence[Position]) -> TokenScores:
    logprob, argmax = zip(*positions, strict=True)
    unknown = np.full(len(tokens), np.nan, np.float32)
    return TokenScores(
        np.array(tokens, np.int32), np.array(argmax, np.int32), np.array(logprob, np.float32), unknown, unknown
    )


# --- OpenAI-compatible completions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo:
    """What a response holds of one answer. shift: by how many places its tokens come later than those that were sent.
    proven: its values are known to be those of its tokens."""

    positions: list[Position]
    shift: int = 0
    proven: bool = False


def parse_completions(
    lm: Any, outputs: Any, tokens: Sequence[Sequence[int]], ctxlens: Sequence[int], **_: Any
) -> list[Echo]:
    """What a response, or a list of them, holds of each answer, tokens[ctxlen:]. Stands in for `parse_logprobs`.

    Raises InputError if the server does not answer every prompt of a batch.
    """
    responses = outputs if isinstance(outputs, list) else [outputs]
    choices = [c for r in responses for c in sorted(r["choices"], key=itemgetter("index"))]
    if len(choices) != len(tokens):
        raise InputError(
            f"{lm.base_url} returned {len(choices)} completions for {len(tokens)} prompts; try batch_size=1"
        )
    return [_echo(lm, c, sent, ctxlen) for c, sent, ctxlen in zip(choices, tokens, ctxlens, strict=True)]


def _echo(lm: Any, choice: Any, sent: Sequence[int], ctxlen: int) -> Echo:
    """The echo of a prompt, perhaps with a start token that only the server adds (shift 1) or that it does not show
    (-1), and of the token that was generated, unless that is end-of-sequence and the server leaves it out.

    By greedy decoding the generated token is the arg-max, which proves the values: there are servers whose values
    belong to another position (llama-cpp-python for a prompt without a start token).
    """
    given = choice.get("logprobs") or {}
    names, logprobs, tops = (given.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
    tops = tops or [None] * len(names)
    if names and len(names) == len(logprobs) == len(tops):
        shown = _position(names, logprobs, tops, -1, 0)[1] != OTHER
        for shift, proven in ((len(names) - 1 - len(sent), shown), (len(names) - len(sent), False)):
            start, stop = ctxlen + shift, len(sent) + shift
            if shift not in (-1, 0, 1) or start < 0:
                continue
            if (shift == 0 and lm.tokenized_requests) or _same_text(lm, sent[ctxlen:], names[start:stop]):
                places = zip(range(start, stop), sent[ctxlen:], strict=True)
                return Echo([_position(names, logprobs, tops, i, token) for i, token in places], shift, proven)
    return Echo([NOTHING] * (len(sent) - ctxlen))


def believed(echoes: Sequence[Echo]) -> list[list[Position]]:
    """Nothing where neither the echo itself nor another one of the same server and shift is proven."""
    proven = {echo.shift for echo in echoes if echo.proven}
    return [e.positions if e.shift in proven else [NOTHING] * len(e.positions) for e in echoes]


def _position(names: Sequence[str], logprobs: Sequence[Any], tops: Sequence[Any], i: int, token: int) -> Position:
    logprob = math.nan if logprobs[i] is None else _finite(float(logprobs[i]))
    if not tops[i] or math.isnan(logprob):
        return logprob, UNKNOWN
    if logprob < max(tops[i].values()):
        return logprob, OTHER
    # tops[i] goes by text: where a token is part of a character, another token may have the same and be lost
    partial_text = not names[i] or "\ufffd" in names[i]
    if partial_text and len(tops[i]) == 1 and logprob <= math.log(0.5):
        return logprob, UNKNOWN
    return logprob, token


def _finite(logprob: float) -> float:
    """Engines give minus infinity for tokens that sampling settings rule out: the model's own value is unknown."""
    return logprob if math.isfinite(logprob) else math.nan


def _same_text(lm: Any, tokens: Sequence[int], names: Sequence[str]) -> bool:
    """Whether the server split the answer as the local tokenizer did, by what the server calls each token.

    By ASCII characters alone: tokens that are part of a character have no text of their own. The end-of-sequence token
    may be shown or not.
    """
    texts = lm.decode_batch([[token] for token in tokens])
    return all(
        _ascii(text) == _ascii(name) or (token == lm.eot_token_id and not name)
        for token, text, name in zip(tokens, texts, names, strict=True)
    )


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode().strip()


# --- vLLM ---------------------------------------------------------------------------------------------------------


def parse_prompt_logprobs(tokens: Sequence[int], outputs: Any, ctxlen: int) -> list[Position]:
    """Positions of the answer, tokens[ctxlen:], from a vLLM RequestOutput. Stands in for `_parse_logprobs`.

    outputs.prompt_logprobs: for each position None (the first) or {token id: Logprob(logprob, rank, decoded_token)},
    which holds the prompt's token and the arg-max. Where an engine leaves out positions or the prompt's token, nothing
    is known. ctxlen < 0: so many tokens of the answer were cut from its start.
    """
    start, lost = max(ctxlen, 0), max(-ctxlen, 0)
    given = list(outputs.prompt_logprobs or ())[: len(tokens)]  # more: of a token that was generated
    given += [None] * (len(tokens) - len(given))
    found = zip(tokens[start:], given[start:], strict=True)
    return [NOTHING] * lost + [_of_ids(there, token) if there else NOTHING for token, there in found]


def _of_ids(given: dict[int, Any], token: int) -> Position:
    # of equals, rank 1 is the greedy token
    best = min(given, key=lambda t: (-_number(given[t]), getattr(given[t], "rank", None) or math.inf))
    return (_finite(_number(given[token])), best) if token in given else NOTHING


def _number(logprob: Any) -> float:
    """vLLM's Logprob; before 0.4 a plain number."""
    return float(getattr(logprob, "logprob", logprob))
