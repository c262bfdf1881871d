"""A prompt and an answer as tokens, split as lm-eval splits them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lm_eval.api.model import TemplateLM

from unlearn_metrics.errors import InputError


@dataclass(frozen=True)
class Pair:
    """A tokenized request: context (prompt) and answer token ids, as lm-eval's loglikelihood splits them.

    shown: what the model reads in the place of the answer, as many tokens; None: the answer itself.
    """

    context: tuple[int, ...]
    answer: tuple[int, ...]
    shown: tuple[int, ...] | None = None

    @property
    def read(self) -> tuple[int, ...]:
        return self.answer if self.shown is None else self.shown


def encode(
    lm: TemplateLM,
    prompt: str,
    answer: str,
    where: str = "request",
    cut: int | None = None,
    rendered: bool = False,
) -> Pair:
    """Tokenize as lm-eval's `TemplateLM.loglikelihood` does; cut: keep at most this many answer tokens.

    There the answer begins with the white space that ends a prompt. rendered: a chat template wrote the prompt, and its
    white space stays in it where it has tokens of its own (most end in a newline). Raises InputError, naming `where`,
    if prompt or answer has no tokens, or the answer more than the model allows.
    """
    if not answer.strip():
        raise InputError(f"{where}: the answer is empty")
    if prompt:
        context, continuation = lm._encode_pair(prompt, answer)
        if rendered and prompt[-1].isspace():
            own, whole = lm.tok_encode(prompt), lm.tok_encode(prompt + answer)
            if whole[: len(own)] == own:
                context, continuation = own, whole[len(own) :]
    else:
        if lm.prefix_token_id is None:
            raise InputError(f"{where}: it has no prompt, and the tokenizer no token to begin a text with")
        context, continuation = [lm.prefix_token_id], lm.tok_encode(answer, add_special_tokens=False)
        if continuation and continuation[0] == lm.prefix_token_id:
            continuation = continuation[1:]
    continuation = continuation[:cut]
    if not context:
        raise InputError(f"{where}: the prompt {prompt!r} has no tokens")
    if not continuation:
        raise InputError(f"{where}: the answer {answer!r} has no tokens")
    longest = getattr(lm, "max_length", len(continuation))
    if len(continuation) > longest:
        raise InputError(f"{where}: the answer has {len(continuation)} tokens, more than the model's {longest}")
    return Pair(tuple(context), tuple(continuation))


def noisy(lm: TemplateLM, pair: Pair, share: float) -> Pair:
    """The pair with a share of the answer's tokens, at least one, read as others, drawn from the vocabulary.

    Which ones, and as what, follows from the answer alone: a model is asked the same twice, and so are two models.
    """
    rng = random.Random(repr(pair.answer))
    shown, size = list(pair.answer), lm.tokenizer.vocab_size
    for i in rng.sample(range(len(shown)), max(1, round(share * len(shown)))):
        shown[i] = (shown[i] + rng.randrange(1, size)) % size
    return replace(pair, shown=tuple(shown))
