"""Numbers of things, as people write them."""

from __future__ import annotations


def counted(n: int, one: str, many: str | None = None) -> str:
    """'1 cluster', '1,000 clusters'. many: where it is not one with an s."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
