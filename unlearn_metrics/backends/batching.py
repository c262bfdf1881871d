"""How much of a model's input fits into one forward pass, and which rows go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil
import torch
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.checkpoints.tensors import free_on_card

T = TypeVar("T")

CPU_POSITIONS = 2048  # positions in one forward pass on a CPU, where more gains nothing (measured: 1024 to 8192)
CPU_MEMORY = 1 << 28  # bytes of keys and values of prompts to hold on a CPU


def out_of_memory(error: RuntimeError) -> bool:
    """torch.OutOfMemoryError on a GPU; the CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory(lm: HFLM) -> int:
    """Bytes."""
    if lm.device.type == "cuda":
        cards = {p.device for p in lm.model.parameters() if p.device.type == "cuda"}
        return min(map(free_on_card, cards or {lm.device}))
    return int(psutil.virtual_memory().available)


def cache_bytes(lm: HFLM) -> int:
    """Keys and values of one position, in bytes; 0 for a model without attention."""
    c = lm.model.config.get_text_config()
    all_heads = getattr(c, "num_attention_heads", 0)
    heads = getattr(c, "num_key_value_heads", None) or all_heads
    size = getattr(c, "head_dim", None) or c.hidden_size // max(1, all_heads)
    return int(2 * c.num_hidden_layers * heads * size * lm.model.dtype.itemsize)


def budget(lm: HFLM) -> int:
    """Positions in one forward pass: a constant on a CPU, from free memory on a GPU."""
    if lm.device.type == "cpu":
        return CPU_POSITIONS
    c = lm.model.config.get_text_config()
    wide = 4 * getattr(c, "intermediate_size", 4 * c.hidden_size) + 12 * c.hidden_size
    per_position = lm.model.dtype.itemsize * wide + 4 * cache_bytes(lm)
    return int(min(max(0.3 * free_memory(lm) / per_position, 1024), 1 << 17))


def prompt_budget(lm: HFLM) -> int:
    """Positions of prompts whose keys and values are held at once; merging them holds them twice."""
    memory = min(CPU_MEMORY, 0.1 * free_memory(lm)) if lm.device.type == "cpu" else 0.15 * free_memory(lm)
    return max(CPU_POSITIONS, int(memory / max(1, cache_bytes(lm))))


def max_rows(lm: HFLM) -> int | None:
    """An lm-eval batch_size above 1 (its default) bounds the rows of a batch."""
    return lm.batch_size if isinstance(lm.batch_size, int) and lm.batch_size > 1 else None


def batches(
    items: Sequence[T], length: Callable[[T], int], positions: int, rows: int | None = None
) -> Iterator[list[T]]:
    """Sorted by length, longest first (memory runs out at once or never), cut at rows x longest <= positions.

    From a quarter of that on, cut also where a fifth of the next row would be padding (few items, of many lengths).
    """
    batch: list[T] = []
    for item in sorted(items, key=length, reverse=True):
        if batch:
            longest = length(batch[0])
            full = (len(batch) + 1) * longest > positions or len(batch) == rows
            if full or (4 * len(batch) * longest >= positions and 5 * length(item) < 4 * longest):
                yield batch
                batch = []
        batch.append(item)
    if batch:
        yield batch
