"""Every metric as an `evaluate.Metric`, made from the registry over the same functions: no lm-eval, no network.

    from unlearn_metrics.scores.evaluate_modules import load
    load("rouge").compute(predictions=["In Oslo."], references=["She was born in Oslo."])
    load("extraction_strength").compute(answer=[[tokens, argmax, logprob, mean, variance]])

`evaluate.combine([load(a), load(b)])` runs several at once. A generation is `predictions`, a reference answer
`references`; token scores are the lists of TokenScores.to_lists, as in the `resps` of lm-eval's samples.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from unlearn_metrics.documents import OBSERVED, TOKEN_SCORE_FIELDS, TokenScores
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.observations import OBSERVATIONS
from unlearn_metrics.scores import stats

TEXT = datasets.Value("string")
_ARROW = {int: datasets.Value("int32"), float: datasets.Value("float64")}
NUMBERS = {name: _ARROW[it.kind] for name, it in OBSERVATIONS.items() if it.kind in _ARROW}
SCORES = datasets.List(datasets.List(datasets.Value("float64")))
# field of a document -> its name and type as an input here; every other field is the token scores of one answer
INPUTS = {
    "generation": ("predictions", TEXT),
    "reference": ("references", TEXT),
    "split": ("split", TEXT),
    **{name: (name, kind) for name, kind in NUMBERS.items()},
    "wrong_answers": ("wrong_answers", datasets.List(SCORES)),
}


def load(name: str, **kwargs: Any) -> evaluate.Metric:
    """The metric of that name in METRICS. kwargs: evaluate.Metric's; keep_in_memory unless num_process is above 1.

    Its `compute` gives {name: mean (geometric for perplexities), name_unscored: documents that have no value and are in
    no mean}; with aggregate=False, {name: one value per document, NaN where there is none}.
    """
    if name not in METRICS:
        raise InputError(f"unknown metric '{name}'; {did_you_mean(name, METRICS)}")
    module = type(name, (_Module,), {"__doc__": METRICS[name].fn.__doc__})
    return module(**{"keep_in_memory": kwargs.get("num_process", 1) == 1} | kwargs)


class _Module(evaluate.Metric):
    """evaluate derives the name of a module from its class."""

    def _info(self) -> evaluate.MetricInfo:
        metric = METRICS[type(self).__name__]
        inputs = [INPUTS.get(need, (need, SCORES)) for need in metric.needs]
        args = "; ".join(f"{name}: {_describe(kind)}" for name, kind in inputs)
        return evaluate.MetricInfo(
            description=metric.definition,
            citation=metric.source,
            inputs_description=f"\nArgs, one item per document: {args}. aggregate=False: one value per document.\n",
            features=datasets.Features(dict(inputs)),
        )

    def _build_data_dir(self) -> str:
        """evaluate makes a folder in its cache; of what is kept in memory nothing would be written there."""
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> Any:
        missing = [name for name, values in batch.items() if values is None]
        if missing:
            raise ValueError(f"{self.name} needs {', '.join(missing)}")
        return super()._infer_feature_from_batch(batch)

    def _compute(self, *, aggregate: bool = True, **columns: Any) -> dict[str, Any]:
        name, metric = type(self).__name__, METRICS[type(self).__name__]
        # evaluate.combine hands every module the inputs of all
        unknown = columns.keys() - {"predictions", "references", *(need for m in METRICS.values() for need in m.needs)}
        if unknown:
            raise TypeError(f"{name} has no argument {min(unknown)!r}")
        inputs = [columns[INPUTS.get(need, (need,))[0]] for need in metric.needs]
        fields = (
            [_field(need, value, i) for i, value in enumerate(column)]
            for need, column in zip(metric.needs, inputs, strict=True)
        )
        values = [float(metric.fn(*row)) for row in zip(*fields, strict=True)]
        if not aggregate:
            return {name: values}
        scored = ~np.isnan(values)
        mean = stats.mean(np.array(values)[scored], metric.geometric)
        return {name: mean, f"{name}_unscored": int((~scored).sum())}


def _field(need: str, value: Any, document: int) -> Any:
    """A field of a document in the metric's form. ValueError, naming the document, for what are no token scores."""
    if need in ("generation", "reference", "split", *NUMBERS) or value is None:
        return value
    if need == "wrong_answers":
        return [_field("", item, document) for item in value]
    lengths = {len(values) for values in value}
    if len(value) not in (len(OBSERVED), len(TOKEN_SCORE_FIELDS)) or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(
            f"document {document}: token scores are the lists {', '.join(TOKEN_SCORE_FIELDS)}, of equal length, "
            "one item for each answer token and one for end-of-sequence"
        )
    return TokenScores.from_lists(value)


def _describe(kind: Any) -> str:
    if kind is TEXT:
        return "a text"
    if kind in NUMBERS.values():
        return "a number"
    return "lists (" + ", ".join(TOKEN_SCORE_FIELDS) + ")" + ("" if kind is SCORES else " per wrong answer")
