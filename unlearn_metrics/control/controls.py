"""The controls: functions of (original, unlearned, strength) that give a checkpoint between the two, by name.

strength 0 is the original and 1 the unlearned model, bit for bit. What each can and can't restore, measured:
docs/control.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from unlearn_metrics.checkpoints.files import Checkpoint, check_finite, identify, open_checkpoint, read_config
from unlearn_metrics.checkpoints.pairs import align
from unlearn_metrics.checkpoints.tensors import LazyTensor, kth_largest
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.control.mixing import Blend, ControlFunction, blended, lerp, mix, rounding
from unlearn_metrics.errors import InputError, did_you_mean

MIXING = ("mix", "layers")  # controls whose tensors lie between those of the two checkpoints
LAYER = re.compile(r"(?:^|\.)(\d+)\.")
NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)


@dataclass(frozen=True)
class Method:
    """A control. fn: (original, unlearned, strength, and what `option` names) -> checkpoint.

    what: the parameters it gives, for the README of a written checkpoint; {alpha} is the strength.
    option: of Settings, passed to fn under its name; None: fn has no other argument. extrapolates: whether a
    strength above 1, past the unlearned model, means something.
    """

    fn: Callable[..., Checkpoint]
    help: str
    what: str
    option: str | None = None
    extrapolates: bool = False


def trim(original: Checkpoint, unlearned: Checkpoint, strength: float) -> Checkpoint:
    """Of each tensor's change, the share `strength` that is largest in magnitude; elsewhere the original's values.

    Changes as large as the smallest one kept are kept too, so that the share can be larger in a coarse dtype.
    Source: Yadav et al. 2023, "TIES-Merging" (arXiv 2306.01708), section 3.1, step 1 (trim), of a single task vector.
    """
    if strength in (0, 1):
        return unlearned if strength else original

    def of(name: str) -> Blend:
        o, u = original.tensors[name], unlearned.tensors[name]
        if not u.dtype.is_floating_point:
            return lambda o, u: u
        least = kth_largest(lambda: _magnitudes(o, u), math.ceil(strength * min(o.length, u.length) * u.width))
        return lambda o, u: torch.where(_magnitude(o, u) >= least, u, o.to(u.dtype))

    return blended(original, unlearned, of)


def _magnitude(o: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """|u - o| in float32, as the integers of its bits, which sort alike."""
    return (u.float() - o.float()).abs().view(torch.int32)


def _magnitudes(o: LazyTensor, u: LazyTensor) -> Iterator[torch.Tensor]:
    """Of the change, part by part, in the rows of both."""
    common = ((start, min(stop, o.length)) for start, stop in u.parts())
    return (_magnitude(o.rows(*rows), u.rows(*rows)) for rows in common if rows[0] < rows[1])


def layers(original: Checkpoint, unlearned: Checkpoint, strength: float, layers: str | None = None) -> Checkpoint:
    """The unlearned model's layers from the input up: `strength` is the share of them, and weights what is in no layer.

    The layer at the edge is mixed in proportion. With `layers`, the tensors chosen (see `chosen`) are mixed with weight
    strength, and everything else is the original's.
    """
    if strength == 0 or (strength == 1 and layers is None):
        return unlearned if strength else original
    names = unlearned.tensors
    if layers is not None:
        among = chosen(layers, names)
        weights = {name: strength if name in among else 0.0 for name in names}
    else:
        places = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
        depth = 1 + max(places.values(), default=0)
        weights = {name: min(1.0, max(0.0, strength * depth - places[name])) for name in places}
        weights |= {name: strength for name in names if name not in places}
    return blended(original, unlearned, lambda name: lambda o, u: lerp(o, u, weights[name]))


def chosen(pattern: str, names: Mapping[str, object]) -> set[str]:
    """The tensors that a pattern names: layers by their numbers from 0 ("0-3", "0,2,5-7"), else a regular expression.

    The expression may match anywhere in a name ("mlp", "self_attn.v_proj"). InputError if nothing is named, or a layer
    that is not there.
    """
    by_layer = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    if NUMBERS.fullmatch(pattern):
        ranges = [[int(end) for end in part.split("-")] for part in pattern.split(",")]
        last = max(by_layer.values(), default=-1)
        for ends in ranges:
            if ends[0] > ends[-1] or ends[-1] > last:
                raise InputError(f"--layers {pattern}: the model has layers 0 to {last}")
        return {name for name, layer in by_layer.items() if any(ends[0] <= layer <= ends[-1] for ends in ranges)}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--layers {pattern}: no regular expression ({error})") from None
    matching = {name for name in names if expression.search(name)}
    if not matching:
        raise InputError(f"--layers {pattern} matches no tensor; there are {', '.join(sorted(names)[:3])}, ...")
    return matching


def temperature(original: Checkpoint, unlearned: Checkpoint, strength: float) -> Checkpoint:
    """The unlearned model with its logits multiplied by strength: a temperature of 1 / strength.

    Changes probabilities, never which token is likeliest. Only strength 0 brings the original in: it is all there is.
    """
    if strength in (0, 1):
        return unlearned if strength else original
    config = read_config(unlearned)
    if any(part.get("final_logit_softcapping") for part in (config, config.get("text_config") or {})):
        raise InputError(f"{unlearned.name} caps its logits after its head: temperature is not for such models")
    return replace(unlearned, logit_scale=strength)


def select(
    original: Checkpoint, unlearned: Checkpoint, strength: float, trajectory: Mapping[float, Checkpoint]
) -> Checkpoint:
    """The latest checkpoint of a trajectory at `strength` or before; the original before the first.

    trajectory: share of its steps -> checkpoint; the unlearned one is the last, at 1. Early stopping, after the fact.
    """
    return trajectory.get(max((s for s in trajectory if s <= strength), default=0.0), original)


def steps(folder: Path) -> dict[int, Path]:
    """N -> folder/checkpoint-N, in order of N. InputError if there is none."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*") if _step(path)}
    if not found:
        raise InputError(f"--trajectory {folder} holds no checkpoint-1, checkpoint-2, ...")
    return dict(sorted(found.items()))


