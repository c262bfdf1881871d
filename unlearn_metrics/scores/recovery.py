"""What attacks bring back of the forget set: recovery, net of what they give a model that never saw it, and the worst.

Of an attack a and a metric m, larger for more knowledge: recovery = m under a - m, paired by document; net recovery =
recovery of the unlearned model - recovery of the retain-only model. All attacks, metrics and models of a run are
resampled alike, whole clusters together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unlearn_metrics.documents import Document, Floats, Observations
from unlearn_metrics.metrics import values
from unlearn_metrics.record import Estimate, Recovery, Worst, attack_of
from unlearn_metrics.scores import curve, stats
from unlearn_metrics.wording import counted

ATTACKED = ("unlearned", "controlled")
SPLIT = "forget"  # all that is attacked


def recoveries(
    observations: Observations, metrics: Sequence[str], seed: int
) -> tuple[dict[str, dict[str, dict[str, Recovery]]], dict[str, dict[str, Worst]]]:
    """What every attack brings back, and the worst case.

    Args:
        observations: documents of the models as they are and, under names of `record.under`, attacked.
        metrics: shares, larger = more knowledge; what no document has is left out.
        seed: of the draws.

    Returns:
        (model -> metric -> attack -> Recovery, model -> metric -> Worst) of "unlearned" and "controlled".
    """
    found: dict[str, dict[str, dict[str, Recovery]]] = {}
    worst: dict[str, dict[str, Worst]] = {}
    for model in ATTACKED:
        attacks = _attacked(observations, model)
        before = observations.get(model, {}).get(SPLIT, [])
        if not attacks or not before:
            continue
        floor, floors = observations.get("retain_only", {}).get(SPLIT, []), _attacked(observations, "retain_only")
        clusters = np.array([d["cluster"] for d in before])
        found[model], worst[model] = {}, {}
        for metric in metrics:
            base = _column(metric, before, before)
            after = np.array([_column(metric, before, documents) for documents in attacks.values()])
            if np.isnan(base).all() or np.isnan(after).all():
                continue
            given = [_column(metric, before, floors.get(attack, [])) for attack in attacks]
            taught = np.array(given) - _column(metric, before, floor)
            found[model][metric], worst[model][metric] = of_metric([*attacks], base, after, taught, clusters, seed)
    return found, worst


def _attacked(observations: Observations, model: str) -> dict[str, Sequence[Document]]:
    """Attack -> the documents of a model under it."""
    named = {attack_of(name): splits.get(SPLIT, []) for name, splits in observations.items()}
    return {attack: documents for (of, attack), documents in named.items() if of == model and attack and documents}


def _column(metric: str, ordered: Sequence[Document], documents: Sequence[Document]) -> Floats:
    """The metric of the documents with the ids of `ordered`, in that order; NaN where there is none."""
    known = dict(zip((d["id"] for d in documents), values([metric], documents)[metric], strict=True))
    return np.array([known.get(d["id"], math.nan) for d in ordered])


def of_metric(
    attacks: Sequence[str], before: Floats, after: Floats, taught: Floats, clusters: NDArray[np.integer], seed: int
) -> tuple[dict[str, Recovery], Worst]:
    """One metric of one model, a share.

    Args:
        attacks: their names.
        before: the metric without an attack, [n]; NaN = unscored.
        after: under each attack, [attacks, n].
        taught: what each attack brings back of the retain-only model, [attacks, n]; NaN where that is not known.
        clusters: labels, [n].
        seed: of the draws.

    Returns:
        (attack -> Recovery, Worst). Documents without a value on either side are in neither mean.
    """
    change = after - before
    net = change - taught
    drawn = drawn_means(np.concatenate([after, change, net]), clusters, seed)
    of_after, of_change, of_net = np.split(drawn, 3)
    known = np.array([not np.isnan(row).all() for row in net])
    tested = np.where(known[:, None], net, change)
    labels, places = np.unique(clusters, return_inverse=True)
    sums = np.array([np.bincount(places, row, len(labels)) for row in np.nan_to_num(tested)])
    p = stats.sign_flip(sums, seed)
    corrected = stats.holm(p)
    counts = [len(np.unique(clusters[~np.isnan(row)])) for row in tested]
    found = {
        attack: Recovery(
            difference(of_change[i], len(np.unique(clusters[~np.isnan(change[i])]))),
            difference(of_net[i], counts[i]) if known[i] else None,
            *((float(p[i]), float(corrected[i])) if counts[i] else (None, None)),
        )
        for i, attack in enumerate(attacks)
    }
    most, value = largest(of_after, len(labels))
    if value.low is not None and value.high is not None:  # the metric is a share
        value = replace(value, low=max(0.0, value.low), high=min(1.0, value.high))
    if not known.any():
        return found, Worst(attacks[most], value)
    among = np.flatnonzero(known)
    most_net, worst_net = largest(of_net[among], len(labels))
    return found, Worst(attacks[most], value, attacks[among[most_net]], worst_net)


def largest(drawn: Floats, clusters: int, level: float = 0.95) -> tuple[int, Estimate]:
    """Which of several figures is largest, and how large the largest is.

    The interval is of the largest, whichever it is. Its low end is the largest of the figures' low ends, which hold
    together: what the largest deviation of a draw reaches, in units of its own, in 5 % of the draws (curve.threshold).
    Its high end is the largest of the high ends, of which one is that of the truly largest. Percentiles of the largest
    figure of each draw would be too high where several are near one another.

    Args:
        drawn: figures on the same draws, [figures, 1 + draws]; column 0 is the data as they are.
        clusters: that are drawn from.
        level: of confidence.
    """
    most = int(np.nanargmax(drawn[:, 0]))
    value = float(drawn[most, 0])
    rows = drawn[~np.isnan(drawn).any(1), 1:]
    if clusters < stats.MIN_CLUSTERS or not len(rows):
        few = counted(clusters, "cluster")
        return most, Estimate(value, why=f"no interval from {few}; it takes {stats.MIN_CLUSTERS}")
    figures, deviations = drawn[~np.isnan(drawn).any(1), 0], rows.std(1)
    moving = deviations > 0
    distance = np.abs(rows - rows.mean(1, keepdims=True))[moving] / deviations[moving, None]
    together = curve.threshold(distance.max(0, initial=0), int(moving.sum()), clusters, level)
    alone = curve.threshold(np.zeros(1), 1, clusters, level)
    return most, Estimate(
        value, float((figures - together * deviations).max()), float((figures + alone * deviations).max())
    )


def drawn_means(rows: Floats, clusters: NDArray[np.integer], seed: int) -> Floats:
    """Means of rows over documents, as they are and in every draw: [rows, n] -> [rows, 1 + draws]."""
    scored = ~np.isnan(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(scored, rows, 0).sum(1) / scored.sum(1)
    return np.concatenate([means[:, None], stats.resampled_means(rows, clusters, seed)], 1)


def difference(drawn: Floats, clusters: int) -> Estimate:
    """A recovery with its interval, as `curve.difference`. drawn: [1 + draws]; clusters: with a value."""
    if math.isnan(drawn[0]):
        return Estimate(None, why="no document has a value before and after")
    if clusters < stats.MIN_CLUSTERS:
        drawn = drawn[:1]
    return curve.difference(drawn, clusters)
