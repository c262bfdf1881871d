"""How often the 95 % intervals of a net recovery and of the worst case hold the truth, by simulation: `python -m
tools.attack_coverage` (docs/attacks.md).

Each row: data sets of clusters of 20 documents. A document's value under an attack is a share: a mean, an effect
of its cluster that all attacks share, one of its cluster under this attack, and one of its own, cut to [0, 1]. One
attack leads the others by a gap. With 500 of them a right interval lies within 2 points of 95 (two standard
errors).
"""

from __future__ import annotations

import argparse

import numpy as np

from unlearn_metrics.documents import Floats
from unlearn_metrics.scores import recovery, stats

DOCUMENTS, MEAN = 20, 0.4
SHARED, OWN, WITHIN = 0.15, 0.07, 0.25  # standard deviations


def values(rng: np.random.Generator, clusters: int, attacks: int, gap: float) -> Floats:
    """[attacks, documents], the first attack leads."""
    means = np.full((attacks, 1, 1), MEAN)
    means[0] += gap
    shared, own = rng.normal(0, SHARED, (1, clusters, 1)), rng.normal(0, OWN, (attacks, clusters, 1))
    found = means + shared + own + rng.normal(0, WITHIN, (attacks, clusters, DOCUMENTS))
    return found.clip(0, 1).reshape(attacks, -1)


def coverage(clusters: int, attacks: int, gap: float, datasets: int) -> tuple[float, float, float]:
    """(net recovery of the first attack, worst case, plain percentiles of the largest): shares that hold the truth.

    The net recovery is the difference to another such model that is attacked alike, whose true one is the gap.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(clusters), DOCUMENTS)
    truth = float(values(rng, 50_000, 1, gap).mean())
    base = float(values(rng, 50_000, 1, 0).mean())
    net = worst = plain = 0
    for seed in range(datasets):
        drawn = recovery.drawn_means(after := values(rng, clusters, attacks, gap), labels, seed)
        _, largest = recovery.largest(drawn, clusters)
        assert largest.low is not None
        assert largest.high is not None
        worst += largest.low <= truth <= largest.high
        low, high = stats.interval(drawn.max(0)[1:], clusters)
        assert low is not None
        assert high is not None
        plain += low <= truth <= high
        row = after[:1] - values(rng, clusters, 1, 0)
        found = recovery.difference(recovery.drawn_means(row, labels, seed)[0], clusters)
        assert found.low is not None
        assert found.high is not None
        net += found.low <= truth - base <= found.high
    return net / datasets, worst / datasets, plain / datasets


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--clusters", type=int, nargs="*", default=[10, 20])
    parser.add_argument("--attacks", type=int, nargs="*", default=[4, 17])
    given = parser.parse_args()
    print("| clusters | attacks | gap | net recovery | worst case | (percentiles of the largest) |")
    print("|---|---|---|---|---|---|")
    for clusters in given.clusters:
        for attacks in given.attacks:
            for gap in (0, 0.05, 0.15):
                cells = " | ".join(f"{share:.3f}" for share in coverage(clusters, attacks, gap, given.datasets))
                print(f"| {clusters} | {attacks} | {gap} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
