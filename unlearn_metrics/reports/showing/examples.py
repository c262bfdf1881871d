"""Documents of a run, side by side: what was asked, the reference, and what each model said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, available, good, values
from unlearn_metrics.record import RunRecord
from unlearn_metrics.reports.table import COLUMNS


class NoTexts(InputError):
    """A run of means alone, or of tasks whose texts are not stored."""


@dataclass(frozen=True)
class Example:
    """A document. place: "worst 1", "best 2", ...; said: model -> its generation; scored: model -> the metric."""

    place: str
    split: str
    id: int
    question: str
    reference: str
    said: dict[str, str]
    scored: dict[str, float | None]


def examples(
    record: RunRecord, observations: Observations, split: str = "forget", count: int = 5, metric: str | None = None
) -> tuple[str, list[Example]]:
    """The documents of a split that are worst and best for unlearning by a metric, `count` of either.

    Args:
        record, observations: of a run. By the model under control if there is one, else by the unlearned model as
            published.
        split: "forget": worst is what is remembered most; of other splits, what was lost most.
        count: of the worst, and of the best; where there are fewer documents, none is shown twice.
        metric: by default the benchmark's primary one, or the first that documents have.

    Returns:
        (the metric, the worst from the worst on, then the best from the best on). Documents without a value come in
        neither. InputError for a split, or a metric, that the run does not have.
    """
    if count < 0:
        raise InputError(f"count is {count}: of the worst documents, and of the best, at least 0 are shown")
    if not observations:
        raise NoTexts("the run holds no documents")
    model = next(name for name in ("controlled", "unlearned", *observations) if name in observations)
    splits = observations[model]
    if split not in splits:
        raise InputError(f"the run has no split '{split}'; {did_you_mean(split, splits)}")
    documents = splits[split]
    if not any(_text(d, "question") or _text(d, "generation") or _text(d, "reference") for d in documents):
        raise NoTexts(f"the run holds no texts of {split}; {did_you_mean('', _with_texts(splits), 'nor of others')}")
    metric = _metric(record, documents, metric)
    direction = good(metric, split)
    found = values([metric], documents)[metric]
    known = [i for i, value in enumerate(found) if not math.isnan(value)]
    towards = {i: -found[i] if direction == "lower" else found[i] for i in known}
    order = _spread(sorted(known, key=lambda i: (towards[i], i)), documents, towards)
    best = _spread(sorted({*known} - {*order[:count]}, key=lambda i: (-towards[i], i)), documents, towards)[:count]
    chosen = [*(("worst", i) for i in order[:count]), *(("best", i) for i in best)]
    others = {name: {d["id"]: d for d in observations[name].get(split, ())} for name in COLUMNS if name in observations}
    said = []
    for number, (kind, i) in enumerate(chosen):
        place = number + 1 if kind == "worst" else number + 1 - min(count, len(order))
        said.append(_example(f"{kind} {place}", split, documents[i], others, metric))
    return metric, said


def _spread(order: Sequence[int], documents: Sequence[Document], value: Mapping[int, float]) -> list[int]:
    """The order, where among equal values no cluster comes again before the others have come."""
    seen: Counter[tuple[float, Any]] = Counter()
    turn = {}
    for i in order:
        turn[i] = seen[value[i], documents[i]["cluster"]]
        seen[value[i], documents[i]["cluster"]] += 1
    place = {value[i]: n for n, i in reversed([*enumerate(order)])}
    return sorted(order, key=lambda i: (place[value[i]], turn[i]))


def _with_texts(splits: Mapping[str, Sequence[Document]]) -> list[str]:
    return [name for name, documents in splits.items() if any(_text(d, "question") for d in documents)]


def _metric(record: RunRecord, documents: Sequence[Document], metric: str | None) -> str:
    there = available(documents)
    if metric is not None:
        if metric not in there:
            raise InputError(f"no document has what '{metric}' takes; {did_you_mean(metric, there)}")
        return metric
    wanted = [*record.headline.forget, "extraction_strength", "rouge", *there]
    known = [name for name in wanted if name in there and name in METRICS]
    if not known:
        raise NoTexts("the documents have no value to order them by")
    return known[0]


def _example(
    place: str, split: str, document: Document, others: Mapping[str, Mapping[Any, Document]], metric: str
) -> Example:
    same = {name: by_id[document["id"]] for name, by_id in others.items() if document["id"] in by_id}
    scored = {name: values([metric], [d])[metric][0] for name, d in same.items()}
    return Example(
        place=place,
        split=split,
        id=document["id"],
        question=_text(document, "question"),
        reference=_text(document, "reference"),
        said={name: _text(d, "generation") for name, d in same.items() if "generation" in d},
        scored={name: None if math.isnan(value) else float(value) for name, value in scored.items()},
    )


def _text(document: Document, name: str) -> str:
    return str(document.get(name) or "")
