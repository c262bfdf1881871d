"""Logs that other evaluators left behind, as records: the TOFU authors' and OpenUnlearning's. No model, no torch.

What a log tells of each document becomes a document of ours: texts, mean losses (MeanLoss) and metric values
("logged"). A metric is computed again wherever the log holds what it takes, and compared with the log's own value;
only what can't be computed stays as logged. What the log does not tell stays unknown. docs/import.md has the details.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_metrics import __version__, report, runs, signature
from unlearn_metrics.composites import questions
from unlearn_metrics.metrics import ATTACKS, METRICS, available
from unlearn_metrics.types import (
    CheckpointInfo,
    Control,
    Document,
    Imported,
    InputError,
    MeanLoss,
    Observations,
    RunRecord,
    Score,
)

# A split as a log has it: field of a document ("logged": metric) -> row -> value. None = the log has no such value.
Rows = dict[int, Any]
Split = dict[str, Any]

BENCHMARKS = ("tofu_forget01", "tofu_forget05", "tofu_forget10", "muse_news", "muse_books")
FORGET_ROWS = {40: "tofu_forget01", 200: "tofu_forget05", 400: "tofu_forget10"}
AUTHOR = 20  # consecutive questions about one author, in every split of TOFU that is about authors
AGREE = 1e-6  # a computed value is the log's own; relative above 1
# of a log from anyone: more is no log of these benchmarks, and resampling, attacks and ROUGE grow with it
MAX_DOCUMENTS, MAX_TEXT, MAX_NUMBER = 5_000, 100_000, 3.4e38

TOFU_SPLITS = {
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
    "eval_log_forget.json": "forget",
}
OPEN_UNLEARNING_SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
FACTS = ("real_authors", "world_facts")
MUSE_TEXTS = {
    "forget_knowmem_ROUGE": "forget",
    "retain_knowmem_ROUGE": "retain",
    "forget_verbmem_ROUGE": "forget_verbmem",
}
# how a chat template, or the lack of one, wraps a question, once special tokens are gone: what is before, what is after
TEMPLATES = (("[INST]", "[/INST]"), ("user\n", "assistant"), ("user\n", "model"), ("Question:", "Answer:"))
RATIO = "truth_ratio: the log has R = wrong / true; here min(R, 1/R) on the forget split and max(0, 1 - R) elsewhere"
EPSILON = "truth_ratio, probability_normalised: the log adds 1e-10 to the denominator; here nothing is added"
FLOOR = (
    "extraction_strength: as logged, where a total miss scores 1/n; this package gives 0, but the log does not hold n"
)


@dataclass(frozen=True)
class Format:
    """How an evaluator's log is read: raw JSON and whether it is of MUSE -> splits, and what was left unread."""

    source: str
    read: Callable[[Mapping[str, Any], bool], tuple[dict[str, Split], list[str]]]


