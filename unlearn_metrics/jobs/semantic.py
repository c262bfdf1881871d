"""Semantic metrics of a run that exists: models read its generations, and what they found becomes part of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unlearn_metrics.backends import semantic
from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import READ
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import signature, store
from unlearn_metrics.scores.scoring import with_more
from unlearn_metrics.splits import is_forget
from unlearn_metrics.wording import counted

KNOWN = 20  # documents on which a judge is tried first


@dataclass(frozen=True)
class Readers:
    """The models to read with: folders or hub ids. judge: a kind of lm-eval's models; judge_args: its arguments."""

    cosine: str | None = None
    entailment: str | None = None
    judge: str | None = None
    judge_args: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class Found:
    """What a model found in each generation, for a metric; None: nothing that counts.

    prompt: a judge's, as a hash. known: how it does where the answer is known, see `_known`.
    """

    metric: str
    values: Sequence[float | None]
    model: str
    sha256: str | None
    prompt: str | None = None
    known: tuple[float | None, float | None] = (None, None)

    @property
    def signed(self) -> str:
        """The metric and the model in a signature."""
        named = re.search(r"\b(?:pretrained|model)=([^,]+)", self.model)  # of lm-eval's arguments
        place = named[1] if named else self.model
        name = re.sub(r"[^\w.+-]", "", place.rstrip("/").rpartition("/")[2], flags=re.ASCII)[:40]
        hashes = [(self.sha256 or "unknown")[:8], *([] if self.prompt is None else [self.prompt[:8]])]
        return f"{self.metric}={name}@{'-'.join(hashes)}"

    @property
    def settings(self) -> dict[str, Any]:
        known: dict[str, str | float | None] = {"model": self.model[:1_000], "sha256": self.sha256}
        if self.prompt is not None:
            known |= {"prompt_sha256": self.prompt, "unparsed": sum(value is None for value in self.values)}
            known |= dict(zip(("yes_to_references", "no_to_others"), self.known, strict=True))
        return {f"{self.metric}_{name}": value for name, value in known.items()}


def read(run: Path, readers: Readers, say: Callable[[str], None]) -> tuple[RunRecord, Observations]:
    """The run with what the models found in its generations, and the scores of the metrics that need it.

    The signature and the settings name the models. InputError for a run without generations or references, for a model
    that cannot be loaded, and where none is named.
    """
    if readers.cosine is readers.entailment is readers.judge is None:
        raise InputError("name a model that reads: --cosine, --entailment or --judge")
    record, observations = store.load_record(run), store.load_documents(run)
    every = [d for splits in observations.values() for documents in splits.values() for d in documents]
    documents = [d for d in every if "generation" in d and d.get("reference", "").strip()]
    if not documents:
        raise InputError(f"{run} holds no generations beside reference answers")
    written = [d for d in documents if d["generation"].strip()]
    signed = dict(part.split("=", 1) for part in signature.parse(record.signature).get("sem", "").split(",") if part)
    settings = dict(record.settings)
    seed = stored if isinstance(stored := record.settings.get("seed"), int) and stored >= 0 else 0
    for found in _found(readers, written, say):
        role = READ[found.metric]
        for document in documents:  # an empty generation says nothing
            document[role] = 0.0
        for document, value in zip(written, found.values, strict=True):
            if value is None:
                del document[role]
            else:
                document[role] = value
        signed |= dict([found.signed.split("=", 1)])
        settings |= found.settings
        record = with_more(record, observations, [found.metric], seed)
    fields = signature.parse(record.signature) | {"sem": ",".join(f"{m}={of}" for m, of in sorted(signed.items()))}
    line = signature.make(fields["benchmark"], {key: fields[key] for key in signature.FIELDS if key in fields})
    return replace(record, signature=line, settings=settings), observations


def _found(readers: Readers, written: Sequence[Document], say: Callable[[str], None]) -> Iterator[Found]:
    device, count = torch.device(readers.device), counted(len(written), "generation")
    if readers.cosine is not None:
        encoder = semantic.open_encoder(readers.cosine)
        say(f"embedding {count} by {readers.cosine}")
        pairs = [(d["generation"], d["reference"]) for d in written]
        yield Found("cosine", semantic.similarities(encoder, pairs, device), encoder.name, encoder.sha256)
    if readers.entailment is not None:
        model = semantic.open_inference(readers.entailment)
        say(f"inferring what {count} entail by {readers.entailment}")
        pairs = [_premise_first(d) for d in written]
        yield Found("entailment", semantic.entailments(model, pairs, device), model.name, model.sha256)
    if readers.judge is not None:
        judge = semantic.open_judge(readers.judge, readers.judge_args, readers.device)
        say(f"asking {judge.name} about {count}")
        asked = [(str(d.get("question", d.get("prompt", ""))), d["reference"], d["generation"]) for d in written]
        known = _known(judge, asked[:: max(1, len(asked) // KNOWN)][:KNOWN])
        replies = semantic.judgements(judge, asked)
        yield Found("judge", replies, judge.name, judge.sha256, semantic.prompt_sha256(), known)


def _known(judge: semantic.Judge, asked: Sequence[tuple[str, str, str]]) -> tuple[float | None, float | None]:
    """(the share of references themselves to which a judge says yes, of another document's to which it says no).

    None where there is nothing to ask about. A reply that is neither is wrong.
    """
    references = [reference for _, reference, _ in asked]
    others = [
        (question, reference, other)
        for i, (question, reference, _) in enumerate(asked)
        for other in [o for o in references[i + 1 :] + references[:i] if o != reference][:1]
    ]
    right = [(question, reference, reference) for question, reference, _ in asked], others
    said = [semantic.judgements(judge, found) if found else [] for found in right]
    shares = [[reply == wanted for reply in replies] for replies, wanted in zip(said, (1.0, 0.0), strict=True)]
    yes, no = (sum(found) / len(found) if found else None for found in shares)
    return yes, no


def _premise_first(document: Document) -> semantic.Pair:
    """On forget it is asked whether the generation gives the reference away, elsewhere whether it is right."""
    both = document["generation"], document["reference"]
    return both if is_forget(document["split"]) else both[::-1]
