"""Whether the model still answers as it should. Pure functions of a generation and its reference."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache


@cache
def _stemmer() -> object:
    from nltk.stem.porter import PorterStemmer  # half a second, which commands without texts need not wait

    return PorterStemmer()


@lru_cache(maxsize=100_000)  # a run has few different words
def _stem(word: str) -> str:
    return str(_stemmer().stem(word))  # type: ignore[attr-defined]


@lru_cache(maxsize=1 << 16)  # the models of a run have the same references
def words(text: str, stemmed: bool) -> list[str]:
    """rouge-score's tokens: runs of a-z and 0-9 in lower case; stemmed from four letters on.

    >>> words("Running: 12 cats!", stemmed=True)
    ['run', '12', 'cat']
    """
    found = re.findall("[a-z0-9]+", text.lower())
    return [_stem(word) if len(word) > 3 else word for word in found] if stemmed else found


def common(generated: Sequence[str], reference: Sequence[str]) -> int:
    """The length of the longest common subsequence. rouge-score fills a table: gigabytes for two long texts."""
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(generated, reference)


def rouge(generation: str, reference: str, stemmer: bool = True) -> float:
    """ROUGE-L recall of a greedy generation against the reference answer, both stripped.

    An empty generation recalls nothing: 0, as it should. A reference without a word that rouge-score keeps (it drops
    all but a-z and 0-9) can't be recalled: NaN.

    >>> rouge("In Oslo.", "She was born in Oslo")
    0.4

    Source: Lin 2004, as the rouge-score package has it; recall with stemmer as in Maini et al. 2024 (TOFU), section
    2.2.2. Tokens are rouge-score's.
    """
    generated, wanted = words(generation, stemmer), words(reference, stemmer)
    return common(generated, wanted) / len(wanted) if wanted else math.nan


def answer_match(generation: str, reference: str) -> float:
    """1 if the whole generation is the reference answer, case and outer white space aside, else 0.

    >>> answer_match(" madera\\n", "Madera"), answer_match("In Madera", "Madera")
    (1.0, 0.0)

    Source: the knowledge score of SemEval-2025 task 4 (LUME, Ramakrishna et al. 2025, arXiv 2502.15097).
    """
    return float(generation.strip().lower() == reference.strip().lower())


def rouge_f1(generation: str, reference: str, stemmer: bool = False) -> float:
    """ROUGE-L F1 (harmonic mean of precision and recall), without stemmer. Empty texts as in `rouge`.

    >>> rouge_f1("In Oslo.", "She was born in Oslo") == 2 * 2 / (2 + 5)
    True

    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460), as in their code; OpenUnlearning stems.
    """
    generated, wanted = words(generation, stemmer), words(reference, stemmer)
    return 2 * common(generated, wanted) / (len(generated) + len(wanted)) if wanted else math.nan