def import_log(
    kind: str, log: Path, retain_log: Path | None = None, name: str | None = None, benchmark: str | None = None
) -> tuple[RunRecord, Observations]:
    """A record and its documents from a log: of model "uncontrolled", and of "retain_only" if its log is given.

    kind: a key of FORMATS. name: what tables call the checkpoint; default: from the file's name. benchmark: default:
    from the number of forget questions. Raises InputError for what is no such log, and for a retain-only model that
    was not asked what the other was.
    """
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise InputError(f"unknown benchmark '{benchmark}'; there are {', '.join(BENCHMARKS)}")
    if name is not None and len(name) > 1_000:
        raise InputError(f"a name of {len(name):,} characters is too long")
    files = {"uncontrolled": log} | ({} if retain_log is None else {"retain_only": retain_log})
    observations: Observations = {}
    as_logged: dict[str, None] = {}
    notes: dict[str, None] = {}
    raws = {}
    for model, file in files.items():
        raws[model] = raw = runs.read_json(file)
        if not isinstance(raw, dict):
            raise InputError(f"{file} is no log of {kind}: it holds no object")
        muse = (benchmark or "").startswith("muse") or any(key in raw for key in MUSE_TEXTS)
        try:
            splits, unread = FORMATS[kind].read(raw, muse)
            found = {split: _documents(split, fields, muse) for split, fields in splits.items()}
            observations[model] = {split: documents for split, documents in found.items() if documents}
        except InputError as error:
            raise InputError(f"{file} is no log of {kind}: {error}") from None
        if not observations[model]:
            raise InputError(f"{file} is no log of {kind}: it has none of the metrics that such a log has")
        for split, documents in observations[model].items():
            kept, said = _settle(documents, f"{model}, {split}")
            as_logged |= dict.fromkeys(kept)
            notes |= dict.fromkeys(said)
        if "truth_ratio" in as_logged or any("true_answer" in d for d in observations[model].get("forget", ())):
            notes[RATIO] = None
        if unread:
            notes[f"not imported: {', '.join(unread)}"[:2000]] = None
    if kind == "open-unlearning" and any(note.startswith(("truth_ratio (", "probability_norm")) for note in notes):
        notes[EPSILON] = None
    if kind == "open-unlearning" and "extraction_strength" in as_logged:
        notes[FLOOR] = None
    if benchmark is None:
        benchmark = _benchmark(observations["uncontrolled"], log)
    if retain_log is not None:
        notes |= dict.fromkeys(_same_questions(observations, retain_log))
        notes[f"retain-only model: {_clean(retain_log.name)}, sha256 {_sha256(retain_log)}"] = None
    wanted = {m: {split: _metrics(split, d) for split, d in splits.items()} for m, splits in observations.items()}
    scores, composites = runs.score_all(observations, wanted, seed=0)
    notes |= dict.fromkeys(_summary(raws["uncontrolled"], composites["uncontrolled"]))
    control = Control(method="none", alpha=1.0)
    imported = Imported(
        format=kind,
        file=_clean(log.name),
        sha256=_sha256(log),
        as_logged=[metric for metric in METRICS if metric in as_logged],
        notes=list(notes),
    )
    hashes = {split: _hash(_texts(documents)) for split, documents in observations["uncontrolled"].items()}
    names = {"unlearned": _clean(name or _name(log))} | (
        {} if retain_log is None else {"retain_only": _name(retain_log)}
    )
    record = RunRecord(
        schema=runs.SCHEMA,
        signature=signature.make(benchmark, _signature(kind, observations["uncontrolled"], hashes)),
        name=names["unlearned"],
        benchmark=benchmark,
        verdict=report.verdict(scores, control, imported),
        control=control,
        scores=scores,
        composites=composites,
        checkpoints={role: CheckpointInfo(known, None, None, None, None) for role, known in names.items()},
        data=hashes,
        task_versions={},
        prompts={},
        settings={"seed": 0},
        software={},
        git=None,
        imported=imported,
        work={},
        wall_seconds=None,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return record, observations


# --- the two formats


def _tofu(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """eval_log_aggregated.json: file of a task -> column -> row -> value."""
    splits: dict[str, Split] = {}
    for key, split in TOFU_SPLITS.items():
        if key not in raw:
            continue
        log = _object(raw[key], key)
        texts = _column(log, "generated_text", key, _triple)
        splits[split] = {
            "answer": _column(log, "avg_gt_loss", key, _loss),
            "true_answer": _column(log, "avg_paraphrased_loss", key, _loss),
            "wrong_answers": _column(log, "average_perturb_loss", key, _losses),
            **{name: _part(texts, i) for i, name in enumerate(("prompt", "generation", "reference"))},
            "logged": {
                "rouge": _column(log, "rougeL_recall", key, _number),
                "truth_ratio": _column(log, "truth_ratio", key, _bounded(split)),
            },
        }
    return splits, [repr(key)[:80] for key in raw if key not in TOFU_SPLITS][:20]


def _open_unlearning(raw: Mapping[str, Any], muse: bool) -> tuple[dict[str, Split], list[str]]:
    """TOFU_EVAL.json and MUSE_EVAL.json: metric -> value_by_index -> row -> what the metric kept of the document."""
    splits: dict[str, Split] = {}
    read = {"forget_quality", "model_utility", "privleak"}

    def take(key: str, split: str, field: str, part: str, of: Callable[[Any, str], Any], logged: bool = False) -> None:
        """Field `part` of a metric's documents, as `of` reads it, into a split's field or logged metric."""
        if key in raw:
            read.add(key)
            fields = splits.setdefault(split, {"logged": {}})
            (fields["logged"] if logged else fields)[field] = _values(raw[key], key, part, of)

    for short, split in OPEN_UNLEARNING_SPLITS.items():
        if muse:
            break
        take(f"{short}_Q_A_Prob", split, "answer", "avg_loss", _loss)
        take(f"{short}_Q_A_Prob", split, "probability", "prob", _number, True)
        take(f"{short}_Q_A_PARA_Prob", split, "true_answer", "avg_loss", _loss)
        take(f"{short}_Q_A_PARA_Prob", split, "probability_paraphrased_answer", "prob", _mean, True)
        take(f"{short}_Q_A_PERT_Prob", split, "wrong_answers", "avg_loss", _losses)
        take(f"{short}_Q_A_PERT_Prob", split, "probability_wrong", "prob", _mean, True)
        take(f"{short}_Q_A_Prob_normalised", split, "probability_normalised", "prob", _number, True)
        for key in (f"{short}_Truth_Ratio", f"{short}_truth_ratio"):
            take(key, split, "truth_ratio", "score", _bounded(split), True)
        take(f"{short}_Q_A_ROUGE", split, "rouge", "rougeL_recall", _number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(f"{short}_Q_A_ROUGE", split, field, part, _text)
    for key, split in MUSE_TEXTS.items():
        take(key, split, "rouge", "rougeL_recall", _number, True)
        take(key, split, "rouge_f1", "rougeL_f1", _number, True)
        for field, part in (("prompt", "input"), ("reference", "ground_truth"), ("generation", "generation")):
            take(key, split, field, part, _text)
    for metric in ("extraction_strength", "exact_memorization"):
        take(metric, "forget_verbmem" if muse else "forget", metric, "score", _number, True)
        take(f"retain_{metric}", "retain", metric, "score", _number, True)
    for attack in ATTACKS:
        key = f"mia_{attack}"
        for side in ("forget", "holdout") if key in raw else ():
            read.add(key)
            fields = splits.setdefault(f"{side}_privleak" if muse else side, {"logged": {}})
            values = _values(_object(raw[key], key).get(side), f"{key}.{side}", "score", _number)
            fields["logged"][attack] = values
            if attack == "loss" and not fields.get("answer"):
                fields["answer"] = _values(_object(raw[key], key).get(side), f"{key}.{side}", "score", _loss)
    return splits, [repr(key)[:80] for key in raw if key not in read][:20]


FORMATS = {"tofu": Format("tofu-authors", _tofu), "open-unlearning": Format("open-unlearning", _open_unlearning)}


# --- what is in a log, from anyone


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object")
    return value


def _rows(value: Any, where: str) -> dict[int, Any]:
    """Row -> value, in the order of the data file."""
    found = _object(value, where)
    if len(found) > MAX_DOCUMENTS:
        raise InputError(f"{where} has more than {MAX_DOCUMENTS:,} documents")
    for key in found:
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
            raise InputError(f"{where}: {key[:40]!r} is no row number")
    return {int(key): found[key] for key in sorted(found, key=int)}


def _column(log: Mapping[str, Any], name: str, where: str, of: Callable[[Any, str], Any]) -> Rows:
    if name not in log:
        return {}
    return {
        row: of(value, f"{where}, {name}, row {row}") for row, value in _rows(log[name], f"{where}, {name}").items()
    }


def _values(metric: Any, where: str, part: str, of: Callable[[Any, str], Any]) -> Rows:
    """value_by_index of a metric's log, one part of each document. A document without a result is None."""
    result: Rows = {}
    for row, value in _rows(_object(metric, where).get("value_by_index", {}), f"{where}, value_by_index").items():
        found = None if value is None else _object(value, f"{where}, row {row}").get(part)
        result[row] = of(found, f"{where}, row {row}, {part}")
    return result


def _number(value: Any, where: str) -> float | None:
    """A finite number; None where the log has none, or NaN, or infinity: not scored."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} is no number")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise InputError(f"{where} is out of range")
    return float(value)


def _loss(value: Any, where: str) -> MeanLoss | None:
    """A mean loss; of several answers (OpenUnlearning keeps a list), the mean."""
    loss = _mean(value, where)
    if loss is not None and loss < 0:
        raise InputError(f"{where} is no mean loss: it is negative")
    return None if loss is None else MeanLoss(loss)


def _losses(value: Any, where: str) -> list[MeanLoss] | None:
    losses = [_loss(item, where) for item in (value if isinstance(value, list) else [value])]
    known = [loss for loss in losses if loss is not None]
    return known if known and len(known) == len(losses) else None


def _mean(value: Any, where: str) -> float | None:
    if not isinstance(value, list):
        return _number(value, where)
    numbers = [_number(item, where) for item in value]
    known = [number for number in numbers if number is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def _bounded(split: str) -> Callable[[Any, str], float | None]:
    """A reader of R = wrong / true that gives the form that is better when higher, as metrics.truth_ratio does."""

    def read(value: Any, where: str) -> float | None:
        ratio = _number(value, where)
        if ratio is None or ratio < 0:
            return None
        return min(ratio, 1 / ratio if ratio > 1 else 1.0) if split == "forget" else max(0.0, 1 - ratio)

    return read


def _text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise InputError(f"{where} is no text of at most {MAX_TEXT:,} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{where} holds half a character (a lone surrogate)")
    return value


def _triple(value: Any, where: str) -> list[str | None]:
    if not isinstance(value, list) or len(value) != 3:
        raise InputError(f"{where} is no list of prompt, generation and reference")
    return [_text(item, where) for item in value]


def _part(rows: Rows, index: int) -> Rows:
    return {row: value[index] for row, value in rows.items()}


# --- documents


def _documents(split: str, fields: Split, muse: bool) -> list[Document]:
    """The documents of a split, in order of their rows."""
    columns = {name: values for name, values in fields.items() if name != "logged"}
    if split in FACTS and not columns.get("true_answer"):
        columns["true_answer"] = columns.get("answer", {})  # no paraphrase there: the answer itself is the true one
    rows = sorted({row for values in (*columns.values(), *fields["logged"].values()) for row in values})
    if len(rows) > MAX_DOCUMENTS:
        raise InputError(f"split {split} has more than {MAX_DOCUMENTS:,} documents")
    size = AUTHOR if not muse and split in ("forget", "retain", "holdout") else 1
    documents: list[Document] = []
    for row in rows:
        document: Document = {"id": row, "split": split, "cluster": row // size}
        document |= {name: values[row] for name, values in columns.items() if values.get(row) is not None}
        if "prompt" in document:
            document["question"] = question(document["prompt"])
        logged = {name: values[row] for name, values in fields["logged"].items() if values.get(row) is not None}
        documents.append(document | ({"logged": logged} if logged else {}))
    return documents


def question(prompt: str) -> str:
    """What a prompt asks: the last question in it, without template, examples and system prompt."""
    for before, after in TEMPLATES:
        _, found, rest = prompt.rpartition(before)
        if found and rest.rstrip().endswith(after):
            return rest.rstrip().removesuffix(after).strip()
    return prompt.strip().removeprefix("Question:").strip()


def _settle(documents: Sequence[Document], where: str) -> tuple[list[str], list[str]]:
    """Decide for each logged metric whether its values are computed or stay as logged: (as logged, notes).

    Computed where every document allows it and the log agrees. Where it does not agree: losses are what the peer's
    own formula takes too, so ours stands and the difference is said; texts may have been cut or cleaned for the log,
    so the logged value stands.
    """
    as_logged, notes = [], []
    for metric in [name for name in METRICS if any(name in d.get("logged", ()) for d in documents)]:
        having = [d for d in documents if metric in d.get("logged", ())]
        computable = all(METRICS[metric].can_score(d) for d in having)
        gaps = np.array([_gap(METRICS[metric](d), d["logged"][metric]) for d in having if computable])
        off = int((~(gaps <= AGREE)).sum())
        ours = computable and (off == 0 or (METRICS[metric].loss_is_enough and METRICS[metric].facet == "memorization"))
        if off:
            stays = "computed here" if ours else "as logged"
            notes.append(
                f"{metric} ({where}): {off} of {len(gaps)} documents have another value in the log than what they "
                f"give here, by at most {np.nanmax(gaps, initial=0):.2g}; {stays}"
            )
        if not ours:
            as_logged.append(metric)
            continue
        for document in having:
            del document["logged"][metric]
    for document in documents:
        if not document.get("logged", True):
            del document["logged"]
    return as_logged, notes


def _metrics(split: str, documents: Sequence[Document]) -> list[str]:
    """What the documents give. The true answer of a fact is no paraphrase (see _documents)."""
    return [m for m in available(documents) if m != "probability_paraphrased_answer" or split not in FACTS]


def _gap(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(1, abs(theirs))


def _same_questions(observations: Observations, file: Path) -> Iterable[str]:
    """Leave the retain-only model what the other was asked too; say how much was left out."""
    mine, theirs = (observations[model].get("forget", []) for model in ("uncontrolled", "retain_only"))
    if not mine or not theirs:
        return
    asked = dict(zip(questions(theirs), theirs, strict=True))
    wanted = questions(mine)
    missing = [key for key in wanted if key not in asked]
    if missing:
        raise InputError(
            f"{file} is of another forget set: it lacks {len(missing)} of {len(wanted)} questions, "
            f"such as {missing[0][:80]!r}; forget quality compares answers to the same questions"
        )
    observations["retain_only"]["forget"] = [asked[key] for key in wanted]
    if len(theirs) > len(wanted):
        yield f"forget (retain_only): {len(theirs) - len(wanted)} questions that the other was not asked are left out"


def _summary(raw: Mapping[str, Any], composites: Mapping[str, Score]) -> Iterable[str]:
    """Where the log's own figure of several splits or models is not what its documents give."""
    for name, score in composites.items():
        logged = raw.get(name.replace("auc_", "mia_"))
        value = logged.get("agg_value") if isinstance(logged, dict) else None
        if isinstance(value, float) and math.isfinite(value) and score.value is not None:
            scale = min(1.0, abs(value)) if name == "forget_quality" else 1.0
            if abs(value - score.value) > AGREE * max(scale, abs(value)):
                yield f"{name}: {value:.4g} in the log, {score.value:.4g} from its documents"


# --- what identifies the record


def _benchmark(splits: Mapping[str, Sequence[Document]], file: Path) -> str:
    rows = len(splits.get("forget", ()))
    if "forget_verbmem" in splits or "forget_privleak" in splits or rows not in FORGET_ROWS:
        raise InputError(f"{file} does not say which benchmark it is of; pass --benchmark ({', '.join(BENCHMARKS)})")
    return FORGET_ROWS[rows]


def _name(file: Path) -> str:
    """A checkpoint's name from where its log lies: the file's own, or its folder's where all files are named so."""
    path = file.resolve()
    candidates = [re.sub(r"\.?(eval_log_aggregated)?\.json$", "", path.name), *(folder.name for folder in path.parents)]
    usual = r"|(TOFU|MUSE)_EVAL|eval_log_aggregated|evals?(_.*)?|saves"
    return next((name for name in candidates if not re.fullmatch(usual, name)), "unknown")[:200]


def _clean(name: str) -> str:
    """Names of files need not be text: bytes that are none become question marks."""
    return name.encode(errors="replace").decode()


def _signature(kind: str, splits: Mapping[str, Sequence[Document]], hashes: Mapping[str, str]) -> dict[str, str]:
    firsts = [str(documents[0]["prompt"]) for documents in splits.values() if documents and "prompt" in documents[0]]
    return {
        **({"prompt": _hash(firsts)[:8]} if firsts else {}),
        "eos": "prob+",
        "ctl": "none",
        "data": _hash([*hashes, *hashes.values()])[:8],
        "seed": "0",
        "src": FORMATS[kind].source,
        "v": __version__,
    }


def _texts(documents: Sequence[Document]) -> Iterable[str]:
    return (f"{d['id']}\0{d.get('question')}\0{d.get('reference')}" for d in documents)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
