"""What folders, files and hub ids are called in tables and in folders' names: the end of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable


def ends(
    places: Iterable[str], least: int = 1, most: int | None = None, same: Callable[[str], str] = str
) -> dict[str, str]:
    """The last parts of each place, as few as tell it from the others.

    Args:
        places: paths or hub ids, with / between parts.
        least: parts that are kept where there are as many.
        most: parts that are kept at most; None: the whole place, if need be.
        same: two ends are alike if this makes the same of both.

    Returns:
        place -> its end. Where two are alike, no more parts tell them apart.

    >>> ends(["runs/ga/78", "runs/npo/78", "runs/kl/52/"])
    {'runs/ga/78': 'ga/78', 'runs/npo/78': 'npo/78', 'runs/kl/52/': '52'}
    """
    parts = {place: re.split("/+", place.rstrip("/") or place)[-(most or 0) :] for place in places}
    found: dict[str, str] = {}
    longer, depth = [*parts], least
    while longer:
        found |= {place: "/".join(parts[place][-depth:]) for place in longer}
        often = Counter(map(same, found.values()))
        longer = [place for place in parts if often[same(found[place])] > 1 and len(parts[place]) > depth]
        depth += 1
    return found
