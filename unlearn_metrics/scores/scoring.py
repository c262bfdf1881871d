"""Observations -> scores: every metric of every split of every model, and the composites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, available, values
from unlearn_metrics.record import RunRecord, Score, Scores, attack_of
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.composites import compose


def score_split(
    documents: Sequence[Document], names: Iterable[str], seed: int
) -> tuple[dict[str, Score], list[Document]]:
    """(metric -> Score, the documents with their values beside them, so that composites compute none again).

    Clusters of documents are resampled together, alike for all metrics.
    """
    found = values(names, documents)
    columns = np.array([*found.values()]).reshape(len(found), len(documents))
    geometric = [name in METRICS and METRICS[name].geometric for name in found]
    scores = stats.scores(columns, np.array([d["cluster"] for d in documents]), seed, geometric)
    valued = [
        d | {"logged": d.get("logged", {}) | {name: column[i] for name, column in found.items()}}
        for i, d in enumerate(documents)
    ]
    return dict(zip(found, scores, strict=True)), valued


def score_all(
    observations: Observations, metrics: Mapping[str, Mapping[str, Iterable[str]]], seed: int, benchmark: str = ""
) -> tuple[Scores, dict[str, dict[str, Score]]]:
    """(scores, composites) of all models. metrics: model -> split -> the metrics wanted."""
    scores: Scores = {model: {} for model in observations}
    valued: Observations = {model: {} for model in observations}
    for model, splits in observations.items():
        for split, documents in splits.items():
            scores[model][split], valued[model][split] = score_split(documents, metrics[model][split], seed)
    reference, original = valued.get("retain_only"), valued.get("original")
    try:
        composites = {
            model: compose(valued[model], reference, original, seed, benchmark)
            for model in valued
            if attack_of(model)[1] is None
        }
    except ValueError as error:
        raise InputError(f"the retain-only model answered other questions: {error}") from None
    return scores, composites


def layer_drops(observations: Observations) -> dict[str, list[float]]:
    """model -> what each layer lacks of the forget answers, in nats per token: a mean over the documents."""
    found = {
        model: [d["patched"] for d in splits.get("forget", ()) if "patched" in d]
        for model, splits in observations.items()
    }
    return {model: np.mean(drops, axis=0).tolist() for model, drops in found.items() if drops}


def with_more(record: RunRecord, observations: Observations, names: Sequence[str], seed: int) -> RunRecord:
    """The record with the scores of further metrics, of the documents that hold their arguments."""
    scores = {
        model: {
            split: record.scores[model][split]
            | score_split(documents, [n for n in available(documents) if n in names], seed)[0]
            for split, documents in splits.items()
        }
        for model, splits in observations.items()
    }
    return replace(record, scores=scores) if names else record
