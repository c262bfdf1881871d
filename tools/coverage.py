"""How often the intervals and tests of control hold, by simulating control itself: `python -m tools.coverage CACHE`.

What each document of retain and forget gives along a path of the shared checkpoints is measured once, at many alphas,
and kept in CACHE. That is the population. A simulated data set redraws its authors (TOFU: 20 of retain, 10 of forget)
or its documents (MUSE: 100 and 100, none of which belong together), scans the path with that data's own noise as
`curve.propose` says, and gives f(.95) with its interval from sums over clusters, as a record does. The truth is the
population's f(.95). A method that equals another is made of both: a coin for each author, or document, says whose
answers are whose, after the paths are stretched to the same alpha at retention .95; so both follow one law.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

import numpy as np

from unlearn_metrics.scores import curve
from unlearn_metrics.scores.curve import GRID, Path, Sums

KEPT, OTHER = "extraction_strength", "probability"
# whether a cluster is an author, or else a document; how many clusters of retain, and of forget
SIZES = {
    "tofu": (True, 20, 10),
    "muse": (False, 100, 100),
    "few": (True, 9, 7),
    "fewest": (True, 5, 5),
}
# of the population: steps in [0, 1], in retention within [.8, 1.1], in alpha
SCAN, FINE, SMALLEST = 16, 0.015, 1 / 2048
SEEDS = 6  # sets of draws that are used in turn; stats keeps no more

# the population


def measure(shared: File, name: str, file: File) -> None:
    """Measure a path ("39": ga/checkpoint-39 mixed; "39-trim", "39-layers": by that control; "floor": retain-only)."""
    from unlearn_metrics.benchmarks import suites
    from unlearn_metrics.control.controls import layers, trim
    from unlearn_metrics.control.mixing import mix, mix_into
    from unlearn_metrics.jobs.keep import observer
    from unlearn_metrics.jobs.opening import build_lm, open_pair
    from unlearn_metrics.metrics import values
    from unlearn_metrics.settings import Settings

    checkpoint, _, other = name.partition("-")
    control = {"": mix, "trim": trim, "layers": layers}[other]
    folder = shared / "checkpoints" / ("retain" if name == "floor" else f"ga/checkpoint-{checkpoint}")
    original, unlearned = open_pair(str(shared / "checkpoints" / "original"), str(folder))
    tasks, settings = suites.load("tofu_forget05", shared / "data" / "tofu"), Settings(device="cpu")
    lm = build_lm(original, original, settings)
    observe = observer(lm, tasks, {}, settings, {split: [KEPT, OTHER] for split in ("retain", "forget")})
    seen: dict[float, dict[str, Any]] = {}

    def retained(alpha: float) -> float:
        if alpha not in seen:
            mix_into(lm.model, original, unlearned, alpha, control)
            seen[alpha] = {}
            for split, documents in observe().items():
                seen[alpha] |= {f"{split}/{m}": v for m, v in values([KEPT, OTHER], documents).items()}
                seen[alpha][f"{split}/clusters"] = [document["cluster"] for document in documents]
        return float(np.nanmean(seen[alpha][f"retain/{KEPT}"]) / np.nanmean(seen[0.0][f"retain/{KEPT}"]))

    for step in (0, SCAN) if name == "floor" else range(SCAN + 1):
        # where little is retained, the steps of the scan itself do
        if step % 2 == 0 or retained(max(seen, default=0.0)) > 0.5:
            retained(step / SCAN)
    while not other and retained(max(seen)) > 0.8 and max(seen) < curve.TOP:
        retained(max(seen) + 1 / SCAN)
    while name != "floor":
        alphas = sorted(seen)
        falls = np.abs(np.diff(np.clip([retained(alpha) for alpha in alphas], 0.8, 1.1)))
        wide = np.flatnonzero((falls > FINE) & (np.diff(alphas) > SMALLEST))
        if not len(wide):
            break
        for i in wide:
            retained((alphas[i] + alphas[i + 1]) / 2)
    columns: dict[str, Any] = {key: np.array([seen[alpha][key] for alpha in sorted(seen)]) for key in seen[0.0]}
    np.savez_compressed(file, alphas=np.array(sorted(seen)), **columns)


def population(file: File, by_author: bool) -> Path:
    """The measured path, with a cluster for each author or for each document."""
    found = np.load(file)

    def of(split: str, metric: str) -> Sums:
        authors = found[f"{split}/clusters"].reshape(-1, found[f"{split}/{metric}"].shape[1])[0]
        return curve.sums(found[f"{split}/{metric}"], (authors if by_author else np.arange(len(authors))).tolist())

    return Path(found["alphas"].tolist(), of("retain", KEPT), {m: of("forget", m) for m in (KEPT, OTHER)})


def at(path: Path, alphas: Sequence[float], stretch: float = 1.0) -> Path:
    """The path at other alphas, interpolated between those measured; stretched: alpha is what alpha / stretch was."""
    grid, wanted = np.array(path.alphas) * stretch, np.array(alphas)
    right = np.clip(np.searchsorted(grid, wanted), 1, len(grid) - 1)
    share = np.clip((wanted - grid[right - 1]) / (grid[right] - grid[right - 1]), 0, 1)[:, None]

    def of(s: Sums) -> Sums:
        total, count = ((1 - share) * v[right - 1] + share * v[right] for v in (s.total, s.count))
        return Sums(s.labels, total, count)

    return Path(list(alphas), of(path.retain), {m: of(s) for m, s in path.forget.items()})


def redraw(path: Path, retain: np.ndarray, forget: np.ndarray) -> Path:
    """A data set: these clusters of the population, each one a cluster of its own."""

    def of(s: Sums, which: np.ndarray) -> Sums:
        return Sums(tuple(range(len(which))), s.total[:, which], s.count[:, which])

    return Path(path.alphas, of(path.retain, retain), {m: of(s, forget) for m, s in path.forget.items()})


def swapped(a: Path, b: Path, retain: np.ndarray, forget: np.ndarray) -> Path:
    """The first path, with the clusters that are marked taken from the second."""

    def of(x: Sums, y: Sums, which: np.ndarray) -> Sums:
        return Sums(x.labels, np.where(which, y.total, x.total), np.where(which, y.count, x.count))

    forgets = {m: of(s, b.forget[m], forget) for m, s in a.forget.items()}
    return Path(a.alphas, of(a.retain, b.retain, retain), forgets)


# control, simulated


def scanned(path: Path) -> Path:
    """The points that control would evaluate, chosen by this data's own retention."""
    retained = curve.retention(path, curve.draw(path, 0, 0))[:, 0]
    seen = {0.0: 1.0}
    while new := curve.propose(seen):
        seen |= {alpha: float(np.interp(alpha, path.alphas, retained)) for alpha in new}
    return at(path, sorted(seen))


