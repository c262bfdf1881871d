"""Leaks under sampling, sampled: what n samples of each forget document give away, and what they leave possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import causal, sampling, semantic
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics.retention import rouge
from unlearn_metrics.metrics.sampled import leak_at_k, leak_rate_bound, mean_score_bound
from unlearn_metrics.record import Score
from unlearn_metrics.scores import stats
from unlearn_metrics.settings import OwnData
from unlearn_metrics.splits import is_forget
from unlearn_metrics.wording import counted

QUERIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Sampling:
    """How to sample and what leaks: ROUGE-L recall of at least `recall`, or entailment of the reference by a model."""

    count: int = 20
    temperature: float = 1.0
    top_p: float = 1.0
    recall: float = 1.0
    entailment: str | None = None
    alpha: float = 0.05
    limit: int | None = None
    apply_chat_template: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Leaks:
    """leak_at: k -> its mean over the documents. bounds: metric -> the mean over documents of what may be at most.

    documents: each with its samples, how many leak, and its own bounds.
    """

    leak_at: dict[int, Score]
    bounds: dict[str, Score]
    documents: list[dict[str, Any]]
    judge: str
    settings: dict[str, Any] = field(default_factory=dict)


def run(
    checkpoint: str, benchmark: str, data: Path | OwnData | None, how: Sampling, say: Callable[[str], None]
) -> Leaks:
    """Sample the answers of a checkpoint to the forget set. InputError for bad input."""
    tasks = [task for split, task in suites.load(benchmark, data).items() if is_forget(split)]
    tasks = [task for task in tasks if "generation" in task.needs]
    if not tasks:
        raise InputError(f"{benchmark} generates nothing on its forget set")
    model = None if how.entailment is None else semantic.open_inference(how.entailment)
    try:
        lm = causal(HFLM(pretrained=checkpoint, dtype=how.dtype, device=how.device, batch_size=1))
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from None
    documents = [document for task in tasks for document in _asked(lm, task, how)]
    say(f"sampling {counted(how.count, 'answer')} to each of {counted(len(documents), 'document')}")
    found = []
    for i, document in enumerate(documents):
        prompt, kwargs = document.pop("request")
        until = kwargs.get("until") or []
        texts = sampling.sample(
            lm, prompt, how.count, kwargs["max_gen_toks"], until, how.temperature, how.top_p, how.seed + i
        )
        shares = [rouge(text, document["reference"]) for text in texts]
        recalled = [None if math.isnan(share) else share for share in shares]
        leaks = (
            [float(share >= how.recall) for share in shares]
            if model is None
            else semantic.entailments(model, [(text, document["reference"]) for text in texts], lm.device)
        )
        found.append(document | {"samples": texts, "rouge": recalled, "leaked": int(sum(leaks))})
    judge = f"rouge >= {how.recall:g}" if model is None else f"entailment by {model.name}, {model.sha256[:8]}"
    return summed(found, how, judge)


def summed(documents: Sequence[dict[str, Any]], how: Sampling, judge: str) -> Leaks:
    """The means over documents, with intervals over clusters, and the bounds of each."""
    n, clusters = how.count, np.array([d["cluster"] for d in documents])
    queries = [k for k in QUERIES if k <= n]
    bounded = [
        d | {"rate_bound": leak_rate_bound(n, d["leaked"], how.alpha), "rouge_bound": _bound(d["rouge"], how.alpha)}
        for d in documents
    ]
    columns = [[leak_at_k(n, d["leaked"], k) for d in bounded] for k in queries]
    columns += [[d[name] for d in bounded] for name in ("rate_bound", "rouge_bound")]
    scores = stats.scores(np.array(columns, float), clusters, how.seed, [False] * len(columns))
    leak_at = dict(zip(queries, scores, strict=False))
    return Leaks(leak_at, dict(zip(("rate_bound", "rouge_bound"), scores[-2:], strict=True)), bounded, judge, vars(how))


def _bound(recalled: Sequence[float | None], alpha: float) -> float | None:
    """None for a reference without a word, which nothing recalls."""
    known = [value for value in recalled if value is not None]
    return mean_score_bound(known, alpha) if len(known) == len(recalled) else None


def _asked(lm: HFLM, task: suites.TokenScoreTask, how: Sampling) -> list[Document]:
    """Each document of a task with what lm-eval would ask for it."""
    chat = {"apply_chat_template": True, "chat_template": lm.apply_chat_template} if how.apply_chat_template else {}
    with suites.quiet():
        task.build_all_requests(limit=how.limit, rank=0, world_size=1, **chat)
    asked = [request for request in task.instances if request.request_type == "greedy_until"]
    return [
        {"split": task.split, "id": r.doc_id, "cluster": task._clusters[r.doc_id], "request": r.args}
        | {"question": r.doc["question"], "reference": r.doc["answer"]}
        for r in asked
    ]
