"""Whether the model still says what it should. Pure functions of strings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

from rouge_score import rouge_scorer
from scipy.stats import hmean


@cache
def _scorer(stemmer: bool) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge(generation: str, reference: str, stemmer: bool = True) -> float:
    """ROUGE-L recall of a greedy generation against the reference answer, both stripped.

    An empty generation recalls nothing: 0, as it should. A reference without a word that rouge-score knows (it drops
    all but a-z and 0-9) can't be recalled: NaN. Source: Lin 2004, by the rouge-score package; recall with
    stemmer as in Maini et al. 2024 (TOFU), section 2.2.2.
    """
    if not re.search("[a-z0-9]", reference.lower()):
        return math.nan
    return float(_scorer(stemmer).score(reference.strip(), generation.strip())["rougeL"].recall)


def model_utility(components: Sequence[float]) -> float:
    """Harmonic mean of nine: {retain, real authors, world facts} x {probability (normalised but for retain), ROUGE-L
    recall, truth ratio}. 0 if a component is 0. Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), section 2.2.2.
    """
    return float(hmean(components))