def truths(path: Path, metric: str) -> np.ndarray:
    return curve.residual(path, metric, curve.draw(path, 0, 0), GRID)[:, 0]


def holds(resampled: np.ndarray, clusters: int, truth: float, paired: bool = False) -> float:
    """1 or 0; NaN where there is no interval, since retention does not fall so far in too many draws."""
    found = (curve.difference if paired else curve.estimate)(resampled, clusters)
    return np.nan if found.low is None or found.high is None else float(found.low <= truth <= found.high)


def floor_of(path: Path) -> Sums:
    """The retain-only model's sums: the last point of the path that ends in it."""
    found = path.forget[KEPT]
    return Sums(found.labels, found.total[-1:], found.count[-1:])


def one_and_two(
    paths: dict[str, Path], floor: Sums, sizes: tuple[int, int], datasets: int, draws: int
) -> dict[str, list[float]]:
    """Row -> shares of data sets: f(.95), f(.95) of the other metric, the curve's mean, f(.95) above the floor, and how
    many have no interval of the first and of the third; of differences f(.95) alone.

    Also, as "all ranks", how often all rows' ranges hold their true ranks.
    """
    rng, middle = np.random.default_rng(0), GRID.index(curve.RHO)
    true = {name: {m: truths(path, m) for m in (KEPT, OTHER)} for name, path in paths.items()}
    names, clusters = list(paths), min(sizes)
    hits: dict[str, list[list[float]]] = {}
    order = np.argsort(np.argsort([true[name][KEPT][middle] for name in names])) + 1
    for dataset in range(datasets):
        first = next(iter(paths.values()))
        kinds = len(first.retain.labels), len(first.forget[KEPT].labels)
        chosen = [rng.integers(0, kind, size) for kind, size in zip(kinds, sizes, strict=True)]
        left = {}
        drawn = Sums(tuple(range(sizes[1])), floor.total[:, chosen[1]], floor.count[:, chosen[1]])
        for name, path in paths.items():
            data = scanned(redraw(path, *chosen))
            weights = curve.draw(data, dataset % SEEDS, draws)
            f = curve.residual(data, KEPT, weights, GRID)
            left[name] = f[middle]
            other = curve.residual(data, OTHER, weights)[0]
            t = true[name]
            hit = [holds(f[middle], clusters, t[KEPT][middle]), holds(other, clusters, t[OTHER][middle])]
            hit += [holds(f.mean(0), clusters, t[KEPT].mean())]
            share = curve.above_floor(f[middle], data, KEPT, drawn, weights)
            whole = curve.draw(path, 0, 0)
            hit += [holds(share, clusters, float(curve.above_floor(t[KEPT][middle], path, KEPT, floor, whole)[0]))]
            without = [float(np.isnan(hit[i])) for i in (0, 2)]
            hits.setdefault(name, []).append([t[KEPT][middle], *hit, *without, len(data.alphas) - 2])
        for i, a in enumerate(names):
            for b in names[:i]:
                gap = true[a][KEPT][middle] - true[b][KEPT][middle]
                hits.setdefault(f"{a} - {b}", []).append([gap, holds(left[a] - left[b], clusters, gap, True)])
        ranges = curve.ranks(np.array(list(left.values())), clusters)
        held = all(span is not None and span[0] <= o <= span[1] for span, o in zip(ranges, order, strict=True))
        hits.setdefault("all ranks", []).append([0.0, held])
    return {name: np.nanmean(found, axis=0).tolist() for name, found in hits.items()}


