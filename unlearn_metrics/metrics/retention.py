"""Whether the model still says what it should. Pure functions of strings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from functools import cache


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # half a second, which commands without texts need not wait

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


class _Stems(dict[str, str]):
    """word -> its stem as rouge-score has it, made when asked for: stemming is nine tenths of rouge-score's time."""

    def __missing__(self, word: str) -> str:
        if len(self) >= 100_000:
            self.clear()
        stem = self[word] = _stemmer()(word) if len(word) > 3 else word
        return stem


_stems = _Stems()


def words(text: str, stemmer: bool) -> list[str]:
    """rouge-score's, which stems words of four letters and more."""
    found = re.findall("[a-z0-9]+", text.lower())
    return [_stems[word] for word in found] if stemmer else found


def lcs(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a bit for each token of `a` (Hyyrö 2004, Bit-parallel LCS-length
    computation revisited). rouge-score fills a table of len(a) x len(b) numbers: gigabytes for two long texts."""
    places: dict[Hashable, int] = {}
    bit = 1
    for token in a:
        places[token] = places.get(token, 0) | bit
        bit <<= 1
    everywhere = free = bit - 1
    for place in filter(None, map(places.get, b)):
        matched = free & place
        free = (free + matched | free - matched) & everywhere
    return len(a) - free.bit_count()


def rouge(generation: str, reference: str, stemmer: bool = True) -> float:
    """ROUGE-L recall of a greedy generation against the reference answer, both stripped.

    An empty generation recalls nothing: 0, as it should. A reference without a word that rouge-score knows (it drops
    all but a-z and 0-9) can't be recalled: NaN. Source: Lin 2004, as the rouge-score package has it; recall with
    stemmer as in Maini et al. 2024 (TOFU), section 2.2.2. Tokens are rouge-score's.
    """
    wanted, given = words(reference, stemmer), words(generation, stemmer)
    return lcs(wanted, given) / len(wanted) if wanted else math.nan


def rouge_f1(generation: str, reference: str, stemmer: bool = False) -> float:
    """ROUGE-L F1 (harmonic mean of precision and recall), without stemmer. Empty texts as in `rouge`.

    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460), as in their code; OpenUnlearning stems.
    """
    wanted, given = words(reference, stemmer), words(generation, stemmer)
    return 2 * lcs(wanted, given) / (len(wanted) + len(given)) if wanted else math.nan
