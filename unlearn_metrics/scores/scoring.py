"""Observations -> scores: every metric of every split of every model, and the composites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, available, values
from unlearn_metrics.record import RunRecord, Score, Scores
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.composites import compose


def score_split(
    documents: Sequence[Document], names: Iterable[str], seed: int
) -> tuple[dict[str, Score], dict[str, list[float]]]:
    """(metric -> Score, metric -> its value for each document). Clusters of documents are resampled together, alike for
    all metrics."""
    found = values(list(names), documents)
    clusters = np.array([d["cluster"] for d in documents])
    figures = np.array(list(found.values())).reshape(len(found), len(documents))
    scored = stats.scores(figures, clusters, seed, [name in METRICS and METRICS[name].geometric for name in found])
    return dict(zip(found, scored, strict=True)), found


def score_all(
    observations: Observations, metrics: Mapping[str, Mapping[str, Iterable[str]]], seed: int, benchmark: str = ""
) -> tuple[Scores, dict[str, dict[str, Score]]]:
    """(scores, composites) of all models. metrics: model -> split -> the metrics wanted."""
    scores: Scores = {model: {} for model in observations}
    known: Observations = {model: {} for model in observations}
    for model, splits in observations.items():
        for split, documents in splits.items():
            scores[model][split], found = score_split(documents, metrics[model][split], seed)
            rows = zip(*found.values(), strict=True) if found else ((),) * len(documents)
            known[model][split] = [
                d | {"logged": d.get("logged", {}) | dict(zip(found, row, strict=True))}
                for d, row in zip(documents, rows, strict=True)
            ]
    return scores, {model: score_composites(known, model, seed, benchmark) for model in known}


def with_more(record: RunRecord, observations: Observations, names: Sequence[str], seed: int) -> RunRecord:
    """The record with the scores of further metrics, of the documents that hold what they take."""
    scores = {
        model: {
            split: record.scores[model][split]
            | score_split(documents, [n for n in available(documents) if n in names], seed)[0]
            for split, documents in splits.items()
        }
        for model, splits in observations.items()
    }
    return replace(record, scores=scores) if names else record


def score_composites(known: Observations, model: str, seed: int, benchmark: str) -> dict[str, Score]:
    """name -> Score of a model's composites. known: documents, what was computed of them as if
    it had been logged."""
    try:
        return compose(known[model], known.get("retain_only"), known.get("original"), seed, benchmark)
    except ValueError as error:
        raise InputError(f"the retain-only model was asked something else: {error}") from None
