"""How often a 95 % interval holds the truth, by simulation: `python -m tools.interval_coverage` (docs/compare.md).

Each cell: 16,000 data sets of clusters of 20 documents, half the standard deviation of a cluster within it. Plain
percentiles, then `stats.interval`; a right one lies within 0.4 points of 95 (two standard errors).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unlearn_metrics.scores import stats

DATASETS, DOCUMENTS = 16_000, 20
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "little of most, all of some (beta 0.5, 0.8)": lambda rng, shape: rng.beta(0.5, 0.8, shape),
    "nearly all of most (beta 9, 1)": lambda rng, shape: rng.beta(9, 1, shape),
    "long tail (exponential)": lambda rng, shape: rng.exponential(1, shape),
}


def coverage(draw: Draw, clusters: int, rng: np.random.Generator) -> tuple[float, float]:
    """(plain percentiles, stats.interval): shares of data sets whose interval holds the mean that they come from."""
    many = draw(rng, (2_000_000,))
    truth, within = many.mean(), many.std() / 2
    values = draw(rng, (DATASETS, clusters, 1)) + rng.normal(0, within, (DATASETS, clusters, DOCUMENTS))
    plain = ours = 0
    for seed, datasets in enumerate(np.split(values.mean(2), 20)):
        for resampled in stats.resampled_means(datasets, np.arange(clusters), seed):
            low, high = np.quantile(resampled, [0.025, 0.975])
            plain += low <= truth <= high
            low, high = stats.interval(resampled, clusters)
            ours += low <= truth <= high
    return plain / DATASETS, ours / DATASETS


def main() -> None:
    counts = (5, 10, 20, 40, 100)
    print("| clusters differ by | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---:|" * len(counts))
    rng = np.random.default_rng(0)
    for name, draw in SHAPES.items():
        cells = [coverage(draw, clusters, rng) for clusters in counts]
        print(f"| {name} | " + " | ".join(f"{plain:.1%} → {ours:.1%}" for plain, ours in cells) + " |")


if __name__ == "__main__":
    main()
