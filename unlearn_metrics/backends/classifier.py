"""A text classifier that rates how much a text looks like language: a sequence-classification checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unlearn_metrics.errors import InputError, first_line

CLEAN = "clean"  # beside "mild gibberish", "word salad" and "noise" in the classifier that OpenUnlearning uses
MAX_TOKENS, ROWS = 512, 32  # as OpenUnlearning's


@dataclass(frozen=True)
class Loaded:
    """A model that reads texts, and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def sha256(self) -> str:
        """Over the names and the bytes of the weights, in order."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class Classifier(Loaded):
    """clean: the index of the label for clean text."""

    clean: int


def opened(name: str, kind: Any, what: str, form: str) -> Loaded:
    """Load a local folder, or a hub id with an optional @revision. Weights are never unpickled, code never run.

    kind: one of transformers' Auto classes; what, form: to call it in an error. InputError for what is no such model.
    """
    repo, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    given = {"revision": revision or "main", "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo, **given)
        model = kind.from_pretrained(repo, dtype=torch.float32, **given)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, ImportError, UnpicklingError) as error:
        raise InputError(f"{what} {name} cannot be loaded as {form}: {first_line(error)}") from None
    return Loaded(name, model.eval(), tokenizer)


def open_classifier(name: str) -> Classifier:
    """The classifier of a folder or hub id, see `opened`. InputError for what is none, or has no label "clean"."""
    found = opened(name, AutoModelForSequenceClassification, "gibberish model", "a text classifier")
    labels = [str(found.model.config.id2label[i]) for i in range(found.model.config.num_labels)]
    if CLEAN not in map(str.lower, labels):
        raise InputError(f"gibberish model {name} has the labels {', '.join(labels)[:200]}; one must be '{CLEAN}'")
    return Classifier(name, found.model, found.tokenizer, [label.lower() for label in labels].index(CLEAN))


def clean_probabilities(classifier: Classifier, texts: Sequence[str], device: torch.device) -> list[float | None]:
    """P(clean) of each text, its first 512 tokens counting; None for a text without any. Equal texts once."""
    distinct = sorted({text for text in texts if text.strip()}, key=len)
    model, tokenizer = classifier.model.to(device), classifier.tokenizer
    found: dict[str, float] = {}
    longest = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    for i in range(0, len(distinct), ROWS):
        batch = distinct[i : i + ROWS]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        with torch.no_grad():
            p = torch.softmax(model(**inputs).logits.float(), -1)[:, classifier.clean]
        found |= zip(batch, p.tolist(), strict=True)
    model.to("cpu")
    return [found.get(text) for text in texts]
