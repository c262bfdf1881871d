"""Tensors at rest: read by rows, from safetensors files, .bin files or memory, and written as they are read.

Files are read and written by plain reads and writes. Pages of a memory-mapped file count as resident memory, so that
going once through a mapped checkpoint uses as much of it as loading the checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from unlearn_metrics.errors import InputError, first_line

PART = 1 << 19  # elements that are read, mixed and written at once: smaller ones cost more calls, larger ones memory
WORKERS = 2  # threads, each of which reads, computes and writes a part of its own
PAGE = 4096
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is read when it is used. rows(start, stop) gives [stop - start, width] of it as [length, width].

    width is the last axis; of a vector or a scalar, 1.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], torch.Tensor]

    @property
    def width(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def length(self) -> int:
        return math.prod(self.shape) // max(1, self.width)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def parts(self, elements: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, stop) of rows, of about so many elements each (PART), that make up the tensor."""
        step = max(1, (elements or PART) // max(1, self.width))
        return ((start, min(start + step, self.length)) for start in range(0, self.length, step))

    def read(self) -> torch.Tensor:
        """The whole tensor."""
        out = torch.empty((self.length, self.width), dtype=self.dtype)
        for start, stop in self.parts():
            out[start:stop] = self.rows(start, stop)
        return out.view(self.shape)

    def equals(self, other: LazyTensor) -> bool:
        """Whether the two are the same, bit for bit."""
        same = (self.shape, self.dtype) == (other.shape, other.dtype)
        return self is other or (
            same and all(torch.equal(self.rows(*part), other.rows(*part)) for part in self.parts())
        )

    def cast(self, dtype: torch.dtype) -> LazyTensor:
        return LazyTensor(self.shape, dtype, lambda start, stop: self.rows(start, stop).to(dtype))


HALF = 16  # bits of an integer that are counted at a time


def kth_largest(parts: Callable[[], Iterable[torch.Tensor]], k: int) -> int:
    """The k-th largest (k >= 1) of non-negative int32 in tensors, exact; two passes over parts(), constant memory.

    The first counts the upper bits of all, the second the lower bits of those that lie where the k-th does.
    """
    high = 0
    for upper in (True, False):
        counts = torch.zeros(1 << HALF, dtype=torch.long)
        for part in parts():
            bits = part.flatten()
            keys = bits >> HALF if upper else bits[bits >> HALF == high] & ((1 << HALF) - 1)
            counts += torch.bincount(keys, minlength=len(counts)).cpu()
        at_least = counts.flip(0).cumsum(0)  # how many have one of the n largest keys
        place = int(torch.searchsorted(at_least, k))
        k -= int(at_least[place - 1]) if place else 0
        key = len(counts) - 1 - place
        if upper:
            high = key
    return high << HALF | key


def free_on_card(device: torch.device) -> int:
    """Bytes of a GPU that nobody has, or that torch has and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def from_memory(tensor: torch.Tensor) -> LazyTensor:
    shape = tuple(tensor.shape)
    flat = tensor.detach().reshape(-1, shape[-1] if len(shape) > 1 else 1)
    return LazyTensor(shape, tensor.dtype, lambda start, stop: flat[start:stop])


def _from_file(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    width = shape[-1] if len(shape) > 1 else 1
    row = width * dtype.itemsize

    def rows(start: int, stop: int) -> torch.Tensor:
        raw = torch.empty((stop - start) * row, dtype=torch.uint8)
        _read_at(path, raw.numpy().data, offset + start * row)
        return raw.view(dtype).view(stop - start, width)

    return LazyTensor(shape, dtype, rows)


def _read_at(path: Path, data: memoryview, place: int) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(place)
        while data:
            if not (read := file.readinto(data)):
                raise InputError(f"{path} became shorter while it was read")
            data = data[read:]


def safetensors_file(path: Path) -> dict[str, LazyTensor]:
    """name -> tensor. InputError if it is no whole safetensors file, or holds a type that can't be mixed."""
    try:
        with safe_open(path, framework="pt"):  # checks the header against the file
            pass
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(start - 8))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole safetensors file: {first_line(error)}") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path}: tensor {name} is stored as {entry['dtype']}; quantized weights cannot be mixed")
    return {
        name: _from_file(path, start + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
        for name, entry in header.items()
    }


def bin_file(path: Path) -> dict[str, LazyTensor]:
    """name -> tensor of a torch.save file, unpickled by torch's restricted unpickler (weights_only).

    The zip format of torch >= 1.6 is read from disk, tensor by tensor; a file in the format before it, or with tensors
    that are no plain run of bytes, is loaded whole.
    """
    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
        plain = _state_dict(path, loaded)
        places: dict[str, Any] = {n: getattr(t.untyped_storage(), "_checkpoint_offset", None) for n, t in plain.items()}
        if any(places[name] is None or not tensor.is_contiguous() for name, tensor in plain.items()):
            whole = _state_dict(path, torch.load(path, map_location="cpu", weights_only=True))
            return {name: from_memory(tensor) for name, tensor in whole.items()}
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no whole file of weights that can be read safely: {first_line(error)}") from None
    return {
        name: _from_file(path, places[name] + int(t.storage_offset()) * t.dtype.itemsize, tuple(t.shape), t.dtype)
        for name, t in plain.items()
    }


def _state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} is no state dict (a dictionary of tensors)")
    for name, tensor in loaded.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise InputError(f"{path}: tensor {name} is stored as {tensor.dtype}; quantized weights cannot be mixed")
    return {str(name): tensor for name, tensor in loaded.items()}


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a safetensors file part by part: no more than WORKERS parts are in memory.

    Format: length of the header (8 bytes, little-endian), header (JSON, padded to a page: whole pages are written
    faster), tensors one after another, widest types first so that each is aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        entry = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name] = entry
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % PAGE)
    raw = len(raw).to_bytes(8, "little") + raw
    places = {name: len(raw) + header[name]["data_offsets"][0] for name in tensors}
    todo = [(tensor, places[name], *part) for name, tensor in ordered for part in tensor.parts()]
    parts = iter(todo)
    with path.open("wb", buffering=0) as file:
        _reserve(file.fileno(), len(raw) + end)
        _write_at(file, memoryview(raw), 0)

    def work() -> None:
        try:
            with path.open("r+b", buffering=0) as file:
                for tensor, place, start, stop in parts:  # shared: each part goes to whoever asks first
                    data = tensor.rows(start, stop).contiguous().view(torch.uint8).numpy().data.cast("B")
                    _write_at(file, data, place + start * tensor.width * tensor.dtype.itemsize)
        finally:
            todo.clear()  # after an error, or Ctrl-C, nobody finds another part

    with one_thread(), ThreadPoolExecutor(WORKERS) as pool:  # closed in the opposite order
        helpers = [pool.submit(work) for _ in range(WORKERS - 1)]
        work()
        for helper in helpers:
            helper.result()


@contextmanager
def one_thread() -> Iterator[None]:
    """torch by one thread: parts are small, and threads that share one wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reserve(file: int, size: int) -> None:
    """Make the file this long before it is written, which is faster; where that is not supported, do nothing.

    Not os.posix_fallocate, which then writes to every block by itself. OSError if the disk has not that much.
    """
    if sys.platform != "linux":
        return
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    failed = fallocate and fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    if failed and (error := ctypes.get_errno()) in (ENOSPC, EDQUOT):
        raise OSError(error, os.strerror(error))


def _write_at(file: FileIO, data: memoryview, place: int) -> None:
    file.seek(place)
    while data:  # a disk that runs full accepts a part of it before it refuses
        data = data[file.write(data) :]
