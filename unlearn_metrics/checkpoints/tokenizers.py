"""Tokenizers of checkpoints: what two of them must have in common, and their chat templates."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer

from unlearn_metrics.checkpoints.files import TOKENIZER_FILES, Checkpoint, read_config
from unlearn_metrics.errors import InputError, first_line

# The date for a chat template that writes today's: the same prompts on any day. It is the one that the templates of
# Llama 3 write where none is given.
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Many published checkpoints come without one: the original's is used."""
    return any((checkpoint.folder / file).is_file() for file in TOKENIZER_FILES[:2])


def check_tokenizers(original: Checkpoint, unlearned: Checkpoint) -> None:
    """InputError if two tokenizers read a text otherwise. Tokens beyond the rows of both embeddings do not count: no
    number depends on them (a pad token that training added, for one)."""
    if not has_tokenizer(unlearned):
        return
    try:
        a, b = (AutoTokenizer.from_pretrained(c.folder) for c in (original, unlearned))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(
            f"the tokenizer of {original.name} or {unlearned.name} cannot be loaded: {first_line(error)}"
        ) from None
    names = f"the tokenizers of {original.name} and {unlearned.name} differ"
    rows = min(read_config(c).get("vocab_size") or len(a) for c in (original, unlearned))
    va, vb = a.get_vocab(), b.get_vocab()
    for token in sorted(va.keys() | vb.keys()):
        if min(va.get(token, rows), vb.get(token, rows)) < rows and va.get(token) != vb.get(token):
            raise InputError(f"{names}: token {token!r} has id {va.get(token)} in one, {vb.get(token)} in the other")
    for what in ("eos_token", "bos_token"):
        if getattr(a, what) != getattr(b, what):
            raise InputError(f"{names}: {what} is {getattr(a, what)!r} in one, {getattr(b, what)!r} in the other")
    parts = [json.loads(t.backend_tokenizer.to_str()) for t in (a, b) if hasattr(t, "backend_tokenizer")]
    if len(parts) == 2:
        for key in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder"):
            if parts[0].get(key) != parts[1].get(key):
                raise InputError(f"{names} in their {key}")


def check_chat_template(checkpoint: Checkpoint) -> None:
    """InputError if its tokenizer has no chat template that renders a question."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer of {checkpoint.name} cannot be loaded: {first_line(error)}") from None
    template = tokenizer.chat_template
    if not template:
        raise InputError(f"{checkpoint.name}'s tokenizer has no chat template; leave out --apply-chat-template")
    if isinstance(template, dict) and "default" not in template:
        raise InputError(
            f"{checkpoint.name}'s tokenizer has several chat templates ({', '.join(sorted(template))}), none of them "
            "called default; rename the one to use"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise InputError(f"{checkpoint.name}'s chat template cannot be used: {first_line(error)}") from None


def other_templates(published: Mapping[str, tuple[Checkpoint, Checkpoint]]) -> list[str]:
    """The models that have a chat template of their own, which is not the original's. published: as in Job."""
    own = {
        model: AutoTokenizer.from_pretrained(checkpoint.folder).chat_template
        for model, (_, checkpoint) in published.items()
        if has_tokenizer(checkpoint)
    }
    return [model for model, template in own.items() if template and template != own["original"]]


def _date_macro() -> str:
    """Jinja that stands in for transformers' strftime_now, which a template can't be given otherwise."""
    day = "form"
    for directive in ("-d", "-m", "e", *"aAbBcdHIjmMpSUwWxXyYZz"):
        day += f".replace('%{directive}', '{TEMPLATE_DATE.strftime(f'%{directive}')}')"
    return "{% macro strftime_now(form) %}{{ " + day + " }}{% endmacro +%}"


DATE_MACRO = _date_macro()


def with_fixed_date(template: Any) -> Any:
    """A tokenizer's chat template, or several by name, that writes TEMPLATE_DATE where it would write today's date."""
    if isinstance(template, dict):
        return {name: with_fixed_date(one) for name, one in template.items()}
    return DATE_MACRO + template if "strftime_now" in template else template
