"""How often the intervals of the meta-evaluation hold the truth: `python -m tools.meta_coverage` (docs/meta.md).

Faithfulness: pools of n and n models, values normal in both or skewed in one. Correlations: pairs of normal values.
Test: two metrics that are equally faithful; how often DeLong's p is at most 0.05. A cell is 2,000 data sets: a right
one lies within 1.0 points of 95 %, or of 5 %; of correlations 600 (1.8 points), of robustness and overall 150 (3.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from unlearn_metrics.documents import Floats
from unlearn_metrics.scores.agreement import MEASURES, agreement
from unlearn_metrics.scores.faithfulness import delong, delong_interval, difference, score_interval
from unlearn_metrics.scores.judging import Readings, judge

DATASETS, OF_ORDER, FEW = 2_000, 600, 150  # data sets; of correlations; of whole judgements
SIZES = (10, 20, 30)
Draw = Callable[[np.random.Generator, int, float], Floats]
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n, shift: rng.normal(shift, 1, n),
    "skewed": lambda rng, n, shift: np.exp(rng.normal(shift, 1, n)) if shift else rng.exponential(1, n),
}


def held(low: float, truth: float, high: float) -> bool:
    return low <= truth <= high


def shift_for(draw: Draw, area: float, rng: np.random.Generator) -> float:
    """The shift of the knowing models that gives this AUC, and is found by bisection."""
    low, high = 0.0, 8.0
    others = draw(rng, 200_000, 0.0)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if (draw(rng, 200_000, middle) > others).mean() < area else (low, middle)
    return middle


def faithfulness(draw: Draw, area: float, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """(DeLong's interval, the score interval): shares that hold the truth."""
    shift = shift_for(draw, area, rng)
    ours = plain = 0
    for _ in range(DATASETS):
        aucs, spread = delong(draw(rng, n, shift)[None], draw(rng, n, 0.0)[None])
        plain += held(*_with(delong_interval(float(aucs[0]), float(spread[0, 0])), area))
        ours += held(*_with(score_interval(float(aucs[0]), n, n), area))
    return plain / DATASETS, ours / DATASETS


def _with(ends: tuple[float, float], truth: float) -> tuple[float, float, float]:
    return ends[0], truth, ends[1]


def test(area: float, n: int, rng: np.random.Generator) -> float:
    """How often two equally faithful metrics, correlated by one half, are told apart at 5 %."""
    shift = math.sqrt(2) * float(ndtri(area))
    mix = np.linalg.cholesky(np.array([[1, 0.5], [0.5, 1]]))
    wrong = 0
    for _ in range(DATASETS):
        aucs, spread = delong(mix @ rng.normal(0, 1, (2, n)) + shift, mix @ rng.normal(0, 1, (2, n)))
        wrong += difference(aucs, spread, 0, 1)[3] <= 0.05
    return wrong / DATASETS


def correlation(measure: str, rho: float, n: int, rng: np.random.Generator) -> float:
    truth = rho if measure == "pearson" else 2 / math.pi * math.asin(rho)
    count = 0
    for seed in range(OF_ORDER):
        x, noise = rng.normal(0, 1, (2, n))
        found = agreement(x, rho * x + math.sqrt(1 - rho**2) * noise, measure, seed % 7)
        count += found.low is not None and found.high is not None and held(found.low, truth, found.high)
    return count / OF_ORDER


def whole(n: int, rng: np.random.Generator) -> tuple[float, float]:
    """(robustness, overall): shares of intervals that hold the truth. r is beta (2, 2), q beta (9, 1), the AUC 0.9."""
    robust = 2 / (1 / 0.5 + 1 / 0.9)
    truths = (robust, 2 / (1 / robust + 1 / 0.9))
    shift = math.sqrt(2) * float(ndtri(0.9))
    counts = [0, 0]
    for seed in range(FEW):
        before = rng.uniform(0.01, 0.02, n)
        attacked = {"relearn": before + 0.1 / rng.beta(2, 2, n), "nf4": before / rng.beta(9, 1, n)}
        pools = np.exp(rng.normal(shift, 1, n)), np.exp(rng.normal(0, 1, n))
        found = judge(Readings(1, *pools, before, np.ones(n, bool), attacked, {"before": 0.0, "relearn": 0.1}), seed)
        for place, (it, truth) in enumerate(zip((found.robustness, found.overall), truths, strict=True)):
            counts[place] += it.low is not None and it.high is not None and it.low <= truth <= it.high
    return counts[0] / FEW, counts[1] / FEW


def main() -> None:
    rng = np.random.default_rng(0)
    print("| what | " + " | ".join(f"n = {n}" for n in SIZES) + " |\n|---|" + "---:|" * len(SIZES))
    for name, draw in SHAPES.items():
        for area in (0.7, 0.9, 0.97):
            cells = [faithfulness(draw, area, n, rng) for n in SIZES]
            print(f"| AUC {area}, {name} | " + " | ".join(f"{a:.1%}, {b:.1%}" for a, b in cells) + " |", flush=True)
    for area in (0.7, 0.9, 0.97):
        print(f"| test, AUC {area} | " + " | ".join(f"{test(area, n, rng):.1%}" for n in SIZES) + " |", flush=True)
    rng = np.random.default_rng(1)
    cells = [whole(n, rng) for n in SIZES]
    print("| robustness, overall | " + " | ".join(f"{a:.1%}, {b:.1%}" for a, b in cells) + " |", flush=True)
    for measure in MEASURES:
        rng = np.random.default_rng(1)
        for rho in (0.0, 0.5, 0.9):
            shares = [correlation(measure, rho, n, rng) for n in SIZES]
            print(f"| {measure}, {rho} | " + " | ".join(f"{c:.1%}" for c in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
