"""What a row's models answer to a few questions of the forget set, from the run's texts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from unlearn_metrics.errors import InputError
from unlearn_metrics.records import tables
from unlearn_metrics.records.folder import TEXTS
from unlearn_metrics.reports import table
from unlearn_metrics.reports.leaderboard.rows import Row
from unlearn_metrics.splits import is_forget

SAMPLES, ROWS, LONGEST = 3, 24, 400  # of a row; rows of a table that have any; characters of a text


@dataclass(frozen=True)
class Sample:
    """A document of the forget set. answers: model -> what it says."""

    question: str
    reference: str
    answers: dict[str, str]


def samples(row: Row) -> list[Sample]:
    """The same documents of every run on the same data, spread over the split. Empty where there are no texts."""
    if row.folder is None or not (row.folder / TEXTS).is_file():
        return []
    try:
        texts = tables.read(row.folder / TEXTS)
    except InputError:
        return []
    names = [
        name for name in ("model", "split", "id", "question", "reference", "generation") if name in texts.schema.names
    ]
    if "generation" not in names:
        return []
    texts = texts.select(names)
    texts = texts.filter(pc.is_valid(texts["generation"]))
    splits = texts["split"].combine_chunks()
    there = splits.unique()
    named = zip(there.indices.to_pylist(), there.to_pylist(), strict=True)
    forget = next((place for place, name in named if is_forget(name)), None)
    if forget is None:
        return []
    texts = texts.filter(splits.indices.to_numpy() == forget)  # by place: as many texts as rows could fill the memory
    every = sorted(texts["id"].unique().to_pylist())
    chosen = [every[i * len(every) // SAMPLES] for i in range(min(SAMPLES, len(every)))]
    documents: dict[int, dict[str, dict[str, str]]] = defaultdict(dict)
    for found in texts.filter(np.isin(texts["id"].to_numpy(), chosen)).to_pylist():
        documents[found["id"]][found["model"]] = found
    return [_sample(documents[at]) for at in chosen]


def _sample(models: dict[str, dict[str, str]]) -> Sample:
    any_ = next(iter(models.values()))
    answers = {model: _cut(models[model]["generation"]) for model in table.COLUMNS if model in models}
    return Sample(_cut(any_.get("question") or ""), _cut(any_.get("reference") or ""), answers)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
