"""Whether the model still writes language. Pure functions of a generation, or of its scores under a judge.

A text too short for a figure has none: these return NaN, which is counted as unscored, never as 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from statistics import fmean

import numpy as np

from unlearn_metrics.types import TokenScores

NAN = math.nan


@lru_cache(maxsize=2)  # several metrics ask for the same text in turn
def words(text: str) -> tuple[str, ...]:
    """Words and punctuation marks, each a unit."""
    return tuple(re.findall(r"\w+|[^\w\s]", text))


def ngrams(units: tuple[str, ...], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(units[i:] for i in range(n)), strict=False))


def repetition(generation: str, n: int = 4) -> float:
    """Share of n-grams of words that occurred before in the text: 1 - distinct / all. NaN below n words.

    Source: Welleck et al. 2020 (arXiv 1908.04319), seq-rep-n, eq. 10, with n = 4.
    """
    counts = ngrams(words(generation), n)
    return 1 - len(counts) / counts.total() if counts else NAN


def ngram_entropy(generation: str) -> float:
    """Entropies in bits of the bi- and tri-grams of words, weighted 2/3 and 4/3, averaged. NaN below three words.

    Source: Zhang et al. 2018 (arXiv 1809.05972) and Meng et al. 2022 (ROME, arXiv 2202.05262), `n_gram_entropy`;
    they split words with nltk's tokenizer, we with `words`, which needs no download.
    """
    units = words(generation)
    if len(units) < 3:
        return NAN

    def entropy(counts: Counter[tuple[str, ...]]) -> float:
        total = counts.total()
        # n-grams that come equally often are summed at once
        return sum(m * k / total * math.log2(total / k) for k, m in Counter(counts.values()).items())

    return (2 / 3 * entropy(ngrams(units, 2)) + 4 / 3 * entropy(ngrams(units, 3))) / 2


def perplexity(judged_generation: TokenScores | None) -> float:
    """exp of the mean loss, per token, that a judge model gives to the generation after its prompt.

    The judge is the original model: it speaks the language and knows the facts. End-of-sequence is not counted,
    since a generation may be cut at its length limit. None (an empty generation) gives NaN.
    """
    if judged_generation is None:
        return NAN
    return float(np.exp(-fmean(judged_generation.logprob[:-1].tolist())))
