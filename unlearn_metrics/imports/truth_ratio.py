"""What a logged truth ratio is: the TOFU authors' R, or OpenUnlearning's since December 2025, which may be either."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unlearn_metrics.documents import Floats
from unlearn_metrics.imports.log import FACTS, Split

WRONG_BY_TRUE, SHARE_OF_TRUE = "wrong / true", "true / (true + wrong)"
EPSILON = 1e-10  # OpenUnlearning adds it to denominators


def settle(split: str, fields: Split, authors: bool) -> list[str]:
    """Turn a split's logged truth ratios into the form that is better when higher, as metrics.truth_ratio has it.

    Left out where the log does not tell which of the two they are. authors: TOFU's, who have R. Returns notes.
    """
    logged_mean = fields.pop("logged mean", None)
    found = {row: x for row, x in fields["logged"].get("truth_ratio", {}).items() if x is not None}
    if not found:
        return []
    variant = WRONG_BY_TRUE if authors else _variant(split, fields, np.array([*found.values()]), logged_mean)
    if variant is None:
        del fields["logged"]["truth_ratio"]
        return [
            f"truth_ratio ({split}): the log does not tell whether its values are {WRONG_BY_TRUE} or {SHARE_OF_TRUE}, "
            "and nothing else in it does: they are left out"
        ]
    fields["logged"]["truth_ratio"] = {row: _better_higher(split, variant, x) for row, x in found.items()}
    form = "min(R, 1/R)" if split == "forget" else "max(0, 1 - R)"
    return [f"truth_ratio ({split}): the log has {variant}; here {form} of R = {WRONG_BY_TRUE}"]


def _variant(split: str, fields: Split, found: Floats, logged_mean: Any) -> str | None:
    """Which of the two OpenUnlearning's are: by the losses; else by their size, and by their logged mean."""
    true, wrong = (fields.get(role) or {} for role in ("true_answer", "wrong_answers"))
    if split in FACTS and not true:
        true = fields.get("answer") or {}
    rows = [row for row in true if true[row] is not None and wrong.get(row) is not None]
    if len(rows) == len(found):
        c = np.exp([-true[row].loss for row in rows])
        w = np.exp([-np.mean([one.loss for one in wrong[row]]) for row in rows])
        # sorted: after a document without a result, OpenUnlearning logs all later ones a row too early
        made = {WRONG_BY_TRUE: w / (c + EPSILON), SHARE_OF_TRUE: c / (c + w + EPSILON)}
        off = {name: np.median(abs(np.sort(x) - np.sort(found)) / np.sort(x).clip(EPSILON)) for name, x in made.items()}
        nearest = min(off, key=lambda name: off[name])
        return nearest if off[nearest] < 1e-3 else None
    if (found > 1 + 1e-6).any():
        return WRONG_BY_TRUE
    means = {
        WRONG_BY_TRUE: np.mean([_better_higher(split, WRONG_BY_TRUE, x) for x in found.tolist()]),
        SHARE_OF_TRUE: found.mean(),
    }
    if not isinstance(logged_mean, float):
        return None
    fitting = [name for name, mean in means.items() if abs(mean - logged_mean) < 1e-6]
    return fitting[0] if len(fitting) == 1 else None


def _better_higher(split: str, variant: str, logged: float) -> float:
    """The form of a logged truth ratio that is better when higher, as metrics.truth_ratio gives it."""
    ratio = logged if variant == WRONG_BY_TRUE else (1 - logged) / logged if logged > 0 else math.inf
    return min(ratio, 1 / ratio if ratio > 1 else 1.0) if split == "forget" else max(0.0, 1 - ratio)
