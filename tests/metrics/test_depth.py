"""The share of knowledge that layers lack: by hand, at its ends, and as a property."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_metrics.metrics.depth import erased_share


@pytest.mark.parametrize(
    ("unlearned", "retain_only", "share"),
    [
        ([0, 0, 0], [1, 2, 3], 0),  # intact
        ([1, 2, 3], [1, 2, 3], 1),  # as if never trained on it
        ([5, 5, 5], [1, 2, 3], 1),  # more than all is all
        ([-5, -5, -5], [1, 2, 3], 0),  # a layer that knows it better than the original does not count against others
        ([0.5, 0, 3], [1, 2, 3], (0.5 + 0 + 3) / 6),
        ([9, 1], [0.05, 2], 0.5),  # a layer that lacks 0.05 or less does not hold the knowledge
    ],
)
def test_by_hand(unlearned, retain_only, share):
    assert erased_share(unlearned, retain_only) == pytest.approx(share)


def test_no_layer_holds_it():
    assert math.isnan(erased_share([1, 1], [0.05, -1]))
    assert math.isnan(erased_share([], []))


def test_the_models_have_the_same_layers():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        erased_share([1], [1, 2])


drops = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=30)


@given(drops, st.floats(0, 5))
def test_it_is_a_share_and_grows_with_what_is_lacking(pairs, more):
    unlearned, retain_only = zip(*pairs, strict=True)
    share = erased_share(unlearned, retain_only)
    if max(retain_only) <= 0.05:
        assert math.isnan(share)
        return
    assert 0 <= share <= 1 + 1e-12
    assert erased_share([d + more for d in unlearned], retain_only) >= share - 1e-12
    reference = sum(w * min(max(d / w, 0), 1) for d, w in pairs if w > 0.05) / sum(w for w in retain_only if w > 0.05)
    assert share == pytest.approx(reference)
