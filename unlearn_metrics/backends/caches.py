"""Caches of keys and values for decoding a batch: room to grow, rows that leave, rejected drafts that are dropped."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


def new(lm: HFLM) -> DynamicCache:
    return DynamicCache(config=lm.model.config)


def roomy(cache: DynamicCache) -> DynamicCache:
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def crop(cache: DynamicCache, length: int) -> None:
    """Drop the last positions of all rows."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def pack(cache: DynamicCache, mask: Tensor) -> Tensor:
    """Drop the positions that the mask [rows, positions] hides, but for padding on the left; the mask of what is left.

    A key must know its place in the text by itself, as rotary ones do.
    """
    longest = int(mask.sum(1).max())
    order = mask.argsort(dim=1, stable=True)[:, -longest:]
    for layer in cache.layers:
        index = order[:, None, :, None].to(layer.keys.device)
        layer.room = [
            states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
            for states in (layer.keys, layer.values)
        ]
        layer.keys, layer.values = layer.room
    return mask.gather(1, order)


class RoomyLayer(DynamicLayer):
    """transformers' DynamicLayer copies the whole cache at every token; this one keeps room to grow."""

    ROOM = 64
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room: list[Tensor] = []
        old, new = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        states = (key_states, value_states)
        if not self.room or self.room[0].shape[-2] < new:
            grown = [s.new_empty(*s.shape[:2], new + self.ROOM, s.shape[-1]) for s in states]
            if old:
                grown[0][:, :, :old], grown[1][:, :, :old] = self.keys, self.values
            self.room = grown
        for buffer, state in zip(self.room, states, strict=True):
            buffer[:, :, old:new] = state
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        old = self.get_seq_length()
        self.room = [buffer[indices] for buffer in self.room]
        self.keys, self.values = (buffer[:, :, :old] for buffer in self.room)
