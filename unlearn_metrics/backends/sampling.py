"""Several sampled texts for a prompt. lm-eval drops requests that are alike, so this asks transformers itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.errors import InputError

ROWS = 32  # samples that are decoded at once


def sample(
    lm: HFLM,
    prompt: str,
    count: int,
    limit: int,
    until: Sequence[str],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """So many independent samples after a prompt, each up to end-of-sequence, a stop, or the limit of new tokens.

    No top-k and no penalties, whatever the checkpoint's generation_config says. The same seed gives the same texts on
    the same machine. InputError if the limit leaves no room for a prompt.
    """
    room = lm.max_length - limit
    if room <= 0:
        raise InputError(f"{limit} new tokens leave no room for a prompt in the model's {lm.max_length} tokens")
    ids = (lm.tok_encode(prompt) or [lm.prefix_token_id])[-room:]
    inputs = torch.tensor([ids], device=lm.device)
    torch.manual_seed(seed)
    texts: list[str] = []
    while len(texts) < count:
        rows = min(ROWS, count - len(texts))
        with torch.no_grad():
            found = lm.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                repetition_penalty=1.0,
                num_return_sequences=rows,
                max_new_tokens=limit,
                pad_token_id=lm.tokenizer.pad_token_id or lm.eot_token_id,
            )
        texts += [lm.tok_decode(row[len(ids) :].tolist(), skip_special_tokens=True) for row in found]
    return [_cut(text, until) for text in texts]


def _cut(text: str, until: Sequence[str]) -> str:
    """Up to the first stop."""
    return text[: min((text.find(stop) for stop in until if stop and stop in text), default=len(text))]
