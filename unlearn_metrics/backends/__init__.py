"""The only code that touches a language model: four calls, dispatched on the type of lm-eval's LM.

Their argument is lm-eval Instances, their result one plain JSON value each, in order. They use lm-eval's own
response cache (`--use_cache`) where the user turned it on.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM, hash_args
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import bisection, decoding, encoding, gradient, hf, returned
from unlearn_metrics.backends.similar import fewest_similar
from unlearn_metrics.documents import Document, FlagScores, TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, value
from unlearn_metrics.wording import counted

log = logging.getLogger(__name__)


@dataclass
class ScoreInstance(Instance):
    """A request about an answer. rendered: a chat template wrote its prompt, see encoding.encode. noise: the share of
    the answer's tokens that the model reads otherwise than they are, see encoding.noisy."""

    rendered: bool = field(default=False, repr=False)
    noise: float = field(default=0.0, repr=False)


@dataclass
class GenerateInstance(ScoreInstance):
    """A request that needs decoding, whose reference answer is scored by another request of the same run: its draft.

    said: where the token scores of the text are put, if they are wanted and known.
    """

    draft: Instance | None = field(default=None, repr=False)
    said: dict[encoding.Pair, TokenScores] | None = field(default=None, repr=False)


# generation kwargs that plain greedy decoding allows
PLAIN = {"until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "do_sample", "temperature"}


def name_of(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def token_scores(lm: LM, requests: Sequence[Instance]) -> list[list[list[Any]]]:
    """Token scores, as `to_lists` of TokenScores or FlagScores, for requests with arguments (prompt, answer).

    What the backend can't give is NaN in them; one warning names the metrics that are unscored for it. Raises
    InputError for an empty answer, naming the document, and for an encoder-decoder model.
    """

    def compute(missing: Sequence[Instance]) -> list[list[list[Any]]]:
        scores = _scores(lm, missing)
        if not isinstance(lm, HFLM):  # which tells all
            _warn(lm, scores)
        return [s.to_lists() for s in scores]

    return _cached(lm, "token_scores", requests, compute)


def similar_strength(lm: LM, requests: Sequence[Instance]) -> list[float]:
    """The fewest answer tokens to reveal for requests with arguments (prompt, answer): see similar.fewest_similar.

    NaN from a backend that is not ours to decode with.
    """

    def compute(missing: Sequence[Instance]) -> list[float]:
        if not isinstance(lm, HFLM):
            return [math.nan] * len(missing)
        model = causal(lm)
        pairs = [_encode(model, r) for r in missing]
        drafts = [getattr(r, "draft", None) for r in missing]
        known = {
            pair: TokenScores.from_lists(draft.resps[0])
            for pair, draft, r in zip(pairs, drafts, missing, strict=True)
            if draft is not None and draft.resps and draft.args == r.args
        }
        rest = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        known |= zip(rest, hf.token_scores(model, rest), strict=True)
        fewest = dict(zip(known, fewest_similar(model, list(known), list(known.values())), strict=True))
        return [fewest[pair] for pair in pairs]

    return _cached(lm, "similar_strength", requests, compute)


def gradnorm(lm: LM, requests: Sequence[Instance]) -> list[float]:
    """The size of the loss's gradient for requests with arguments (prompt, answer): see gradient.norms.

    NaN from a backend that has no gradients.
    """

    def compute(missing: Sequence[Instance]) -> list[float]:
        if not isinstance(lm, HFLM):
            log.warning("%s has no gradients: gradnorm is unscored (NaN)", type(lm).__name__)
            return [math.nan] * len(missing)
        model = causal(lm)
        return gradient.norms(model, [_encode(model, r) for r in missing])

    return _cached(lm, "gradnorm", requests, compute)


def _scores(lm: LM, requests: Sequence[Instance]) -> Sequence[TokenScores | FlagScores]:
    if isinstance(lm, HFLM) or getattr(lm, "backend", "causal") != "causal":
        model = causal(lm)
        return hf.token_scores(model, [_encode(model, r) for r in requests])
    if any(map(_noise, requests)):
        raise InputError(f"token_noise takes a model of lm-eval's type hf; {type(lm).__name__} reads what it scores")
    tokenized = isinstance(lm, TemplateLM) and getattr(lm, "tokenizer", None) is not None
    try:
        if not all(isinstance(r.args[0], str) for r in requests):
            raise NotImplementedError  # a chat that the server renders
        if not tokenized:
            return bisection.by_words(lm, [r.args for r in requests])
        pairs = [encoding.encode(lm, r.args[0], r.args[1], name_of(r), rendered=_rendered(r)) for r in requests]
        if _is(lm, "lm_eval.models.openai_completions", "LocalCompletionsAPI"):
            return returned.server_scores(lm, pairs)
        if _is(lm, "lm_eval.models.vllm_causallms", "VLLM"):
            return returned.vllm_scores(lm, pairs)
        return bisection.by_tokens(lm, pairs)
    except NotImplementedError:  # so lm-eval's backends without log-likelihoods say
        return [FlagScores(math.nan, len(r.args[1].split()), math.nan, "word") for r in requests]


def _is(lm: LM, module: str, name: str) -> bool:
    """isinstance, without importing a backend that is not in use."""
    return any((c.__module__, c.__name__) == (module, name) for c in type(lm).__mro__)


UNDER = "leakage under "


def _spoken(fn: Callable[..., Any]) -> str:
    """What a warning calls a metric's function: under other settings of sampling it needs more than its name says."""
    sampling = getattr(fn, "keywords", {}).get("sampling")
    return f"{UNDER}{sampling}" if sampling else fn.__name__


def _warn(lm: LM, scores: Sequence[TokenScores | FlagScores]) -> None:
    """One line: which metrics can't be computed from these scores, and of how many answers."""
    unscored: Counter[str] = Counter()
    for s in scores:
        probe: Document = dict.fromkeys(("answer", "paraphrased_question", "true_answer"), s)
        probe |= {"wrong_answers": [s], "reference": "a", "split": "forget", "revealed": math.nan}
        # by function: metrics of one function with other parameters or another field stand for one another
        names = [
            _spoken(m.fn)
            for name, m in METRICS.items()
            if probe.keys() >= {*m.needs} and math.isnan(value(name, probe))
        ]
        told = dict.fromkeys(name for name in names if not (name.startswith(UNDER) and "leak_at" in names))
        unscored.update(told.keys())
    groups = [
        (n, [name for name in unscored if unscored[name] == n]) for n in sorted({*unscored.values()}, reverse=True)
    ]
    parts = [f"{', '.join(names)} for {n} of {counted(len(scores), 'answer')}" for n, names in groups]
    if any(isinstance(s, FlagScores) and s.unit == "word" and not math.isnan(s.revealed) for s in scores):
        parts.append("extraction_strength counts words, not tokens")
    if parts:
        log.warning("%s does not report what these need, unscored (NaN): %s", type(lm).__name__, "; ".join(parts))


def greedy_until(lm: LM, requests: Sequence[Instance]) -> list[str]:
    """Texts for requests with arguments (prompt, generation kwargs), by greedy decoding.

    What else the kwargs ask for (sampling, beams, penalties), and models that we can't decode, go to lm-eval's own
    generate_until. Sampled text is not cached, as lm-eval has it.
    """

    def compute(missing: Sequence[Instance]) -> list[str]:
        plain = all(r.args[1].keys() <= PLAIN and not r.args[1].get("temperature") for r in missing)
        if sampled or not plain or not isinstance(lm, HFLM) or not decoding.can_decode(causal(lm)):
            return list(lm.generate_until(list(missing)))
        said = next((r.said for r in missing if isinstance(r, GenerateInstance)), None)
        return decoding.greedy(lm, [r.args for r in missing], [_draft(lm, r) for r in missing], said)

    sampled = any(r.args[1].get("do_sample") for r in requests)
    return compute(requests) if sampled else _cached(lm, "generate_until", requests, compute)


def _encode(lm: HFLM, request: Instance) -> encoding.Pair:
    """Tokenized once: the same requests go to every checkpoint that is loaded into the model."""
    known: dict[tuple[str, str, bool, float], encoding.Pair] = lm.__dict__.setdefault("unlearn_encoded", {})
    key = request.args[0], request.args[1], _rendered(request), _noise(request)
    if key not in known:
        pair = encoding.encode(lm, *key[:2], name_of(request), rendered=key[2])
        known[key] = encoding.noisy(lm, pair, key[3]) if key[3] else pair
    return known[key]


def _rendered(request: Instance) -> bool:
    return bool(getattr(request, "rendered", False))


def _noise(request: Instance) -> float:
    return float(getattr(request, "noise", 0))


def causal(lm: LM) -> HFLM:
    if not isinstance(lm, HFLM) or lm.backend != "causal":
        kind = type(lm).__name__ + (f" ({lm.backend})" if isinstance(lm, HFLM) else "")
        raise InputError(f"token scores need a causal model; this one is {kind}")
    return lm


def _draft(lm: HFLM, request: Instance) -> TokenScores | None:
    draft = getattr(request, "draft", None)
    if draft is None or not draft.resps or draft.args[0] != request.args[0] or _noise(draft):
        return None
    prompt = request.args[0]
    # an answer that begins with white space of the prompt comes after another prompt
    if prompt[-1:].isspace() and _encode(lm, draft).context != tuple(lm.tok_encode(prompt)):
        return None
    return TokenScores.from_lists(draft.resps[0])


def _cached(
    lm: LM,
    kind: str,
    requests: Sequence[Instance],
    compute: Callable[[Sequence[Instance]], list[Any]],
) -> list[Any]:
    """lm-eval's CachingLM wraps only its own three request types; the same store serves ours."""
    store = lm.cache_hook.dbdict
    if store is None:
        return compute(requests)
    # a rendered prompt keeps its white space: see encoding.encode
    kinds = [f"{kind} rendered" if _rendered(r) and kind != "generate_until" else kind for r in requests]
    kinds = [f"{kind} noise {_noise(r)}" if _noise(r) else kind for kind, r in zip(kinds, requests, strict=True)]
    hashes = [hash_args(kind, request.args) for kind, request in zip(kinds, requests, strict=True)]
    missing = [request for request, h in zip(requests, hashes, strict=True) if h not in store]
    if missing:
        fresh = iter(compute(missing))
        for h in [h for h in hashes if h not in store]:
            store[h] = next(fresh)
        store.commit()
    return [store[h] for h in hashes]
