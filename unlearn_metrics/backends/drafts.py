"""Drafts of greedy text, by looking up what followed the same words before: prompt-lookup decoding.

The model verifies a draft in one step, so the text is the one that it gives token by token. A model that has collapsed
into a loop repeats itself, and one that remembers repeats the reference; neither can be known beforehand.

Source: Saxena 2023, "Prompt Lookup Decoding"; Leviathan et al. 2023, arXiv:2211.17192, for how much of a draft is
accepted (its equation 1) and what length pays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LENGTHS = (1, 2, 4, 8, 16, 32)  # of a draft, in tokens
COMPARED = 16  # tokens before a place, to choose between two
FORGOTTEN = 0.25  # of what drafts have come to so far, with each token
MOST_TRUST = 0.999


class Drafts:
    """Drafts of one text, which grows token by token.

    trust: about how many of the tokens that it would draft come true, of late; known whether or not they were drafted.
    """

    def __init__(self, prompt: Sequence[int], reference: Sequence[int] = ()) -> None:
        self.trust = 0.5
        self._seen = list(reference)  # the reference, the prompt and the text
        self._own = len(reference)
        self._after: dict[tuple[int, ...], int] = {}  # the last two tokens -> where the text went on the last time
        self._in_reference: dict[tuple[int, ...], int] = {}  # the last two, or one -> the same in the reference
        for i in range(1, len(reference)):
            for tokens in (reference[i - 1 : i], reference[max(0, i - 2) : i]):
                self._in_reference[tuple(tokens)] = i
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self._seen) >= self._own + 2:
            self._after[tuple(self._seen[-2:])] = len(self._seen)
        self._seen.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next: what followed the longest match, in turns if it reaches the end."""
        last = tuple(self._seen[max(self._own, len(self._seen) - 2) :])
        own, other = self._after.get(last), self._in_reference.get(last, self._in_reference.get(last[1:]))
        start = max((at for at in (own, other) if at is not None), key=self._agreement, default=None)
        if start is None or most <= 0:
            return []
        if start < self._own:
            return self._seen[start : min(start + most, self._own)]
        turn = self._seen[start:]
        return (turn * (most // len(turn) + 1))[:most]

    def _agreement(self, place: int) -> int:
        """How many tokens before a place are those before the end of the text."""
        first = self._own if place >= self._own else 0
        longest = min(COMPARED, place - first, len(self._seen) - self._own)
        return next((i for i in range(longest) if self._seen[place - 1 - i] != self._seen[-1 - i]), longest)

    def learn(self, draft: Sequence[int], said: Sequence[int]) -> int:
        """Take note of what came where a draft would have been, and count the tokens that came true."""
        pairs = list(zip(draft, said, strict=False))
        right = next((i for i, (drafted, token) in enumerate(pairs) if drafted != token), len(pairs))
        self.trust = min(MOST_TRUST, 1 - (1 - self.trust) * (1 - FORGOTTEN) ** right)
        if right < len(pairs):
            self.trust *= 1 - FORGOTTEN
        return right


def length(texts: Sequence[tuple[float, int]], rows: int, free: float, most: float) -> int:
    """How many tokens to draft for each text of a batch: so many that a step gives most tokens for what it costs.

    Args:
        texts: those that go on: (trust, how many tokens could be drafted).
        rows: of the batch, which all take part in a step.
        free: what a step costs beside its positions, in positions. 0: drafts never pay.
        most: positions that a step may have.
    """
    p, n = np.array(texts).T
    best, chosen = len(p) / (free + rows), 0
    for tokens in LENGTHS:
        if rows * (1 + tokens) > most:
            break
        accepted = float((p * (1 - p ** np.minimum(n, tokens)) / (1 - p)).sum())
        if (rate := (len(p) + accepted) / (free + rows * (1 + tokens))) > best:
            best, chosen = rate, tokens
    return chosen
