"""Logs of other evaluators as runs. No model, no torch.

What a log tells of each document becomes a document of ours: texts, mean losses (MeanLoss) and metric values
("logged"). A metric is computed again wherever the log holds what it takes, and compared with the log's own value;
only what can't be computed stays as logged. What the log does not tell stays unknown. docs/import.md has the details.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unlearn_metrics import __version__, places
from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import harness, muse, open_unlearning, tofu, uds
from unlearn_metrics.imports.log import FACTS, Log, clean, hashed
from unlearn_metrics.metrics import METRICS, available
from unlearn_metrics.record import SCHEMA, CheckpointInfo, Control, Imported, RunRecord, Score
from unlearn_metrics.records import signature
from unlearn_metrics.records.verdict import verdict
from unlearn_metrics.scores.models import questions
from unlearn_metrics.scores.scoring import score_all


@dataclass(frozen=True)
class Importer:
    """read: (path, benchmark) -> a Log for each checkpoint. source: `src` of the signature. conventions: (notes, what
    is as logged) -> notes on what the evaluator computes otherwise. benchmarks: those it can be of; None: any."""

    read: Callable[[Path, str | None], list[Log]]
    source: str
    benchmarks: tuple[str, ...] | None
    conventions: Callable[[Sequence[str], Sequence[str]], list[str]] = lambda notes, as_logged: []


TOFU, MUSE = ("tofu_forget01", "tofu_forget05", "tofu_forget10"), ("muse_news", "muse_books")
IMPORTERS = {
    "tofu": Importer(tofu.read, "tofu-authors", (*TOFU, *MUSE)),
    "open-unlearning": Importer(open_unlearning.read, "open-unlearning", (*TOFU, *MUSE), open_unlearning.conventions),
    "muse": Importer(muse.read, "muse-authors", MUSE),
    "lm-eval": Importer(harness.read, "lm-eval", None),
    "uds": Importer(uds.read, "uds", (uds.BENCHMARK,)),
}
FORGET_ROWS = {40: "tofu_forget01", 200: "tofu_forget05", 400: "tofu_forget10"}
AGREE = 1e-6  # a computed value is the log's own; relative above 1
Imports = list[tuple[RunRecord, Observations]]


def import_log(
    kind: str,
    log: Path,
    retain_log: Path | None = None,
    name: str | None = None,
    benchmark: str | None = None,
    original_log: Path | None = None,
) -> tuple[RunRecord, Observations]:
    """The run of a log of one checkpoint, see `import_logs`. InputError for logs of several."""
    found = import_logs(kind, log, retain_log, name, benchmark, original_log)
    if len(found) > 1:
        raise InputError(f"{log} holds logs of {len(found)} checkpoints")
    return found[0]


def import_logs(
    kind: str,
    log: Path,
    retain_log: Path | None = None,
    name: str | None = None,
    benchmark: str | None = None,
    original_log: Path | None = None,
) -> Imports:
    """A record and its documents for each checkpoint that a log, or a folder of logs, is about.

    Each is the model "unlearned" of its record. "original" and "retain_only" beside it are of the logs given, else
    those that the folder itself has.

    Args:
        kind: a key of IMPORTERS.
        log: a file or folder.
        retain_log: the log of the retain-only model.
        name: what tables call the checkpoint. Default: what tells its log apart.
        benchmark: default: what the log says, or the number of forget questions.
        original_log: the log of the model before unlearning.

    Raises:
        InputError: what is no such log, and a retain-only model that was not asked what the other was.
    """
    importer = IMPORTERS[kind]
    if benchmark is not None and importer.benchmarks is not None and benchmark not in importer.benchmarks:
        raise InputError(f"unknown benchmark '{benchmark[:80]}'; there are {', '.join(importer.benchmarks)}")
    if name is not None and len(name) > 1_000:
        raise InputError(f"a name of {len(name):,} characters is too long")
    logs = _named(importer.read(log, benchmark))
    if name is not None and len(logs) > 1:
        raise InputError(f"{log} holds logs of {len(logs)} checkpoints, which cannot all be called '{name[:80]}'")
    beside = {one.role: one for one in logs if one.role != "unlearned"}
    for role, path in (("original", original_log), ("retain_only", retain_log)):
        if path is not None:
            of_role = _named(importer.read(path, benchmark))
            if len(of_role) > 1:
                raise InputError(f"{path} holds logs of {len(of_role)} checkpoints; name one of them")
            beside[role] = of_role[0]
    return [_run(kind, one, {r: other for r, other in beside.items() if other is not one}, name, benchmark)
            for one in logs]  # fmt: skip


def _run(
    kind: str, log: Log, beside: Mapping[str, Log], name: str | None, benchmark: str | None
) -> tuple[RunRecord, Observations]:
    """The record of a log. beside: role -> the log of another model."""
    logs = {"unlearned": log} | dict(beside)
    observations: Observations = {}
    as_logged: dict[str, None] = {}
    notes: dict[str, None] = {}
    for model, one in logs.items():
        # documents of a model that several runs hold are settled in each; no record holds a split without any
        splits = {split: [_copied(d) for d in documents] for split, documents in one.splits.items() if documents}
        if splits:
            observations[model] = splits
        for split, documents in splits.items():
            kept, said = _settle(documents, f"{model}, {split}")
            as_logged |= dict.fromkeys(kept)
            notes |= dict.fromkeys(said)
        notes |= dict.fromkeys(one.notes)
    notes |= dict.fromkeys(IMPORTERS[kind].conventions([*notes], [*as_logged]))
    benchmark = _benchmark(benchmark or log.benchmark, log)
    for role in beside.keys() & observations.keys():
        notes |= dict.fromkeys(_same_questions(observations, role, beside[role].path))
    for role, words in (("original", "original"), ("retain_only", "retain-only model")):
        if role in beside and beside[role].path != log.path:
            notes[f"{words}: {clean(beside[role].path.name)}, sha256 {beside[role].sha256}"] = None
    known = [metric for one in logs.values() for metric in one.known.get("ability", ())]
    wanted = {
        m: {split: [*_metrics(split, d), *_foreign(d, known)] for split, d in splits.items()}
        for m, splits in observations.items()
    }
    scores, composites = score_all(observations, wanted, seed=0, benchmark=benchmark)
    for model, one in logs.items():
        if model in observations:
            if model == "unlearned":
                notes |= dict.fromkeys(_summary(one.composites, composites[model]))
        else:
            scores[model] = {s: {n: _mean(v) for n, v in of.items()} for s, of in one.means.items()}
            composites[model] = {n: _mean(v) for n, v in one.composites.items()}
    control = Control(method="none", alpha=1.0)
    imported = Imported(
        format=kind,
        file=clean(log.path.name),
        sha256=log.sha256,
        as_logged=[metric for metric in (*METRICS, *known) if metric in as_logged],
        notes=list(notes),
    )
    hashes = {split: hashed(_texts(documents)) for split, documents in log.splits.items()}
    names = {role: clean(one.name) for role, one in logs.items()}
    if name is not None:
        names["unlearned"] = clean(name)
    record = RunRecord(
        schema=SCHEMA,
        signature=signature.make(benchmark, _signature(IMPORTERS[kind].source, log, hashes)),
        name=names["unlearned"],
        benchmark=benchmark,
        verdict=verdict(scores, control, log.known.get("headline"), imported=imported),
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
    return replace(record, **log.known), observations


def _copied(document: Document) -> Document:
    return document | ({"logged": dict(document["logged"])} if "logged" in document else {})


def _mean(value: float) -> Score:
    """A mean over documents that the log does not tell the number of."""
    return Score(value, None, None, None, None)


def _foreign(documents: Sequence[Document], known: Sequence[str]) -> list[str]:
    """The metrics of other lm-eval tasks that the documents have."""
    return [name for name in dict.fromkeys(known) if any(name in d.get("logged", ()) for d in documents)]


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


def _same_questions(observations: Observations, role: str, file: Path) -> Iterable[str]:
    """Leave the original or the retain-only model what the other was asked too; say how much was left out."""
    mine, theirs = (observations.get(model, {}).get("forget", []) for model in ("unlearned", role))
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
            f"such as {missing[0][:80]!r}; models are compared by answers to the same questions"
        )
    observations[role]["forget"] = [asked[key] for key in wanted]
    if len(theirs) > len(wanted):
        yield f"forget ({role}): {len(theirs) - len(wanted)} questions that the other was not asked are left out"


def _summary(logged: Mapping[str, float], composites: Mapping[str, Score]) -> Iterable[str]:
    """Where the log's own value of several splits or models is not what its documents give."""
    for name, score in composites.items():
        value = logged.get(name)
        if value is not None and score.value is not None:
            scale = min(1.0, abs(value)) if name == "forget_quality" else 1.0
            if abs(value - score.value) > AGREE * max(scale, abs(value)):
                yield f"{name}: {value:.4g} in the log, {score.value:.4g} from its documents"


