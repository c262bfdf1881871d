"""Splits of a benchmark and their halves."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn_metrics.documents import Document


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """(calibrating, held-out): every other document, so that both halves hold every author alike."""
    return list(documents[0::2]), list(documents[1::2])
