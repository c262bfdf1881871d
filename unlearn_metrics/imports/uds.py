"""method_results.json of UDS (arXiv 2605.24614): means of 152 checkpoints of Llama-3.2-1B on TOFU's forget10."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import hmean

from unlearn_metrics.errors import InputError
from unlearn_metrics.imports.log import MAX_LOGS, Log, a_list, an_object, sha256, share, text, unread
from unlearn_metrics.records import store
from unlearn_metrics.scores.composites import UTILITY

BENCHMARK = "tofu_forget10"
ROLES = {"full": "original", "retain": "retain_only"}
# field -> (split, metric); of those in INVERTED the metric is 1 minus it
INVERTED = {
    "one_minus_es": ("forget", "extraction_strength"),
    "one_minus_em": ("forget", "exact_memorization"),
    "one_minus_paraprob": ("forget", "probability_paraphrased_answer"),
    "fluency": ("forget", "gibberish"),
}
SHORT = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}
PARTS = {"probability": "q_prob", "probability_normalised": "q_prob", "rouge": "q_rouge", "truth_ratio": "truth_ratio"}
PLAIN = {f"{SHORT[split]}_{PARTS[metric]}": (split, metric) for split, metric in UTILITY}
FORGOTTEN = ("one_minus_es", "one_minus_em", "one_minus_paraprob", "one_minus_truth")
# the file's own values of what is computed here; the rest is not ours: its privacy and overall have UDS itself in them
COMPARED = {"model_utility": "model_utility", "memorization_score": "mem", "utility_score": "utility_rel"}
DESCRIBING = {"model", "method", "epoch", "alpha", "lr", "is_reference", "utility", *COMPARED.values()}
READ = {*INVERTED, *PLAIN, *FORGOTTEN, *DESCRIBING}
NOTES = (
    "the file holds means, and no documents: no intervals, no numbers of documents, nothing to compute again",
    "the file does not name its benchmark; its authors measured TOFU's forget10",
    "truth_ratio on forget: the file has true / (true + wrong), whose mean does not give that of min(R, 1/R): unknown, "
    "and in memorization_score as it is",
)


def read(path: Path, benchmark: str | None) -> list[Log]:
    """A Log for each checkpoint in the file; `full` is the original, `retain` the retain-only model."""
    if benchmark not in (None, BENCHMARK):
        raise InputError(f"{path} is of {BENCHMARK}, not of {benchmark}")
    raw = store.read_json(path)
    try:
        models = [an_object(one, "a model") for one in a_list(an_object(raw, "it").get("models"), "models", MAX_LOGS)]
        names = [text(one.get("model"), "model") or "" for one in models]
        if not all(0 < len(name) <= 200 for name in names):
            raise InputError("a model has no name of at most 200 characters")
        if len({*names}) < len(names):
            raise InputError("two models have the same name")
        if not models:
            raise InputError("it holds no models")
        originals = {_key(one.get("epoch")): _utility(one, "full") for one in models if one["model"] == "full"}
        given = raw.get("full_utility")
        for epoch, value in an_object({} if given is None else given, "full_utility").items():
            originals[epoch] = share(value, f"full_utility, {epoch[:40]}")
        return [_log(path, sha256([path]), one, originals) for one in models]
    except InputError as error:
        raise InputError(f"{path} is no log of uds: {error}") from None


def _log(path: Path, digest: str, model: Mapping[str, Any], originals: Mapping[Any, float | None]) -> Log:
    name = model["model"]
    means: dict[str, dict[str, float]] = {}
    for field, (split, metric) in (INVERTED | PLAIN).items():
        value = share(model.get(field), f"{name[:80]}, {field}")
        if value is not None:
            means.setdefault(split, {})[metric] = 1 - value if field in INVERTED else value
    if not means:
        raise InputError(f"{name[:80]} has none of the metrics that such a log has")
    composites = {}
    parts = [means.get(split, {}).get(metric) for split, metric in UTILITY]
    composites["model_utility"] = _harmonic(parts)
    composites["memorization_score"] = _harmonic([share(model.get(f), f"{name[:80]}, {f}") for f in FORGOTTEN])
    mine, start = _utility(model, name), originals.get(_key(model.get("epoch")))
    composites["utility_score"] = mine / start if mine is not None and start else None
    composites["tradeoff_score"] = _harmonic([composites[part] for part in ("memorization_score", "utility_score")])
    known = {composite: value for composite, value in composites.items() if value is not None}
    notes = [*NOTES, *unread(key for key in model if key not in READ)]
    for composite, value in known.items():
        said = model.get(COMPARED.get(composite, ""))
        if composite == "utility_score" and said == 1 and value > 1:
            notes.append("utility_score: the file cuts it at 1; here it is as it comes out of its parts")
        elif isinstance(said, float) and not abs(said - value) <= 1e-6:
            notes.append(f"{composite}: {said:.6g} in the file, {value:.6g} from its parts")
    return Log(
        path,
        digest,
        {},
        name=name,
        role=ROLES.get(name, "unlearned"),
        benchmark=BENCHMARK,
        notes=notes,
        composites=known,
        means=means,
    )


def _key(epoch: Any) -> Any:
    return epoch if isinstance(epoch, (str, int, float)) else None


def _utility(model: Mapping[str, Any], name: str) -> float | None:
    """Harmonic mean of model utility and fluency."""
    nine = [share(model.get(field), f"{name[:80]}, {field}") for field in PLAIN]
    return _harmonic([_harmonic(nine), share(model.get("fluency"), f"{name[:80]}, fluency")])


def _harmonic(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return float(hmean(known)) if len(known) == len(parts) else None
