"""Attacks: what somebody does to an unlearned model, or to its prompts, to get at what it should have forgotten.

`ATTACKS` is the one list of their names; what goes by a name is loaded when it is asked for, and torch with it. Numbers
in a name are the attack's parameter: percent, or how many.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.registry import Registry

if TYPE_CHECKING:
    from unlearn_metrics.attacks.attack import Attack

ON_WEIGHTS = ("int8", "int4", "nf4", "fp4", "prune_10", "prune_30", "prune_50", "noise_1", "noise_5")
ON_PROMPTS = (
    *("prefix", "fewshot_1", "fewshot_3", "fewshot_5"),
    *("character_noise", "token_noise", "paired", "paraphrase"),
)
ATTACKS: Registry[Attack] = Registry(
    "attack",
    "unlearn_metrics.attacks",
    {name: f"{__name__}.weights:{name.upper()}" for name in ON_WEIGHTS}
    | {name: f"{__name__}.prompts:{name.upper()}" for name in ON_PROMPTS},
)


def known(name: str, on: Collection[str] = ("weights", "prompts")) -> Attack:
    """The attack of a name. InputError, with near names, for one that there is not, or that is on something else."""
    if name not in ATTACKS:
        raise InputError(f"unknown attack '{name}'; {did_you_mean(name, ATTACKS)}")
    attack = ATTACKS[name]
    if attack.on not in on:
        there = ", ".join(n for n in ATTACKS if ATTACKS[n].on in on)
        raise InputError(f"the attack {name} is on {attack.on}; on {' or '.join(on)} there are {there}")
    return attack