def _step(path: Path) -> bool:
    return re.fullmatch(r"checkpoint-0*[1-9]\d*", path.name, re.ASCII) is not None and path.is_dir()


def _open_trajectory(folder: Path, original: Checkpoint, unlearned: Checkpoint) -> dict[float, Checkpoint]:
    found = steps(folder)
    last = next((n for n, path in found.items() if path.resolve() == unlearned.folder.resolve()), None)
    if last is None:
        raise InputError(f"--unlearned {unlearned.name} is none of the checkpoints in --trajectory {folder}")
    opened = {}
    for n, path in found.items():
        if n < last:
            opened[n / last] = align(original, open_checkpoint(str(path), original))[1]
            check_finite(opened[n / last])
    return opened | {1.0: unlearned}


MIX = Method(
    mix,
    "every parameter mixed with the original's: original + alpha (unlearned - original)",
    "original + {alpha} * (unlearned - original), in float32 per tensor",
    extrapolates=True,
)
TRIM = Method(
    trim,
    "of each tensor's change, the share alpha that is largest in magnitude",
    "the unlearned model's where a tensor's change is among the {alpha} largest in magnitude, else the original's",
)
LAYERS = Method(
    layers,
    "the share alpha of the layers, from the input up; or, with --layers, only those mixed",
    "the unlearned model's in the first {alpha} of the layers, else the original's",
    "layers",
)
TEMPERATURE = Method(
    temperature,
    "the unlearned model at temperature 1/alpha: other probabilities, the same greedy text",
    "the unlearned model's, its head multiplied by {alpha} (temperature 1/alpha)",
)
SELECT = Method(
    select,
    "the latest checkpoint of a trajectory (--trajectory) that holds: early stopping after the fact",
    "those of the latest checkpoint of a trajectory, up to {alpha} of its steps",
    "trajectory",
)
# read off the likeliest tokens, which a temperature leaves as they are
GREEDY = ("extraction_strength", "extraction_strength_similar", "exact_memorization", "rouge")


@dataclass(frozen=True)
class Family:
    """The models that a control gives of a pair of checkpoints, by strength.

    strengths: the only ones that there are; None: all from 0 to 1. parameters: of the control, for the record.
    """

    method: str
    original: Checkpoint
    unlearned: Checkpoint
    fn: ControlFunction
    parameters: dict[str, str] = field(default_factory=dict)
    strengths: tuple[float, ...] | None = None

    @property
    def extrapolates(self) -> bool:
        return CONTROLS[self.method].extrapolates

    def at(self, strength: float) -> Checkpoint:
        return self.fn(self.original, self.unlearned, strength)

    def rounding(self, strength: float | None = None) -> str | None:
        """What is to be said of the mixes that it gives (mixing.rounding), or of the one of this strength."""
        if self.method not in MIXING or strength in (0, 1):
            return None
        names = self.unlearned.tensors
        only = self.parameters.get("layers")
        return rounding(self.original, self.unlearned, names if only is None else chosen(only, names))

    def given(self, strength: float) -> dict[str, str]:
        """The parameters, and of a trajectory which checkpoint it is."""
        if self.strengths is None:
            return self.parameters
        found = identify(self.at(strength))
        return self.parameters | {"checkpoint": found.path, "weights_sha256": str(found.weights_sha256)}


def family(
    method: str,
    original: Checkpoint,
    unlearned: Checkpoint,
    layers: str | None = None,
    trajectory: Path | None = None,
    metric: str | None = None,
) -> Family:
    """A control applied to a pair (pairs.align). metric: that it is to be calibrated on.

    InputError for an unknown control, options that it has not, and a metric that it can't restore.
    """
    if method not in CONTROLS:
        raise InputError(f"unknown control '{method}'; {did_you_mean(method, CONTROLS)}")
    control = CONTROLS[method]
    given = {"layers": layers, "trajectory": trajectory}
    for option, value in given.items():
        if value is not None and option != control.option:
            raise InputError(f"--{option} is not for control {method}")
    if method == "temperature" and metric in GREEDY:
        raise InputError(
            f"control temperature can't be calibrated on {metric}: no temperature changes which token is likeliest; "
            "pass --alpha, or choose another --control"
        )
    if layers is not None:
        chosen(layers, unlearned.tensors)  # refused before any work
        return Family(method, original, unlearned, partial(control.fn, layers=layers), {"layers": layers})
    if control.option == "trajectory":
        if trajectory is None:
            raise InputError(f"control {method} needs --trajectory, a folder of checkpoint-1, checkpoint-2, ...")
        opened = _open_trajectory(trajectory, original, unlearned)
        names = {"trajectory": str(trajectory), "checkpoints": ",".join(c.folder.name for c in opened.values())}
        return Family(method, original, unlearned, partial(control.fn, trajectory=opened), names, tuple(opened))
    return Family(method, original, unlearned, control.fn)
