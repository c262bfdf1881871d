"""Attacks on weights: functions from a checkpoint to a checkpoint, whose tensors are computed when they are read.

They change the matrices of linear layers, and leave embeddings, the head, norms and biases as they are. All are
deterministic, and the same for any parts in which a tensor is read. Arithmetic is in float32; the result has the stored
dtype. What each brings back, measured: docs/attacks.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from unlearn_metrics.attacks.attack import Attack
from unlearn_metrics.checkpoints.files import Checkpoint, skeleton
from unlearn_metrics.checkpoints.tensors import WORKERS, LazyTensor, from_memory, kth_largest

GROUP = 64  # weights that share a scale
NOISE_ROWS = 256  # of a matrix, whose noise is drawn at once
SEED = 0
# the 16 levels of either type, ascending: quantiles of a normal distribution, and a 4-bit float (sign, 2, 1)
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
FP4_LEVELS = tuple(sign * level / 12 for sign, half in ((-1, _FP4[:0:-1]), (1, _FP4)) for level in half)


def attacked(checkpoint: Checkpoint, change: Callable[[str, LazyTensor], LazyTensor]) -> Checkpoint:
    """The checkpoint with every matrix of a linear layer replaced by change(name, matrix). Nothing is read yet.

    Args:
        checkpoint: any that can be opened, mixed or attacked.
        change: gives the new matrix; rows are outputs, columns inputs, also where they are stored the other way round.

    Returns:
        The checkpoint; embeddings, head, norms and biases are the same tensors.
    """
    model = skeleton(checkpoint)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    kept = {name for name, module in modules.items() if module is head or isinstance(module, torch.nn.Embedding)}
    turned = {name for name, module in modules.items() if isinstance(module, Conv1D)}
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        module, found, kind = name.rpartition(".")
        near = {module, f"{model.base_model_prefix}.{module}"}  # names on disk may lack the base model's prefix
        if found and kind == "weight" and len(tensor.shape) == 2 and tensor.dtype.is_floating_point and not near & kept:
            tensors[name] = _turned(change, name, tensor) if near & turned else change(name, tensor)
    return replace(checkpoint, tensors=tensors)


def _turned(change: Callable[[str, LazyTensor], LazyTensor], name: str, tensor: LazyTensor) -> LazyTensor:
    """The change of a matrix that is stored with inputs in its rows."""
    return LazyTensor(tensor.shape, tensor.dtype, lambda a, b: _whole_turned(change, name, tensor)[a:b])


@lru_cache(maxsize=WORKERS)  # it is read in parts, each of which takes all of it
def _whole_turned(change: Callable[[str, LazyTensor], LazyTensor], name: str, tensor: LazyTensor) -> torch.Tensor:
    return change(name, from_memory(tensor.read().T.contiguous())).read().T.contiguous()


def _by_rows(tensor: LazyTensor, fn: Callable[[torch.Tensor, int], torch.Tensor], step: int = 1) -> LazyTensor:
    """A tensor made by fn(rows in float32, index of the first), always of whole steps of rows."""

    def rows(start: int, stop: int) -> torch.Tensor:
        first, last = start // step * step, min(-(-stop // step) * step, tensor.length)
        return fn(tensor.rows(first, last).float(), first)[start - first : stop - first].to(tensor.dtype)

    return LazyTensor(tensor.shape, tensor.dtype, rows)


# --- rounding


def integers(checkpoint: Checkpoint, bits: int, group: int | None = None) -> Checkpoint:
    """Weights rounded to the nearest of 2^bits - 1 equal steps between -absmax and absmax.

    Args:
        checkpoint: to round.
        bits: of an integer.
        group: so many weights along the input share an absmax; None: all of an output.

    Returns:
        The checkpoint, rounded and stored in its own dtype again.
    """
    top = 2 ** (bits - 1) - 1

    def rounded(values: torch.Tensor, first: int) -> torch.Tensor:
        parts = torch.split(values, group or values.shape[1], 1)
        scales = [part.abs().amax(1, keepdim=True) / top for part in parts]
        return torch.cat([_rounded(part, scale) for part, scale in zip(parts, scales, strict=True)], 1)

    return attacked(checkpoint, lambda name, tensor: _by_rows(tensor, rounded))


def _rounded(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, (values / scale).round() * scale, 0.0)


def levels(checkpoint: Checkpoint, levels: tuple[float, ...]) -> Checkpoint:
    """Weights rounded to the nearest of 16 levels times the absmax of 64 weights, in row-major order.

    As bitsandbytes rounds without double quantisation, bit for bit: of two equally near levels the lower one.

    Args:
        checkpoint: to round.
        levels: from -1 to 1, ascending.

    Returns:
        The checkpoint, rounded and stored in its own dtype again.
    """
    of = torch.tensor(levels)
    bounds = (of[:-1] + of[1:]) / 2

    def rounded(values: torch.Tensor, first: int) -> torch.Tensor:
        flat = values.flatten()
        full = len(flat) // GROUP * GROUP
        found = [_nearest(flat[:full].view(-1, GROUP), of, bounds)]
        if full < len(flat):  # what is left at the end of a tensor is a block of its own
            found.append(_nearest(flat[full:].view(1, -1), of, bounds, by_division=True))
        return torch.cat([part.flatten() for part in found]).view_as(values)

    def change(name: str, tensor: LazyTensor) -> LazyTensor:
        return _by_rows(tensor, rounded, GROUP // math.gcd(GROUP, tensor.width))

    return attacked(checkpoint, change)


def _nearest(
    values: torch.Tensor, levels: torch.Tensor, bounds: torch.Tensor, by_division: bool = False
) -> torch.Tensor:
    """Each row rounded. bitsandbytes multiplies by the reciprocal, and divides in the last block, if it is not full."""
    absmax = values.abs().amax(1, keepdim=True)
    least = absmax.clamp(min=1e-38)
    scaled = (values / least if by_division else values * (1 / least)).clamp(-1, 1)
    return levels.to(values.device)[torch.bucketize(scaled, bounds.to(values.device))] * absmax


# --- pruning and noise


def prune(checkpoint: Checkpoint, share: float) -> Checkpoint:
    """Of each matrix, the share with the smallest magnitudes set to 0.

    Weights as large as the smallest one kept are kept too, so that the share can be smaller in a coarse dtype.

    Args:
        checkpoint: to prune.
        share: in [0, 1).

    Returns:
        The pruned checkpoint.
    """

    def change(name: str, tensor: LazyTensor) -> LazyTensor:
        def bits() -> Iterator[torch.Tensor]:
            return (_bits(tensor.rows(*part)) for part in tensor.parts())

        @cache
        def least() -> int:
            count = math.prod(tensor.shape)
            return kth_largest(bits, count - int(share * count))

        return _by_rows(tensor, lambda values, first: torch.where(_bits(values) >= least(), values, 0.0))

    return attacked(checkpoint, change)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """|values| in float32, as the integers of its bits, which sort alike."""
    return values.float().abs().view(torch.int32)


def noise(checkpoint: Checkpoint, sigma: float) -> Checkpoint:
    """Gaussian noise added to each matrix, with a fixed seed.

    Args:
        checkpoint: to disturb.
        sigma: standard deviation of the noise, as a share of that of the matrix.

    Returns:
        The disturbed checkpoint.
    """

    def change(name: str, tensor: LazyTensor) -> LazyTensor:
        @cache
        def deviation() -> float:
            count = math.prod(tensor.shape)
            mean = sum(float(tensor.rows(*part).double().sum()) for part in tensor.parts()) / count
            squares = sum(float((tensor.rows(*part).double() - mean).square().sum()) for part in tensor.parts())
            return math.sqrt(squares / count)

        def disturbed(values: torch.Tensor, first: int) -> torch.Tensor:
            blocks = range(first, first + len(values), NOISE_ROWS)
            drawn = np.concatenate([_normal(name, block, values.shape[1]) for block in blocks])[: len(values)]
            return values + torch.from_numpy(drawn).to(values.device) * (sigma * deviation())

        return _by_rows(tensor, disturbed, NOISE_ROWS)

    return attacked(checkpoint, change)


def _normal(name: str, first: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The noise of a block of rows, the same on every machine."""
    rng = np.random.default_rng((SEED, zlib.crc32(name.encode()), first))
    return rng.standard_normal((NOISE_ROWS, width), np.float32)


