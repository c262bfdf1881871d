"""Whether the model still says what it should. Pure functions of strings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from itertools import chain


class Memo(dict[str, list[str]]):
    """What a function makes of a string, made when first asked for: most words of a text have come before."""

    def __init__(self, make: Callable[[str], list[str]]) -> None:
        self.make = make

    def __missing__(self, text: str) -> list[str]:
        if len(self) >= 100_000:
            self.clear()
        made = self[text] = self.make(text)
        return made


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # half a second, which commands without texts need not wait

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


_plain = Memo(lambda text: re.findall("[a-z0-9]+", text.lower()))
_stems = Memo(lambda text: [_stemmer()(word) if len(word) > 3 else word for word in _plain[text]])


def words(text: str, stemmer: bool) -> list[str]:
    """rouge-score's, which stems words of four letters and more: nine tenths of its time."""
    known = _stems if stemmer else _plain
    return list(chain.from_iterable(map(known.__getitem__, chunks(text))))


@lru_cache(maxsize=4)  # several metrics ask for the same text in turn
def chunks(text: str) -> list[str]:
    """What stands between spaces: no word reaches over one."""
    return text.split()


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
