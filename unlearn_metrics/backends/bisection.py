"""Extraction strength from `loglikelihood` alone: the greedy flag, by batched bisection over the revealed prefix.

The flag of (prompt + the answer's first j units, the rest) is true if every arg-max from j on is right. It can only
turn from false to true as j grows, so bisection finds the fewest units to reveal exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM

from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.documents import FlagScores

T = TypeVar("T", bound=Hashable)
# (context, rest) of every request -> (log-likelihood of the rest in nats, whether greedy decoding yields it)
Ask = Callable[[list[tuple[T, T]]], list[tuple[float, bool]]]


def by_tokens(lm: TemplateLM, pairs: Sequence[Pair]) -> list[FlagScores]:
    """Cut between tokens, sent as tokens; the loss from two sums, end-of-sequence included."""

    def ask(requests: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, bool]]:
        # the first item is the key of lm-eval's cache; some backends fail on None
        return list(lm._loglikelihood_tokens([((list(c), list(r)), list(c), list(r)) for c, r in requests]))

    whole = list(dict.fromkeys((pair.context, pair.answer) for pair in pairs))
    sums: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    if lm.eot_token_id is not None:
        answers = ask([(context, (*answer, lm.eot_token_id)) for context, answer in whole])
        sums = {key: total for key, (total, _) in zip(whole, answers, strict=True)}
    revealed = _bisect({key: len(key[1]) for key in whole}, lambda k, j: (k[0] + k[1][:j], k[1][j:]), ask)
    return [
        FlagScores(-sums.get(key, math.nan) / (len(key[1]) + 1), len(key[1]), revealed[key], "token")
        for key in [(pair.context, pair.answer) for pair in pairs]
    ]


def by_words(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[FlagScores]:
    """Cut before the white space between words, for a backend that accepts only strings. The number of tokens, and so
    the mean loss, is unknown."""

    def ask(requests: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        return list(lm.loglikelihood([Instance("loglikelihood", {}, r, i) for i, r in enumerate(requests)]))

    whole = list(dict.fromkeys(pairs))
    words = {key: re.findall(r"\s*\S+\s*$|\s*\S+", key[1]) for key in whole}
    revealed = _bisect(
        {key: len(words[key]) for key in whole},
        lambda k, j: (k[0] + "".join(words[k][:j]), "".join(words[k][j:])),
        ask,
    )
    return [FlagScores(math.nan, len(words[key]), revealed[key], "word") for key in pairs]


def _bisect(
    lengths: dict[tuple[T, T], int], cut: Callable[[tuple[T, T], int], tuple[T, T]], ask: Ask[T]
) -> dict[tuple[T, T], int]:
    """The fewest units of each pair to reveal: all pairs' cuts of a round in one call, equal requests once."""
    # the flag is false at the first (-1: not asked), true at the other
    fewest = {key: (-1, n) for key, n in lengths.items()}
    points = dict.fromkeys(lengths, 0)
    while points:
        requests = {key: cut(key, j) for key, j in points.items()}
        distinct = list(dict.fromkeys(requests.values()))
        flags = dict(zip(distinct, (greedy for _, greedy in ask(distinct)), strict=True))
        for key, j in points.items():
            low, high = fewest[key]
            fewest[key] = (low, j) if flags[requests[key]] else (j, high)
        points = {key: (low + high) // 2 for key, (low, high) in fewest.items() if high - low > 1}
    return {key: high for key, (_, high) in fewest.items()}