def null(a: Path, b: Path, sizes: tuple[int, int], datasets: int, draws: int) -> list[float]:
    """How often tests at 5 % tell two methods apart that are alike, and how often ranks do."""
    rng, metric = np.random.default_rng(1), KEPT
    edges = [float(curve.strength(path, curve.draw(path, 0, 0))[0, 0]) for path in (a, b)]
    stretch = edges[0] / edges[1]
    grid = np.unique([*a.alphas, *(np.array(b.alphas) * stretch)])
    grid = grid[grid <= min(a.alphas[-1], b.alphas[-1] * stretch)].tolist()
    pair = at(a, grid), at(b, grid, stretch)
    told = []
    for dataset in range(datasets):
        kinds = len(a.retain.labels), len(a.forget[metric].labels)
        chosen = [rng.integers(0, kind, size) for kind, size in zip(kinds, sizes, strict=True)]
        one, other = (redraw(path, *chosen) for path in pair)
        coins = [rng.random(size) < 0.5 for size in sizes]
        left = []
        for path in (swapped(one, other, *coins), swapped(other, one, *coins)):
            data = scanned(path)
            left.append(curve.residual(data, metric, curve.draw(data, dataset % SEEDS, draws))[0])
        difference, clusters = left[0] - left[1], min(sizes)
        p, ranges = curve.p_value(difference, clusters), curve.ranks(np.array(left), clusters)
        told.append([p is not None and p < 0.05, ranges in ([(1, 1), (2, 2)], [(2, 2), (1, 1)])])
    return [float(share) for share in np.mean(told, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage and size of control's intervals and tests.")
    parser.add_argument("cache", type=File, help="folder of the measured paths, one .npz each; made where missing")
    parser.add_argument("--shared", type=File, default=File(os.environ.get("UNLEARN_SHARED", "../shared")))
    parser.add_argument("--paths", nargs="+", default=["26", "39", "52", "78"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=4000)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    for name in [*given.paths, "floor"]:
        if not (file := given.cache / f"{name}.npz").exists():
            measure(given.shared, name, file)
    error = 1.96 * (0.95 * 0.05 / given.datasets) ** 0.5
    print(f"{given.datasets:,} data sets a cell, {given.draws:,} draws each; .95 is known to within {error:.3f}")
    for title in given.sizes:
        by_author, kr, kf = SIZES[title]
        paths = {name: population(given.cache / f"{name}.npz", by_author) for name in given.paths}
        floor = floor_of(population(given.cache / "floor.npz", by_author))
        print(f"\n{title}: {kr} and {kf} {'authors' if by_author else 'documents'}\n")
        columns = ["true", "coverage", f"of {OTHER}", "of the curve's mean", "above floor"]
        columns += ["without one", "without the mean's", "points between"]
        print("| path | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
        for name, found in one_and_two(paths, floor, (kr, kf), given.datasets, given.draws).items():
            print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in found) + " |", flush=True)
        print("\n| two alike, made of | p < .05 | ranks differ |\n|---|---:|---:|")
        for i, a in enumerate(given.paths):
            for b in given.paths[:i]:
                found = null(paths[a], paths[b], (kr, kf), given.datasets, given.draws)
                print(f"| {a}, {b} | " + " | ".join(f"{v:.3f}" for v in found) + " |", flush=True)


if __name__ == "__main__":
    main()
