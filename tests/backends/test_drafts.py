"""Drafts by looking up what followed before, their length, and the cache that drops what was rejected."""

import math
import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from unlearn_metrics.backends import caches, drafts
from unlearn_metrics.backends.drafts import Drafts, length

tokens = st.lists(st.integers(0, 3), max_size=30)


def grown(prompt: list[int], text: list[int], reference: list[int]) -> Drafts:
    found = Drafts(prompt, reference)
    for token in text:
        found.append(token)
    return found


@pytest.mark.parametrize(
    ("prompt", "text", "reference", "proposed"),
    [
        ([1, 2, 3, 9, 1, 2], [], [], [3, 9, 1, 2]),  # the text went on so after 1 2
        ([1, 2, 3, 1, 2, 4, 1, 2], [], [], [4, 1, 2, 4]),  # and the last time so
        ([5], [7, 7], [], []),  # 7 7 came for the first time: what follows is not known
        ([5], [7, 7, 7], [], [7, 7, 7, 7]),  # a loop of one
        ([5], [7, 8, 7, 8], [], [7, 8, 7, 8]),  # of two
        ([], [1, 2], [], []),
        ([5], [1, 2], [1, 2, 3, 4], [3, 4]),  # from the reference, up to its end
        ([5], [9, 2], [1, 2, 3, 4], [3, 4]),  # where one token alone is all that agrees
        ([5], [9, 4], [1, 2, 3, 4], []),
        ([1, 2, 8, 5], [1, 2], [0, 5, 1, 2, 3], [3]),  # 5 1 2 agrees in three tokens, the prompt in two
        ([5, 1, 2, 8, 6, 5], [1, 2], [0, 5, 1, 2, 3], [8, 6, 5, 1]),  # both in three: the prompt
    ],
)
def test_drafts_by_hand(prompt, text, reference, proposed):
    assert grown(prompt, text, reference).propose(4) == proposed
    assert grown(prompt, text, reference).propose(0) == []


@given(prompt=tokens, text=tokens, reference=tokens, most=st.integers(1, 9))
@example([0], [0, 0], [0, 0], 3)
def test_a_draft_is_what_followed_the_longest_match(prompt, text, reference, most):
    """Against a search of all places."""
    own = prompt + text
    places = []  # (tokens that agree, of the text itself, place, what follows)
    for source, follows, least in ((own, own, 2), (reference, reference, 1)):
        for at in range(1, len(source)):
            agree = next((i for i in range(min(at, len(own))) if source[at - 1 - i] != own[-1 - i]), min(at, len(own)))
            if agree >= least:
                places.append((min(agree, 2), source is own, at, min(agree, drafts.COMPARED), follows[at:]))
    latest = []
    for mine in (True, False):  # of the text itself and of the reference: the last place where two agree, else one
        if of := [place for place in places if place[1] is mine]:
            latest.append(max(of, key=lambda place: (place[0], place[2])))
    got = grown(prompt, text, reference).propose(most)
    if not latest:
        assert got == []
        return
    _, mine, _, _, follows = max(latest, key=lambda place: (place[3], place[1]))
    assert got == ((follows * most)[:most] if mine else follows[:most])


@given(start=tokens, loop=st.lists(st.integers(4, 7), min_size=1, max_size=6, unique=True), most=st.integers(1, 40))
def test_a_loop_is_drafted_for_as_long_as_wanted(start, loop, most):
    turns = loop * 60
    assert grown(start, turns[: len(loop) + 2], []).propose(most) == turns[len(loop) + 2 :][:most]


def test_trust_follows_what_came_true():
    found = Drafts([1], [])
    assert found.learn([1, 2, 3], [1, 2, 9]) == 2
    assert found.trust == pytest.approx((1 - 0.5 * 0.75**2) * 0.75)
    before = found.trust
    assert found.learn([], [4]) == 0
    assert found.learn([1], []) == 0
    assert found.trust == before  # nothing was drafted, or nothing said
    for _ in range(100):
        found.learn([1] * 8, [1] * 8)
    assert found.trust == drafts.MOST_TRUST
    for _ in range(20):
        found.learn([1], [2])
    assert found.trust < 0.01


@given(
    texts=st.lists(st.tuples(st.floats(0, drafts.MOST_TRUST), st.integers(0, 40)), min_size=1, max_size=20),
    more=st.integers(0, 5),
    free=st.sampled_from([0.0, 1.0, 16.0, 256.0]),
    most=st.integers(1, 2000),
)
def test_the_length_pays_best(texts, more, free, most):
    """Against the expected tokens of every length, summed one by one."""
    rows = len(texts) + more

    def rate(n: int) -> float:
        expected = sum(1 + sum(trust**i for i in range(1, min(n, known) + 1)) for trust, known in texts)
        return expected / (free + rows * (1 + n))

    allowed = [n for n in (0, *drafts.LENGTHS) if n == 0 or rows * (1 + n) <= most]
    chosen = length(texts, rows, free, most)
    assert chosen in allowed
    assert math.isclose(rate(chosen), max(map(rate, allowed)), rel_tol=1e-9)
    if free == 0:
        assert chosen == 0


def test_packing_keeps_every_row_s_positions_in_order():
    random.seed(0)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0]])
    cache = DynamicCache()
    cache.layers = [caches.RoomyLayer(), caches.RoomyLayer()]
    states = torch.arange(3 * 2 * 6 * 4).reshape(3, 2, 6, 4).float()
    for i in range(2):
        cache.update(states + i, -states - i, i)
    packed = caches.pack(cache, mask)
    assert packed.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    for i, layer in enumerate(cache.layers):
        for r in range(3):
            kept = states[r][:, mask[r].bool()] + i
            assert torch.equal(layer.keys[r][:, packed[r].bool()], kept)
            assert torch.equal(layer.values[r][:, packed[r].bool()], -kept)
    caches.crop(cache, 3)
    cache.update(states[:, :, :1], states[:, :, :1], 0)
    assert torch.equal(cache.layers[0].keys[:, :, 3:], states[:, :, :1])
    assert cache.layers[0].keys.shape[2] == 4
