"""What a record holds of a path: sums over clusters, and from them what is still there at equal retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unlearn_metrics.documents import Document, Floats, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import values
from unlearn_metrics.record import ClusterSums, CurvePoint, MeasuredPath, Residual
from unlearn_metrics.scores import curve
from unlearn_metrics.scores.models import whole
from unlearn_metrics.splits import CALIBRATION, EVALUATION, is_forget, kept_on

MAX_CLUSTERS = 200  # that a record holds; of more, neighbours are drawn together
Observed = Mapping[str, Mapping[str, Sequence[float]]]  # split -> metric -> a value for each document


def measured(
    metric: str, kept: str, at: Mapping[float, Observed], clusters: Mapping[str, Sequence[int]]
) -> MeasuredPath:
    """The path of a record from the values of its documents.

    Args:
        metric: what is retained, on the split `kept`.
        at: strength -> what was observed there, ascending; 0, the original, first.
        clusters: split -> the cluster of each document.
    """
    grouped = {split: _grouped(labels) for split, labels in clusters.items()}
    retain = np.array([observed[kept][metric] for observed in at.values()])
    splits = {name: split for split, names in next(iter(at.values())).items() for name in names if is_forget(split)}
    forget = {
        name: _sums(np.array([observed[split][name] for observed in at.values()]), grouped[split])
        for name, split in splits.items()
    }
    halves = []
    for half in (CALIBRATION, EVALUATION):  # both have every cluster, if only with nothing in it
        only = np.full_like(retain, np.nan)
        only[:, half] = retain[:, half]
        halves.append(_sums(only, grouped[kept]))
    return MeasuredPath(metric, list(at), halves, forget, splits)


def with_ends(path: MeasuredPath, observations: Observations) -> MeasuredPath:
    """The path with its ends, the original and the unlearned model, computed again from their documents.

    InputError if these are in other clusters than the path.
    """
    kept = kept_on(path.metric)
    wanted = {kept: [path.metric]}
    for metric, split in path.splits.items():
        wanted.setdefault(split, []).append(metric)
    for alpha, model in ((0.0, "original"), (1.0, "unlearned")):
        documents = whole(observations.get(model, {}))
        if alpha not in path.alphas or not wanted.keys() <= documents.keys():
            continue
        found = {split: values(names, documents[split]) for split, names in wanted.items()}
        end = measured(path.metric, kept, {alpha: found}, {s: [d["cluster"] for d in documents[s]] for s in wanted})
        if [s.clusters for s in (*end.retain, *end.forget.values())] != [
            s.clusters for s in (*path.retain, *(path.forget[metric] for metric in end.forget))
        ]:
            raise InputError(f"the path is over other clusters than the documents of the {model} model")
        row = path.alphas.index(alpha)
        path = replace(
            path,
            retain=[_row(sums, row, half) for sums, half in zip(path.retain, end.retain, strict=True)],
            forget={metric: _row(sums, row, end.forget[metric]) for metric, sums in path.forget.items()},
        )
    return path


def _row(sums: ClusterSums, row: int, by: ClusterSums) -> ClusterSums:
    """Sums with those of one strength replaced by others."""
    total, count = [*sums.total], [*sums.count]
    total[row], count[row] = by.total[0], by.count[0]
    return replace(sums, total=total, count=count)


def with_retain_only(path: MeasuredPath, documents: Mapping[str, Sequence[Document]]) -> MeasuredPath:
    """The path with a model beside it that never saw the forget set: the floor of what is still there."""
    found = {}
    for name, split in path.splits.items():
        if documents.get(split):
            of = values([name], documents[split])[name]
            found[name] = _sums(np.array([of]), _grouped([d["cluster"] for d in documents[split]]))
    return replace(path, retain_only=found)


def _grouped(labels: Sequence[int]) -> Sequence[int]:
    """Clusters, or groups of neighbouring ones where they are more than a record holds."""
    places = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    size = -(-len(places) // MAX_CLUSTERS)
    return labels if size == 1 else [places[label] // size for label in labels]


def _sums(found: Floats, clusters: Sequence[int]) -> ClusterSums:
    sums = curve.sums(found, clusters)
    return ClusterSums(list(sums.labels), sums.total.tolist(), sums.count.astype(int).tolist())


def _read(sums: ClusterSums, keep: slice = slice(None)) -> curve.Sums:
    total, count = np.array(sums.total, np.float64), np.array(sums.count, np.float64)
    return curve.Sums(tuple(sums.clusters[keep]), total[:, keep], count[:, keep])


def path_of(path: MeasuredPath, metric: str, halves: slice = slice(None), clusters: slice = slice(None)) -> curve.Path:
    """The path of one metric, to compute with. halves, clusters: of retain, only these."""
    parts = [_read(half, clusters) for half in path.retain[halves]]
    total, count = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("total", "count"))
    retain = curve.Sums(parts[0].labels, total, count)
    return curve.Path(path.alphas, retain, {metric: _read(path.forget[metric])})


def residuals(path: MeasuredPath, keep: float | None, seed: int) -> dict[str, Residual]:
    """metric -> what is still there of the forget set at the retention `keep`, and on the curve around it."""
    rho = curve.RHO if keep is None else keep
    return {metric: _residual(path, metric, rho, seed) for metric in path.forget}


def _residual(path: MeasuredPath, metric: str, rho: float, seed: int) -> Residual:
    of = path_of(path, metric)
    weights = curve.draw(of, seed)
    grid = curve.residual(of, metric, weights, curve.GRID)
    (at,) = curve.residual(of, metric, weights, [rho])
    alpha = curve.strength(of, weights, [rho])[0, 0]
    floor = path.retain_only.get(metric)
    above = None
    if floor is not None:
        above = curve.estimate(curve.above_floor(at, of, metric, _read(floor), weights), of.clusters)

    def alone(halves: slice = slice(None), clusters: slice = slice(None)) -> float | None:
        part = path_of(path, metric, halves, clusters)
        found = curve.residual(part, metric, curve.draw(part, 0, 0), [rho])[0, 0]
        return None if np.isnan(found) else float(found)

    return Residual(
        retention=rho,
        value=curve.estimate(at, of.clusters),
        average=curve.estimate(grid.mean(0), of.clusters),
        above_floor=above,
        curve=[CurvePoint(at, curve.estimate(row, of.clusters)) for at, row in zip(curve.GRID, grid, strict=True)],
        alpha=None if np.isnan(alpha) else float(alpha),
        sensitivity={
            "calibration split": alone(slice(0, 1)),
            "evaluation split": alone(slice(1, 2)),
            "even clusters": alone(clusters=CALIBRATION),
            "odd clusters": alone(clusters=EVALUATION),
        },
    )


def paired(
    paths: Sequence[MeasuredPath],
    metric: str,
    rho: Sequence[float] = (curve.RHO,),
    seed: int = 0,
    draws: int = curve.DRAWS,
) -> tuple[Floats, int]:
    """What is still there of several models at the same retention, on the same draws: what ranks and differences need.

    Args:
        paths: of models that were measured on the same documents.
        metric: of the forget set.
        rho: retentions, relative to the original's.
        seed: of the draws.
        draws: how many.

    Returns:
        [models, retentions, 1 + draws], NaN where a retention is not reached (see `curve.residual`), and the fewest
        clusters that are drawn from. So `found[b, 0] - found[a, 0]` is an argument for `curve.difference`.

    Raises:
        InputError: a path is of other clusters than the first, or lacks the metric.
    """
    if any(metric not in path.forget for path in paths):
        raise InputError(f"{metric[:80]} was not measured along the path of every model")
    if any(clusters_of(path, metric) != clusters_of(paths[0], metric) for path in paths):
        raise InputError("the paths are not over the same clusters of documents, so they cannot be paired")
    of = [path_of(path, metric) for path in paths]
    weights = curve.draw(of[0], seed, draws)
    return np.array([curve.residual(path, metric, weights, rho) for path in of]), of[0].clusters


def clusters_of(path: MeasuredPath, metric: str) -> tuple[tuple[int, ...], ...]:
    """The clusters that a path is over: of retain, and of the forget set by a metric."""
    return tuple(path.retain[0].clusters), tuple(path.forget[metric].clusters)


def barrier(path: MeasuredPath) -> bool | None:
    """Whether far less is retained half-way than at both ends: the models are not on a linear path. None: not known."""
    of = next(iter(path.forget), None)
    if of is None or not {0.5, 1.0} <= set(path.alphas):
        return None
    found = path_of(path, of)
    retained = curve.retention(found, curve.draw(found, 0, 0))[:, 0]
    return curve.barrier(path.alphas, retained.tolist())
