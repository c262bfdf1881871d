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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_metrics import __version__
from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import METRICS, available
from unlearn_metrics.record import SCHEMA, CheckpointInfo, Control, Imported, RunRecord, Score
from unlearn_metrics.records import foreign_logs, signature, store
from unlearn_metrics.records.foreign_logs import FACTS
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores.composites import questions
from unlearn_metrics.scores.scoring import score_all

BENCHMARKS = ("tofu_forget01", "tofu_forget05", "tofu_forget10", "muse_news", "muse_books")
FORGET_ROWS = {40: "tofu_forget01", 200: "tofu_forget05", 400: "tofu_forget10"}
AGREE = 1e-6  # a computed value is the log's own; relative above 1
SOURCES = {"tofu": "tofu-authors", "open-unlearning": "open-unlearning"}
EPSILON = "truth_ratio, probability_normalised: the log adds 1e-10 to the denominator; here nothing is added"
FLOOR = (
    "extraction_strength: as logged, where a total miss scores 1/n; this package gives 0, but the log does not hold n"
)


def import_log(
    kind: str, log: Path, retain_log: Path | None = None, name: str | None = None, benchmark: str | None = None
) -> tuple[RunRecord, Observations]:
    """A record and its documents from a log: of model "unlearned", and of "retain_only" if its log is given.

    kind: a key of SOURCES. name: what tables call the checkpoint; default: from the file's name. benchmark: default:
    from the number of forget questions. Raises InputError for what is no such log, and for a retain-only model that
    was not asked what the other was.
    """
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise InputError(f"unknown benchmark '{benchmark}'; there are {', '.join(BENCHMARKS)}")
    if name is not None and len(name) > 1_000:
        raise InputError(f"a name of {len(name):,} characters is too long")
    files = {"unlearned": log} | ({} if retain_log is None else {"retain_only": retain_log})
    observations: Observations = {}
    as_logged: dict[str, None] = {}
    notes: dict[str, None] = {}
    raws = {}
    for model, file in files.items():
        raws[model] = raw = store.read_json(file)
        try:
            observations[model], read = foreign_logs.documents(kind, raw, benchmark)
        except InputError as error:
            raise InputError(f"{file} is no log of {kind}: {error}") from None
        for split, documents in observations[model].items():
            kept, said = _settle(documents, f"{model}, {split}")
            as_logged |= dict.fromkeys(kept)
            notes |= dict.fromkeys(said)
        notes |= dict.fromkeys(read)
    ratios = [note for note in notes if note.startswith(("truth_ratio (", "probability_norm"))]
    if kind == "open-unlearning" and any("another value in the log" in note for note in ratios):
        notes[EPSILON] = None
    if kind == "open-unlearning" and "extraction_strength" in as_logged:
        notes[FLOOR] = None
    benchmark = _benchmark(benchmark, observations["unlearned"], log)
    if retain_log is not None:
        notes |= dict.fromkeys(_same_questions(observations, retain_log))
        notes[f"retain-only model: {_clean(retain_log.name)}, sha256 {_sha256(retain_log)}"] = None
    wanted = {m: {split: _metrics(split, d) for split, d in splits.items()} for m, splits in observations.items()}
    scores, composites = score_all(observations, wanted, seed=0, benchmark=benchmark)
    notes |= dict.fromkeys(_summary(raws["unlearned"], composites["unlearned"]))
    control = Control(method="none", alpha=1.0)
    imported = Imported(
        format=kind,
        file=_clean(log.name),
        sha256=_sha256(log),
        as_logged=[metric for metric in METRICS if metric in as_logged],
        notes=list(notes),
    )
    hashes = {split: _hash(_texts(documents)) for split, documents in observations["unlearned"].items()}
    names = {"unlearned": _clean(name or _name(log))} | (
        {} if retain_log is None else {"retain_only": _name(retain_log)}
    )
    record = RunRecord(
        schema=SCHEMA,
        signature=signature.make(benchmark, _signature(kind, observations["unlearned"], hashes)),
        name=names["unlearned"],
        benchmark=benchmark,
        verdict=verdict(scores, control, imported=imported),
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


# --- computed, or as logged


def _settle(documents: Sequence[Document], where: str) -> tuple[list[str], list[str]]:
    """Decide for each logged metric whether its values are computed or stay as logged: (as logged, notes).

    Computed where every document allows it and the log agrees. Where it does not agree: losses are what the peer's
    own formula takes too, so ours stands and the difference is said; texts may have been cut or cleaned for the log,
    so the logged value stands. What follows from losses is computed wherever there are some, and unscored elsewhere:
    after a document without a result, OpenUnlearning logs all later ones a row too early.
    """
    as_logged, notes = [], []
    for metric in [name for name in METRICS if any(name in d.get("logged", ()) for d in documents)]:
        having = [d for d in documents if metric in d.get("logged", ())]
        both = [d for d in having if METRICS[metric].can_score(d)]
        found = [METRICS[metric](d) for d in both]
        gaps = np.array([_gap(mine, d["logged"][metric]) for mine, d in zip(found, both, strict=True)])
        off, without = int((~(gaps <= AGREE)).sum()), len(having) - len(both)
        of_losses = METRICS[metric].loss_is_enough and METRICS[metric].facet == "memorization"
        ours = bool(both) and (of_losses or (off == 0 and not without))
        if off:
            stays = "computed here" if ours else "as logged"
            notes.append(
                f"{metric} ({where}): {off} of {len(gaps)} documents have another value in the log than what they "
                f"give here, by at most {np.nanmax(gaps, initial=0):.2g}; {stays}"
            )
        if not ours:
            as_logged.append(metric)
            continue
        if without:
            notes.append(f"{metric} ({where}): {without} of {len(having)} documents have no losses: unscored")
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
    mine, theirs = (observations[model].get("forget", []) for model in ("unlearned", "retain_only"))
    if not mine or not theirs:
        return
    told = [any("question" in d or "reference" in d for d in documents) for documents in (mine, theirs)]
    if not any(told):  # rows are all that is known of them
        if [d["id"] for d in mine] != [d["id"] for d in theirs]:
            raise InputError(
                f"{file} is of another forget set: {len(theirs)} questions, where the other log has {len(mine)}, and "
                "neither holds their texts"
            )
        yield "forget: the logs hold no texts; row by row they are taken to be of the same questions"
        return
    if not all(told):
        raise InputError(
            f"{file} can't be compared with the log: only one of them holds the texts of the questions (*_Q_A_ROUGE)"
        )
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
    """Where the log's own value of several splits or models is not what its documents give."""
    for name, score in composites.items():
        logged = raw.get(name.replace("auc_", "mia_"))
        value = logged.get("agg_value") if isinstance(logged, dict) else None
        if isinstance(value, float) and math.isfinite(value) and score.value is not None:
            scale = min(1.0, abs(value)) if name == "forget_quality" else 1.0
            if abs(value - score.value) > AGREE * max(scale, abs(value)):
                yield f"{name}: {value:.4g} in the log, {score.value:.4g} from its documents"


# --- what identifies the record


def _benchmark(given: str | None, splits: Mapping[str, Sequence[Document]], file: Path) -> str:
    """The benchmark as given, else by the number of forget questions."""
    rows = len(splits.get("forget", ()))
    known = "forget_verbmem" not in splits and "forget_privleak" not in splits
    if given is None and (not known or rows not in FORGET_ROWS):
        raise InputError(f"{file} does not say which benchmark it is of; pass --benchmark ({', '.join(BENCHMARKS)})")
    most = next((n for n, name in FORGET_ROWS.items() if name == given), rows)
    if rows > most:
        raise InputError(f"{file} has {rows} forget questions; {given} has {most}")
    return given or FORGET_ROWS[rows]


# the names that files and folders of such logs have in every project
USUAL = re.compile(r"|(TOFU|MUSE)_EVAL|eval_log_aggregated|evals?(_.*)?|ds_size\d+|saves|unlearn|results?|logs?")


def _name(file: Path) -> str:
    """A checkpoint's name from where its log lies: the file's own, or its folder's where all files are named so; of a
    checkpoint-N with the run's that it is of."""
    path = file.resolve()
    names = [re.sub(r"\.?(eval_log_aggregated)?\.json$", "", path.name), *(folder.name for folder in path.parents)]
    own = [name for name in names if not USUAL.fullmatch(name)]
    if len(own) > 1 and re.fullmatch(r"checkpoint-\d+", own[0]):
        return f"{own[1]}/{own[0]}"[-200:]
    return own[0][:200] if own else "unknown"


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
        "src": SOURCES[kind],
        "v": __version__,
    }


def _texts(documents: Sequence[Document]) -> Iterable[str]:
    return (f"{d['id']}\0{d.get('question')}\0{d.get('reference')}" for d in documents)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