# --- what identifies the record


def _benchmark(given: str | None, log: Log) -> str:
    """The benchmark as given, else by the number of forget questions."""
    rows = len(log.splits.get("forget", ()))
    known = "forget_verbmem" not in log.splits and "forget_privleak" not in log.splits
    if given is None and (not known or rows not in FORGET_ROWS):
        names = ", ".join((*TOFU, *MUSE))
        raise InputError(f"{log.path} does not say which benchmark it is of; pass --benchmark ({names})")
    most = next((n for n, name in FORGET_ROWS.items() if name == given), rows)
    if rows > most:
        raise InputError(f"{log.path} has {rows} forget questions; {given} has {most}")
    return given or FORGET_ROWS[rows]


# the names that files and folders of such logs have in every project
USUAL = re.compile(r"|(TOFU|MUSE)_EVAL|eval_log_aggregated|evals?(_.*)?|ds_size\d+|saves|unlearn|results?|logs?")


def _named(logs: list[Log]) -> list[Log]:
    """The logs, each with a name: its own, or from its path."""
    names = _names([log.path.resolve() for log in logs])
    return [replace(log, name=log.name or name) for log, name in zip(logs, names, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Checkpoints' names from where their logs lie: the file's own, or its folder's where all files are named so; as
    many folders as tell one from the others, and of a checkpoint-N the run's that it is of."""
    own = []
    for path in paths:
        parts = [*path.parts[1:-1], re.sub(r"\.?(eval_log_aggregated)?\.json$", "", path.name)]
        own.append("/".join(part for part in parts if not USUAL.fullmatch(part)) or "unknown")
    one, two = (places.ends(own, least) for least in (1, 2))
    return [(two if re.fullmatch(r"checkpoint-\d+", one[name]) else one)[name][-200:] for name in own]


def folders(out: Path, names: Sequence[str]) -> list[Path]:
    """Where the runs of so many checkpoints go: `out` itself for one, a folder in it for each of several."""
    if len(names) == 1:
        return [out]
    found: list[str] = []
    for name in map(folder_name, names):
        free = (name if i == 0 else f"{name}-{i}" for i in itertools.count())
        found.append(next(one for one in free if one.lower() not in {other.lower() for other in found}))
    return [out / one for one in found]


def folder_name(name: str) -> str:
    """A name as that of a folder: nothing in it leads elsewhere.

    >>> folder_name("npo_gdr/step=102"), folder_name("../x"), folder_name("")
    ('npo_gdr-step=102', 'x', 'run')
    """
    return re.sub(r"[^\w.=+]+", "-", name).strip("-.")[:150] or "run"


def _signature(source: str, log: Log, hashes: Mapping[str, str]) -> dict[str, str]:
    splits = log.splits.values()
    firsts = [str(documents[0]["prompt"]) for documents in splits if documents and "prompt" in documents[0]]
    found = {
        **({"prompt": hashed(firsts)[:8]} if firsts else {}),
        "eos": "prob+",
        "ctl": "none",
        **({"data": hashed([*hashes, *hashes.values()])[:8]} if hashes else {}),
        "seed": "0",
        "src": source,
        "v": __version__,
    } | log.fields
    return {key: found[key] for key in signature.FIELDS if key in found}


def _texts(documents: Sequence[Document]) -> Iterable[str]:
    return (f"{d['id']}\0{d.get('question')}\0{d.get('reference')}" for d in documents)
