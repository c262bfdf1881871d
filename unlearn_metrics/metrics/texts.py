"""Many texts as numbers, which metrics of words count and compare: a word is looked at once for all its occurrences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.integer]


def numbered(texts: Sequence[str], words: Callable[[str], Sequence[str]]) -> tuple[Integers, Integers]:
    """(the words of all texts end to end, equal ones as equal numbers; how many each text has).

    words: those in what stands between two spaces, over which no word may reach.
    """
    try:
        whole = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # half of a surrogate pair is no text, but one unknown sign
        whole = pa.array([text.encode(errors="replace").decode() for text in texts], pa.large_string())
    split = pc.utf8_split_whitespace(whole)
    chunks = split.flatten().dictionary_encode()
    found = [words(chunk) for chunk in chunks.dictionary.to_pylist()]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(found)))}
    known = np.fromiter(map(numbers.__getitem__, chain.from_iterable(found)), np.int64)
    sizes = np.array([len(each) for each in found], np.int64)
    which = chunks.indices.to_numpy()
    length = sizes[which]
    ends = np.concatenate([[0], np.cumsum(length)])
    # the k-th word of a chunk is k places after its first, here and in `known`
    places = np.arange(ends[-1]) + np.repeat((np.cumsum(sizes) - sizes)[which] - ends[:-1], length)
    return known[places], np.diff(ends[split.offsets.to_numpy()])
