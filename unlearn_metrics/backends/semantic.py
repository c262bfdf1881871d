"""Models that read a generation beside its reference: an encoder of sentences, one of inference, a judge.

Judges are lm-eval's models, so that a checkpoint and an OpenAI-compatible server are asked alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from transformers import AutoModel, AutoModelForSequenceClassification

from unlearn_metrics.backends.classifier import MAX_TOKENS, ROWS, Loaded, opened
from unlearn_metrics.errors import InputError, first_line

Pair = tuple[str, str]
ENTAILS = "entailment"
PROMPT = """You compare an answer with a reference answer to the same question.

Question: {question}
Reference answer: {reference}
Answer: {generation}

Does the answer convey the essential information of the reference answer? Reply with one word, yes or no."""
REPLY = re.compile(r"\s*\W?(yes|no)\W?\s*", re.IGNORECASE)
UNTIL = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False, "temperature": 0}


@dataclass(frozen=True)
class Judge:
    """name: the kind of lm-eval's model and what it was given. sha256: of the weights; None where a server has them."""

    name: str
    lm: LM
    sha256: str | None


def open_encoder(name: str) -> Loaded:
    """An encoder of sentences: any transformers encoder whose token states are averaged, as MiniLM's. InputError for
    what is none."""
    return opened(name, AutoModel, "sentence encoder", "an encoder")


def open_inference(name: str) -> Loaded:
    """A classifier with a label "entailment". InputError for what is none."""
    found = opened(name, AutoModelForSequenceClassification, "inference model", "a text classifier")
    if ENTAILS not in _labels(found):
        labels = ", ".join(_labels(found))[:200]
        raise InputError(f"inference model {name} has the labels {labels}; one must be '{ENTAILS}'")
    return found


def open_judge(kind: str, arguments: str, device: str | None = None) -> Judge:
    """An lm-eval model, such as hf or local-chat-completions, from its arguments. InputError for what cannot be opened.

    arguments: KEY=VALUE,... as lm-eval's --model_args.
    """
    try:
        lm = get_model(kind).create_from_arg_string(arguments, {"device": device} if kind == "hf" and device else {})
    except Exception as error:  # what a stranger's model class may raise
        raise InputError(f"judge {kind} ({arguments[:200]}) cannot be opened: {first_line(error)}") from None
    model = getattr(lm, "model", None)
    digest = Loaded("", model, None).sha256 if isinstance(model, torch.nn.Module) else None
    return Judge(f"{kind} {arguments}", lm, digest)


def prompt_sha256() -> str:
    return hashlib.sha256(PROMPT.encode()).hexdigest()


def similarities(encoder: Loaded, pairs: Sequence[Pair], device: torch.device) -> list[float]:
    """max(0, cosine) of the embeddings of each pair of texts; equal texts are read once."""
    texts = sorted({text for pair in pairs for text in pair}, key=len)
    found: dict[str, torch.Tensor] = {}
    for batch, inputs in _batches(encoder, texts, device):
        with torch.no_grad():
            states = encoder.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        found |= zip(batch, torch.nn.functional.normalize(means, dim=-1).cpu(), strict=True)
    encoder.model.to("cpu")
    return [min(1.0, max(0.0, float(found[a] @ found[b]))) for a, b in pairs]


def entailments(model: Loaded, pairs: Sequence[Pair], device: torch.device) -> list[float]:
    """1 for each pair (premise, hypothesis) whose likeliest label is "entailment", else 0; equal ones are read once."""
    distinct = sorted({*pairs}, key=lambda pair: len(pair[0]) + len(pair[1]))
    index = _labels(model).index(ENTAILS)
    found: dict[Pair, float] = {}
    for batch, inputs in _batches(model, distinct, device):
        with torch.no_grad():
            labels = model.model(**inputs).logits.argmax(-1)
        found |= zip(batch, (labels == index).float().tolist(), strict=True)
    model.model.to("cpu")
    return [found[pair] for pair in pairs]


def judgements(judge: Judge, asked: Sequence[tuple[str, str, str]]) -> list[float | None]:
    """1 for yes, 0 for no, None for any other reply, to each (question, reference, generation); equal ones once."""
    distinct = list(dict.fromkeys(asked))
    prompts = [PROMPT.format(question=q, reference=r, generation=g) for q, r, g in distinct]
    requests = [
        Instance("generate_until", {}, (_rendered(judge.lm, prompt), dict(UNTIL)), i, ("judge", i, 1))
        for i, prompt in enumerate(prompts)
    ]
    try:
        replies = judge.lm.generate_until(requests, disable_tqdm=True)
    except Exception as error:  # a server may fail in any way
        raise InputError(f"judge {judge.name[:200]} failed: {first_line(error)}") from None
    found = dict(zip(distinct, map(parsed, replies), strict=True))
    return [found[one] for one in asked]


def parsed(reply: Any) -> float | None:
    """What a reply says: nothing but yes or no, in any case, with at most a mark at either end.

    >>> parsed(" Yes."), parsed("no"), parsed("No, it does not"), parsed("")
    (1.0, 0.0, None, None)
    """
    said = REPLY.fullmatch(reply) if isinstance(reply, str) else None
    return None if said is None else float(said[1].lower() == "yes")


def _rendered(lm: LM, prompt: str) -> Any:
    """The prompt as a turn of a dialogue, where the model has a chat template or is a chat server."""
    chat = any(base.__name__ == "LocalChatCompletion" for base in type(lm).__mro__)
    if chat or getattr(getattr(lm, "tokenizer", None), "chat_template", None):
        return lm.apply_chat_template([{"role": "user", "content": prompt}])
    return prompt


def _labels(model: Loaded) -> list[str]:
    return [str(model.model.config.id2label[i]).lower() for i in range(model.model.config.num_labels)]


def _batches(model: Loaded, texts: Sequence[Any], device: torch.device) -> Any:
    model.model.to(device)
    longest = min(MAX_TOKENS, getattr(model.model.config, "max_position_embeddings", MAX_TOKENS))
    for i in range(0, len(texts), ROWS):
        batch = list(texts[i : i + ROWS])
        yield (
            batch,
            model.tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device),
        )
