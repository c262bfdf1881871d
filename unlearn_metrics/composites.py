"""Figures of several splits or models: model utility, forget quality, membership attacks. On documents alone.

Intervals come from resampling documents jointly: one draw of whole clusters for a split's metrics, and for both models
where two are compared, since they answered the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hmean, ks_2samp

from unlearn_metrics import stats
from unlearn_metrics.metrics import ATTACKS, METRICS, available, privacy, value
from unlearn_metrics.metrics.forget_quality import ks_forget_quality
from unlearn_metrics.metrics.memorization import log_truth_ratio
from unlearn_metrics.metrics.retention import model_utility
from unlearn_metrics.types import Document, Floats, Score

Splits = Mapping[str, Sequence[Document]]

UTILITY = [
    (split, metric)
    for split, probability in (
        ("retain", "probability"),
        ("real_authors", "probability_normalised"),
        ("world_facts", "probability_normalised"),
    )
    for metric in (probability, "rouge", "truth_ratio")
]
# name -> which way is good
COMPOSITES = {
    "model_utility": "higher",
    "forget_quality": "higher",
    "privleak": "zero",
    **{f"auc_{attack}": "half" for attack in ATTACKS},
}


def compose(splits: Splits, reference: Splits | None = None, seed: int = 0) -> dict[str, Score]:
    """name -> Score, for every composite that these documents of one model, and those of the reference, allow.

    reference: the retain-only model's documents. Both halves of a retain split that served a calibration count: a
    composite is about the benchmark as it is defined. Raises ValueError if the reference was asked other questions.
    """
    splits = whole(splits)
    result: dict[str, Score] = {}
    if all(split in splits and metric in available(splits[split]) for split, metric in UTILITY):
        result["model_utility"] = _utility(splits, seed)
    if reference is not None and "forget" in splits and "forget" in reference:
        mine, theirs = _log_ratios(splits["forget"]), _log_ratios(reference["forget"])
        if mine and theirs:
            result["forget_quality"] = _forget_quality(splits["forget"], mine, theirs, seed)
    if {"forget", "holdout"} <= splits.keys():
        result |= _attacks(splits, reference, seed)
    return result


def whole(splits: Splits) -> dict[str, list[Document]]:
    """Splits with a retain split in one piece again, in the order of the benchmark."""
    joined = {name: list(documents) for name, documents in splits.items() if not name.endswith("_calibration")}
    for name, documents in splits.items():
        if name.endswith("_calibration"):
            base = name.removesuffix("_calibration")
            joined[base] = sorted([*joined.get(base, []), *documents], key=lambda d: int(d["id"]))
    return joined


def draws(documents: Sequence[Document], split: str, seed: int) -> Floats:
    """Bootstrap weights, [resamples, n]; another stream for every split, as splits are independent."""
    return stats.bootstrap_weights(np.array([d["cluster"] for d in documents]), [seed, *split.encode()])


def fewest_clusters(*splits: Sequence[Document]) -> int:
    """The number of clusters in the split that has fewest: what an interval over these splits rests on."""
    return min(len({d["cluster"] for d in documents}) for documents in splits)


def _utility(splits: Splits, seed: int) -> Score:
    points, resampled, n, unscored = [], [], 0, 0
    weights = {split: draws(splits[split], split, seed) for split in dict(UTILITY)}
    fewest = fewest_clusters(*(splits[split] for split in weights))
    for split, metric in UTILITY:
        values = np.array([value(metric, d) for d in splits[split]])
        geometric = METRICS[metric].geometric
        points.append(float(stats.aggregate(values, np.ones((1, len(values))), geometric)[0]))
        resampled.append(stats.aggregate(values, weights[split], geometric))
        n, unscored = n + int((~np.isnan(values)).sum()), unscored + int(np.isnan(values).sum())
    if np.isnan(points).any():
        return Score(None, None, None, 0, n + unscored)
    rows = min(map(len, resampled))
    utilities = hmean(np.clip([r[:rows] for r in resampled], 0, None), axis=0) if rows else np.empty(0)
    return Score(model_utility(points), *stats.interval(utilities, fewest), n, unscored)


def _log_ratios(documents: Sequence[Document]) -> dict[str, float]:
    """question -> log truth ratio; empty if one document has none."""
    if not all(METRICS["truth_ratio"].can_score(d) for d in documents):
        return {}
    ratios = [log_truth_ratio(d["true_answer"], d["wrong_answers"]) for d in documents]
    return dict(zip(questions(documents), ratios, strict=True))


def questions(documents: Sequence[Document]) -> list[str]:
    """What was asked, apart from how it was prompted: two models may have templates of their own, and logs rows of
    their own. A question that comes again is told by its number; where no text is known, the row stands for it."""
    texts = [str(d.get("question", d.get("reference", f"row {d['id']}"))) for d in documents]
    seen: Counter[str] = Counter()
    keys = []
    for text in texts:
        seen[text] += 1
        keys.append(f"{text} #{seen[text]}")
    return keys


def _forget_quality(
    documents: Sequence[Document], mine: Mapping[str, float], reference: Mapping[str, float], seed: int
) -> Score:
    """The p-value, and its interval from drawing the questions, the same for both models, again and again."""
    point = ks_forget_quality(mine, reference)
    weights = draws(documents, "forget", seed)
    if not len(weights):
        return Score(point, None, None, len(mine), 0)
    both = np.array([[mine[question], reference[question]] for question in questions(documents)])
    order = np.argsort(both, axis=None, kind="stable")
    values = both.ravel()[order]
    last = np.append(values[1:] != values[:-1], True)  # of equal values, where a distribution function has its step
    steps = weights[:, order // 2] * np.where(order % 2 == 0, 1, -1)
    distance = np.abs(steps.cumsum(1)[:, last]).max(1) / weights.sum(1)
    # drawn twenty to an author, a resample of n questions has about n: the p of its distance at n
    n = len(documents)
    hops, which = np.unique(np.rint(distance * n).astype(int), return_inverse=True)
    p = np.array([ks_2samp(np.arange(n), np.arange(n) + h - 0.5 if h else np.arange(n)).pvalue for h in hops])[which]
    return Score(point, *stats.interval(p, fewest_clusters(documents)), n, 0)


def _attacks(splits: Splits, reference: Splits | None, seed: int) -> dict[str, Score]:
    """auc_<attack> of forget against holdout and, with a reference, privleak by Min-K % (MUSE, OpenUnlearning)."""
    result = {}
    weights = {split: draws(splits[split], split, seed) for split in ("forget", "holdout")}
    rows, fewest = min(map(len, weights.values())), fewest_clusters(*(splits[split] for split in weights))
    models = (
        [splits] if reference is None or not {"forget", "holdout"} <= reference.keys() else [splits, whole(reference)]
    )
    for attack in ATTACKS:
        scores = [{s: np.array([value(attack, d) for d in model[s]]) for s in weights} for model in models]
        if any(np.isnan(values).any() or not len(values) for model in scores for values in model.values()):
            continue
        points = [privacy.auc(list(model["forget"]), list(model["holdout"])) for model in scores]
        resampled = [
            privacy.weighted_aucs(*(model[s] for s in weights), *(w[:rows] for w in weights.values()))
            for model in scores
        ]
        n = sum(len(splits[s]) for s in weights)
        result[f"auc_{attack}"] = Score(points[0], *stats.interval(resampled[0], fewest), n, 0)
        if attack == "min_k" and len(models) == 2 and points[1] < 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                leaks = 100 * ((1 - resampled[0]) / (1 - resampled[1]) - 1)
            ends = stats.interval(leaks[np.isfinite(leaks)], fewest)
            result["privleak"] = Score(privacy.privleak(*points), *ends, n, 0)
    return result