_ABSMAX = "to the nearest of {} steps between -absmax and absmax of {}"
_QLORA = "Dettmers et al. 2023, QLoRA (arXiv 2305.14314); bitsandbytes without double quantisation"
_ZHANG = "Zhang et al. 2024 (arXiv 2410.16454)"
_PAPER = "Wang et al. 2024 (arXiv 2406.09179)"
INT8 = Attack(partial(integers, bits=8), "weights", f"weights rounded {_ABSMAX.format(255, 'each output')}", _ZHANG)
INT4 = Attack(
    partial(integers, bits=4, group=GROUP),
    "weights",
    f"weights rounded {_ABSMAX.format(15, '64 weights along the input')}",
    _ZHANG,
)
NF4 = Attack(
    partial(levels, levels=NF4_LEVELS), "weights", "weights rounded to 4-bit NormalFloat, blocks of 64", _QLORA
)
FP4 = Attack(
    partial(levels, levels=FP4_LEVELS),
    "weights",
    "weights rounded to 4-bit floats, blocks of 64: the default of transformers' load_in_4bit",
    f"{_ZHANG}; bitsandbytes without double quantisation",
)
PRUNE_10, PRUNE_30, PRUNE_50 = (
    Attack(
        partial(prune, share=percent / 100),
        "weights",
        f"the {percent} % of each matrix with the smallest magnitudes set to 0",
        "Han et al. 2015 (arXiv 1506.02626)",
    )
    for percent in (10, 30, 50)
)
NOISE_1, NOISE_5 = (
    Attack(
        partial(noise, sigma=percent / 100),
        "weights",
        f"Gaussian noise of {percent} % of each matrix's standard deviation, seeded",
    )
    for percent in (1, 5)
)
