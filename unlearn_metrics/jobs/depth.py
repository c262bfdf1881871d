"""Depth: what each layer of a model lacks of the forget answers that the original gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import encoding, patching
from unlearn_metrics.checkpoints.files import Checkpoint
from unlearn_metrics.control.mixing import ControlFunction, mix, mix_into
from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import identity
from unlearn_metrics.jobs.job import Job
from unlearn_metrics.record import Control
from unlearn_metrics.records import store
from unlearn_metrics.records.signature import short_hash
from unlearn_metrics.settings import Settings

Lists: TypeAlias = dict[str, list[list[float]]]


def observe_depth(job: Job, control: Control, observed: Observations) -> None:
    """Add the drops of every layer to the forget documents of all models but the original: "patched" and "lens"."""
    documents = observed["original"]["forget"]
    spans = spans_of(job.lm, documents, job.settings)
    about = short_hash(map(repr, spans))
    parts: dict[str, tuple[tuple[Checkpoint, Checkpoint], float, ControlFunction]] = {
        model: (job.published[model], 1.0, mix) for model in ("retain_only", "unlearned")
    }

    def shared(model: str, compute: Callable[[], Lists]) -> Lists:  # the same for all checkpoints of a sweep
        key = identity.as_published(job, model, job.tasks, job.others, job.requests + about)
        return job.stage.shared(f"depth of {model}", key, compute)

    def as_original() -> None:
        mix_into(job.lm.model, *job.published["original"], 0)

    def readings() -> Lists:
        as_original()
        return {name: rows.tolist() for name, rows in patching.readings(job.lm, spans).items()}

    job.say("reading the layers of the original")
    of_original = {name: np.array(rows) for name, rows in shared("original", readings).items()}
    if job.models is not None:
        parts["controlled"] = job.published["unlearned"], control.alpha, job.models.fn
    for model, (pair, alpha, fn) in parts.items():
        job.say(f"patching layers of the {model.replace('_', '-')} model into the original")

        def drops(pair: tuple[Checkpoint, Checkpoint] = pair, alpha: float = alpha, fn: ControlFunction = fn) -> Lists:
            source = partial(mix_into, job.lm.model, *pair, alpha, fn)
            found = patching.drops(job.lm, spans, of_original, source, as_original)
            return {name: rows.astype(np.float32).tolist() for name, rows in found.items()}  # as they are stored

        found = shared(model, drops) if model == "retain_only" else job.stage(f"depth of {model} {about}", drops)
        for i, document in enumerate(observed[model]["forget"]):
            document |= {name: rows[i] for name, rows in found.items()}


def spans_of(lm: HFLM, documents: Sequence[Document], settings: Settings) -> list[patching.Span]:
    """The whole answer of each document, or the entity in it that settings.entity_spans names."""
    entities = read_entities(settings.entity_spans)
    found = []
    for document in documents:
        prompt, answer = document["prompt"], document["answers"][0]
        pair = encoding.encode(lm, prompt, answer, rendered=settings.apply_chat_template)
        before, n = len(pair.context), len(pair.answer)
        start, stop = entity_tokens(lm, pair.answer, entities.get(document["question"])) or (0, n)
        found.append(patching.Span(pair.context + pair.answer, before + start, before + stop))
    return found


def entity_tokens(lm: HFLM, answer: Sequence[int], entity: str | None) -> tuple[int, int] | None:
    """The tokens of an answer, [start, stop), that write an entity where it first occurs; None where it does not."""
    place = -1 if not entity else lm.tok_decode(answer).find(entity)
    if not entity or place < 0:
        return None
    ends = [len(lm.tok_decode(answer[: i + 1])) for i in range(len(answer))]
    start = next(i for i, end in enumerate(ends) if end > place)
    return start, 1 + next(i for i, end in enumerate(ends) if end >= place + len(entity))


def read_entities(file: Path | None) -> Mapping[str, str]:
    """question -> entity, from a JSON list of objects that have both; of further keys none is read."""
    if file is None:
        return {}
    try:
        rows = store.read_json(file)
    except InputError as error:
        raise InputError(f"--entity-spans {file} cannot be read: {str(error).removeprefix(f'{file} ')}") from None
    if not isinstance(rows, list):
        raise InputError(f"--entity-spans {file} is no JSON list of objects with 'question' and 'entity'")
    for i, row in enumerate(rows):
        texts = [row.get(key) if isinstance(row, dict) else None for key in ("question", "entity")]
        if not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"--entity-spans {file}: entry {i} has no text 'question' or 'entity'")
    return {row["question"]: row["entity"] for row in rows}
