"""Ends of paths tell them apart, with as few parts as do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unlearn_metrics.places import ends


def test_ends_by_hand():
    assert ends(["/a/b/ga", "npo/", "org/model"]) == {"/a/b/ga": "ga", "npo/": "npo", "org/model": "model"}
    assert ends(["/a/x/1", "/b/x/1", "c/1"]) == {"/a/x/1": "a/x/1", "/b/x/1": "b/x/1", "c/1": "c/1"}
    assert ends(["a/x", "/a/x"]) == {"a/x": "a/x", "/a/x": "/a/x"}
    assert ends(["a/b/c/d"], least=2) == {"a/b/c/d": "c/d"}
    assert ends(["a/x/y", "b/x/y"], most=2) == {"a/x/y": "x/y", "b/x/y": "x/y"}
    assert ends(["a b/x", "a-b/x"], same=lambda end: end.replace(" ", "-")) == {"a b/x": "a b/x", "a-b/x": "a-b/x"}
    assert ends([]) == {}
    assert ends(["/", ""]) == {"/": "/", "": ""}


@given(st.sets(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), max_size=6))
def test_ends_are_the_shortest_that_differ(places):
    found = ends(places)
    assert len(set(found.values())) == len(places)
    for place, end in found.items():
        assert place == end or place.endswith("/" + end)
        if "/" in end:  # one part fewer is the end of another, too
            shorter = end.split("/", 1)[1]
            assert any((other + "/").endswith(f"/{shorter}/") or other == shorter for other in places - {place})
