"""How few leading answer tokens to reveal so that greedy decoding gives something similar to the rest.

Token ids are revealed, not text, so that tokenizing again can't change them. Teacher forcing shows most of each text:
up to the next miss it is the reference, and all revelations up to there give the same text. So a text is decoded once
for each stretch between two misses that the search touches, all documents of a round in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import decoding
from unlearn_metrics.backends.encoding import Pair
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.metrics.memorization import similar


def fewest_similar(lm: HFLM, pairs: Sequence[Pair], scores: Sequence[TokenScores]) -> list[int]:
    """For each answer of n tokens, a k in 0..n so that greedy decoding after k of them is `similar` to the rest.

    By bisection from the k of extraction_strength, which holds. The criterion need not be monotone in k: the k found
    holds and k - 1 does not (or k = 0), but still fewer may hold. scores: of the pairs, by the same model.
    """
    misses = [np.flatnonzero(~s.match) for s in scores]
    found = [int(m[-1]) + 1 if len(m) else 0 for m in misses]
    fails = [-1] * len(pairs)
    tails: dict[tuple[Pair, int], list[int]] = {}  # the text from a miss on
    while open_ := [i for i in range(len(pairs)) if found[i] - fails[i] > 1]:
        probes = {i: (fails[i] + found[i]) // 2 for i in open_}
        # a probe lies before the last miss, so there is a next one
        ends = {i: int(misses[i][np.searchsorted(misses[i], k)]) for i, k in probes.items()}
        new = {(pairs[i], ends[i]): int(scores[i].argmax[ends[i]]) for i in open_}
        new = {key: token for key, token in new.items() if key not in tails}
        starts = [
            decoding.Start((*pair.context, *pair.answer[:end]), token, len(pair.answer) - end, pair.answer)
            for (pair, end), token in new.items()
        ]
        tails |= zip(new, decoding.continuations(lm, starts), strict=True)
        for i, k in probes.items():
            said = [*pairs[i].answer[k : ends[i]], *tails[pairs[i], ends[i]]]
            if similar(said, pairs[i].answer[k:]):
                found[i] = k
            else:
                fails[i] = k
    return found
