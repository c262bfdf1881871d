"""Whether the model still says what it should. Pure functions of columns: n texts each, and [n] values for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import numpy as np

from unlearn_metrics.documents import Floats
from unlearn_metrics.metrics.texts import numbered


@cache
def stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # half a second, which commands without texts need not wait

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


@lru_cache(maxsize=100_000)  # the splits of a run share most of their words
def words(text: str, stemmed: bool) -> list[str]:
    """rouge-score's, which stems words of four letters and more: nine tenths of its time."""
    found = re.findall("[a-z0-9]+", text.lower())
    return [stemmer()(word) if len(word) > 3 else word for word in found] if stemmed else found


def _common(generations: Sequence[str], references: Sequence[str], stemmed: bool) -> tuple[Floats, Floats, Floats]:
    """([n] lengths of the longest common subsequences of words, [n] words of the generations, [n] of the references).

    rouge-score fills a table of the two lengths' product: gigabytes for two long texts.
    """
    from rapidfuzz.distance import LCSseq

    numbers, lengths = numbered([*generations, *references], partial(words, stemmed=stemmed))
    ends = np.cumsum(lengths).tolist()
    units = numbers.tolist()
    text = [units[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    given, wanted = np.split(lengths.astype(np.float64), 2)
    return np.array(list(map(LCSseq.similarity, text, text[len(given) :])), np.float64), given, wanted


def rouge(generations: Sequence[str], references: Sequence[str], stemmer: bool = True) -> Floats:
    """ROUGE-L recall of a greedy generation against the reference answer, both stripped.

    An empty generation recalls nothing: 0, as it should. A reference without a word that rouge-score knows (it drops
    all but a-z and 0-9) can't be recalled: NaN. Source: Lin 2004, as the rouge-score package has it; recall with
    stemmer as in Maini et al. 2024 (TOFU), section 2.2.2. Tokens are rouge-score's.
    """
    common, _, wanted = _common(generations, references, stemmer)
    return common / np.where(wanted > 0, wanted, np.nan)


def rouge_f1(generations: Sequence[str], references: Sequence[str], stemmer: bool = False) -> Floats:
    """ROUGE-L F1 (harmonic mean of precision and recall), without stemmer. Empty texts as in `rouge`.

    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460), as in their code; OpenUnlearning stems.
    """
    common, given, wanted = _common(generations, references, stemmer)
    return 2 * common / (np.where(wanted > 0, wanted, np.nan) + given)
