"""One model's documents as composites take them: values and their resamples, drawn alike for all metrics and models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from unlearn_metrics.documents import Document, Floats
from unlearn_metrics.metrics import METRICS, privacy, values
from unlearn_metrics.metrics.memorization import log_truth_ratio
from unlearn_metrics.scores import stats
from unlearn_metrics.splits import parse

Splits = Mapping[str, Sequence[Document]]
MEMBERSHIP = ("forget", "holdout")


class Undefined(Exception):
    """The composite has no value here. The message is why, or what it needs."""


class Model:
    """One model's documents, and what composites take of them: [1 + resamples] values. Each is computed once."""

    def __init__(
        self,
        splits: Splits,
        seed: int,
        reference: Model | None = None,
        original: Model | None = None,
        benchmark: str = "",
    ) -> None:
        self.splits, self.seed, self.benchmark = splits, seed, benchmark
        self._reference, self._original = reference, original
        self.mean, self.auc, self.weights = cache(self._mean), cache(self._auc), cache(self._weights)

    @property
    def reference(self) -> Model:
        """The retain-only model."""
        if self._reference is None:
            raise Undefined("needs a retain-only model (--retain-model or --reference-record)")
        return self._reference

    @property
    def original(self) -> Model:
        if self._original is None:
            raise Undefined("needs the original model")
        return self._original

    def about(self, splits: Sequence[str]) -> Sequence[str]:
        """The splits of a composite, by the names that this benchmark has for them."""
        return (
            (*membership(self.splits), *(s for s in splits if s not in MEMBERSHIP)) if "holdout" in splits else splits
        )

    def clusters(self, splits: Sequence[str]) -> int:
        """How many an interval over several splits rests on: those of the split with the fewest."""
        return min(len({d["cluster"] for d in self.splits[split]}) for split in splits)

    def documents(self, split: str) -> Sequence[Document]:
        if not self.splits.get(split):
            raise Undefined(f"needs {split} documents of the model compared with")
        return self.splits[split]

    def _draw(self, split: str) -> tuple[NDArray[np.integer], tuple[int, ...]]:
        """(clusters [n], seed) of a split's resampling: another stream for every split."""
        return np.array([d["cluster"] for d in self.documents(split)]), (self.seed, *split.encode())

    def _weights(self, split: str) -> Floats:
        """[1 + resamples, n]: every document once, then the draws."""
        clusters, seed = self._draw(split)
        return np.vstack([np.ones(len(clusters)), stats.bootstrap_weights(clusters, seed)])

    def _values(self, split: str, metric: str) -> list[float]:
        """[n]. Raises Undefined where no document has the metric."""
        documents = self.documents(split)
        if not any(METRICS[metric].can_score(d) or metric in d.get("logged", ()) for d in documents):
            raise Undefined(f"needs {metric} on {split}")
        return values([metric], documents)[metric]

    def _mean(self, split: str, metric: str) -> Floats:
        """[1 + resamples] aggregates of a metric. Raises Undefined where no document has it."""
        return self.average(split, metric, np.array(self._values(split, metric)))

    def average(self, split: str, what: str, values: Floats) -> Floats:
        """[1 + resamples] means of a value of each document, [n]."""
        if np.isnan(values).all():
            raise Undefined(f"{what} is unscored for every document of {split}")
        (resampled,) = stats.resampled_means(values[None], *self._draw(split))
        return np.array([stats.mean(values[~np.isnan(values)]), *resampled])

    def log_ratios(self, split: str) -> dict[str, float]:
        """question -> log truth ratio. Raises Undefined if one document has none."""
        documents = self.documents(split)
        there = [METRICS["truth_ratio"].can_score(d) for d in documents]
        if not any(there):
            raise Undefined(f"needs the losses that truth_ratio on {split} is made of")
        ratios = [
            log_truth_ratio(d["true_answer"], d["wrong_answers"]) if known else math.nan
            for d, known in zip(documents, there, strict=True)
        ]
        return _by_question("truth_ratio", documents, ratios)

    def attack(self, name: str, split: str) -> dict[str, float]:
        """question -> attack score. Raises Undefined if one document has none: an AUC is about all of them."""
        documents = self.documents(split)
        if name != "reference":
            return _by_question(name, documents, self._values(split, name))
        mine, theirs = self.attack("loss", split), self.reference.attack("loss", split)
        if mine.keys() != theirs.keys():
            raise ValueError(f"the reference attack compares the same documents; those of {split} differ")
        return _by_question(name, documents, [loss - theirs[question] for question, loss in mine.items()])

    def _auc(self, attack: str) -> Floats:
        """[1 + resamples] areas under the curve, forget against holdout."""
        pair = membership(self.splits)
        scores = [np.array(list(self.attack(attack, split).values())) for split in pair]
        return privacy.weighted_aucs(*scores, *paired(*(self.weights(split) for split in pair)))


def membership(splits: Collection[str]) -> tuple[str, str]:
    """The splits that attacks compare: forget and holdout, or the same part of both (`forget_privleak`, ...)."""
    parts = sorted(split.removeprefix("holdout") for split in splits if split.startswith("holdout"))
    return next((pair for p in parts if (pair := (f"forget{p}", f"holdout{p}"))[0] in splits), MEMBERSHIP)


def paired(*resampled: Floats) -> list[Floats]:
    """As many rows of each as all have: a split of too few clusters has no resamples."""
    return [r[: min(map(len, resampled))] for r in resampled]


def questions(documents: Sequence[Document]) -> list[str]:
    """What was asked, apart from how it was prompted: two models may have templates of their own, and logs rows of
    their own. A question that comes again gets a number; where no text is known, the row stands for it."""
    texts = [str(d.get("question") or d.get("reference", f"row {d['id']}")) for d in documents]
    seen: Counter[str] = Counter()
    keys = []
    for text in texts:
        seen[text] += 1
        keys.append(f"{text} #{seen[text]}")
    return keys


def _by_question(what: str, documents: Sequence[Document], values: Sequence[float]) -> dict[str, float]:
    """question -> value. Raises Undefined if one is NaN."""
    unknown = int(np.isnan(values).sum())
    if unknown:
        raise Undefined(f"{what} is not known for {unknown} of {len(values)} documents of {documents[0]['split']}")
    return dict(zip(questions(documents), values, strict=True))


def harmonic(*parts: Floats) -> Floats:
    """Harmonic mean, resample by resample; 0 where one is 0."""
    from scipy.stats import hmean  # half a second, which records alone need not wait

    return np.asarray(hmean(np.clip(paired(*parts), 0, None), axis=0))


def whole(splits: Splits) -> dict[str, list[Document]]:
    """Splits with one that was halved for calibration in one piece again, in the order of the benchmark."""
    joined: dict[str, list[Document]] = {}
    for name, documents in sorted(splits.items(), key=lambda item: parse(item[0]).calibration):
        base = parse(name).whole
        joined[base] = [*joined.get(base, []), *documents]
        if parse(name).calibration:
            joined[base].sort(key=lambda d: int(d["id"]))
    return joined
