"""Observing models: the benchmark's documents under the model as it is, and the judge's view of generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import classifier, encoding, hf
from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.checkpoints.files import Checkpoint
from unlearn_metrics.control.mixing import ControlFunction, mix, mix_into
from unlearn_metrics.documents import Document, Observations, TokenScores
from unlearn_metrics.jobs import identity
from unlearn_metrics.jobs.job import Job

Splits = dict[str, list[Document]]
Judged = dict[encoding.Pair, TokenScores]


def observe(job: Job, pair: tuple[Checkpoint, Checkpoint], alpha: float, fn: ControlFunction = mix) -> Splits:
    """Every document of a run under the model that a control gives of a pair of checkpoints at a strength."""
    mix_into(job.lm.model, *pair, alpha, fn)
    settings, lm = job.settings, job.lm
    said: Judged = {}  # by the model, of its own texts, while it decoded them
    splits = (
        suites.evaluate(lm, job.tasks, settings.limit, settings.apply_chat_template, said=said) if job.tasks else {}
    )
    documents = with_generation(splits)
    for document, judged in zip(documents, judge(lm, documents, settings.apply_chat_template, said), strict=True):
        document["self_judged_generation"] = judged
    return splits | other_tasks.evaluate(lm, job.others, settings.utility_limit, settings.apply_chat_template)


def observe_as_published(job: Job, model: str) -> Splits:
    """A checkpoint without a control, which is the same in every run that asks it the same."""
    key = identity.as_published(job, model, job.tasks, job.others, job.requests)
    alpha = float(model != "original")
    return job.stage.shared(model, key, lambda: observe(job, job.published[model], alpha))


def judge_generations(job: Job, observed: Observations) -> None:
    """Add the original's token scores of every generation, and what a classifier makes of it, if there is one."""
    job.say("judging the generations by the original")
    for document in with_generation(observed["original"]):  # the original has just been its own judge
        document["judged_generation"] = document["self_judged_generation"]
    unjudged = [d for model, splits in observed.items() if model != "original" for d in with_generation(splits)]
    chat = job.settings.apply_chat_template

    def judge_all() -> list[TokenScores | None]:
        mix_into(job.lm.model, *job.published["original"], 0)
        own = [d for d in with_generation(observed["original"]) if d["judged_generation"] is not None]
        known = {_pair(job.lm, d, chat): d["judged_generation"] for d in own}
        return judge(job.lm, unjudged, chat, known)

    for document, judged in zip(unjudged, job.stage("judged generations", judge_all), strict=True):
        document["judged_generation"] = judged
    if job.reader is not None:
        job.say(f"classifying the generations by {job.reader.name}")
        written = [d for splits in observed.values() for d in with_generation(splits)]
        clean = classifier.clean_probabilities(job.reader, [d["generation"] for d in written], job.lm.device)
        for document, probability in zip(written, clean, strict=True):
            document["clean_probability"] = probability


def with_generation(splits: Mapping[str, Sequence[Document]]) -> list[Document]:
    """The documents whose metrics need a generation."""
    return [d for documents in splits.values() for d in documents if "generation" in d]


def judge(
    lm: HFLM, documents: list[Document], rendered: bool = False, known: Judged | None = None
) -> list[TokenScores | None]:
    """The token scores of every document's generation under the model as it is; None where it is empty.

    rendered: a chat template wrote the prompts. known: what need not be scored again.
    """
    written = {i: _pair(lm, d, rendered) for i, d in enumerate(documents) if d["generation"].strip()}
    scores = dict(known or {})
    rest = [pair for pair in dict.fromkeys(written.values()) if pair not in scores]
    scores |= zip(rest, hf.token_scores(lm, rest), strict=True)
    return [scores[written[i]] if i in written else None for i in range(len(documents))]


def _pair(lm: HFLM, document: Document, rendered: bool) -> encoding.Pair:
    # broken bytes decode to replacement characters, which can take more tokens than were generated
    return encoding.encode(lm, document["prompt"], document["generation"], cut=lm.max_length, rendered=rendered)
