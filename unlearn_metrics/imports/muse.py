"""Folders of the MUSE authors' evaluator: knowmem/, verbmem/ and privleak/, with a folder in each for every model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from unlearn_metrics.documents import Document
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports.log import MAX_LOGS, Log, a_list, an_object, check_size, number, sha256, share, text
from unlearn_metrics.record import Headline
from unlearn_metrics.records import store

BENCHMARKS = {"bbc": "muse_news", "hp": "muse_books"}  # by the authors' names of their corpora
ROLES = {"target": "original", "retrain": "retain_only"}
HISTORIES = {
    ("knowmem", "forget"): "forget",
    ("knowmem", "retain"): "retain",
    ("verbmem", "forget"): "forget_verbmem",
    ("verbmem", "retain"): "retain_verbmem",
}
TEXTS = {"forget": "forget_privleak", "retain2": "retain_privleak", "holdout": "holdout_privleak"}
ATTACKS = {"PPL": "loss", "PPL/zlib": "zlib", "Min-40%": "min_k"}
NOTES = (
    "rouge: the log's rougeL_recall is without stemmer, so it is not this package's rouge and is left out",
    "loss: of all tokens but the first, without end-of-sequence",
    "zlib: over the bytes of the compressed text, without a space before it",
    "not imported: rouge1, rouge1_recall, PPL/ref, PPL/lower and Min-k% for other k than 40",
)


def read(path: Path, benchmark: str | None) -> list[Log]:
    """A Log for each model below the folder: `target` is the original, `retrain` the retain-only model.

    Raises InputError for a folder without such logs, and where nothing says which corpus they are of.
    """
    kinds = {kind: folder for kind in ("knowmem", "verbmem", "privleak") if (folder := path / kind).is_dir()}
    if not kinds:
        raise InputError(f"{path} holds none of the folders knowmem, verbmem and privleak of the MUSE authors' code")
    corpora = sorted({c for folder in kinds.values() for c in BENCHMARKS if (folder / "out" / c).is_dir()})
    if corpora:
        fitting = [c for c in corpora if benchmark in (None, BENCHMARKS[c])]
        if len(fitting) != 1:
            raise InputError(f"{path} holds logs of {' and '.join(corpora)}; pass --benchmark muse_news or muse_books")
        kinds = {kind: folder / "out" / fitting[0] for kind, folder in kinds.items()}
        benchmark = BENCHMARKS[fitting[0]]
    files = {kind: _files(folder, kind) for kind, folder in kinds.items()}
    models = list(dict.fromkeys(model for found in files.values() for model, _ in found))
    if not models:
        raise InputError(f"{path} holds no history.json and no forget.json of a model")
    check_size(path, [file for found in files.values() for file in found.values()])
    logs = [_log(path, {kind: {p: f for (m, p), f in files[kind].items() if m == model} for kind in files}, model)
            for model in models]  # fmt: skip
    benchmark = benchmark or _corpus(files)
    if benchmark is None:
        raise InputError(f"{path} does not say which corpus it is of; pass --benchmark muse_news or muse_books")
    for log in logs:
        log.benchmark = benchmark
    return logs


def _files(folder: Path, kind: str) -> dict[tuple[str, str], Path]:
    """(model, part) -> file: MODEL/forget/history.json, or MODEL/forget.json of an attack."""
    found: dict[tuple[str, str], Path] = {}
    parts = TEXTS if kind == "privleak" else [part for of, part in HISTORIES if of == kind]
    for file in sorted(folder.rglob("*.json" if kind == "privleak" else "history.json")):
        part, place = (file.stem, file.parent) if kind == "privleak" else (file.parent.name, file.parent.parent)
        if part in parts and place != folder and file.is_file():
            found[place.relative_to(folder).as_posix(), part] = file
        if len(found) > MAX_LOGS:
            raise InputError(f"{folder} holds more than {MAX_LOGS:,} logs")
    return found


def _corpus(files: Mapping[str, Mapping[tuple[str, str], Path]]) -> str | None:
    """The benchmark by the hub's names of the authors' own models, which out.json has."""
    for (model, _), file in files.get("knowmem", {}).items():
        beside = file.with_name("out.json")
        if model in ROLES and beside.is_file():
            said = re.search(r"/(bbc|hp)", str(an_object(store.read_json(beside), f"{beside}").get("model"))[:200])
            if said:
                return BENCHMARKS[said[1]]
    return None


def _log(path: Path, files: Mapping[str, Mapping[str, Path]], model: str) -> Log:
    splits: dict[str, list[Document]] = {}
    notes = []
    for (kind, part), split in HISTORIES.items():
        if (file := files.get(kind, {}).get(part)) is not None:
            splits[split], said = _history(file, split)
            notes += said
    composites: dict[str, float] = {}
    for part, split in TEXTS.items():
        if (file := files.get("privleak", {}).get(part)) is not None:
            splits[split] = _attacked(file, split)
            composites = composites or _aucs(file.with_name("auc.json"))
    used = [file for found in files.values() for file in found.values()]
    return Log(
        path,
        sha256(used, path),
        splits,
        name=model,
        role=ROLES.get(model, "unlearned"),
        notes=[*notes, *NOTES],
        known={"headline": Headline(["rouge_f1"], "rouge_f1")},
        composites=composites,
    )


def _history(file: Path, split: str) -> tuple[list[Document], list[str]]:
    """(the documents of history.json, how its mean in out.json differs)."""
    documents: list[Document] = []
    for i, raw in enumerate(a_list(store.read_json(file), f"{file}")):
        where = f"{file}, entry {i}"
        entry = an_object(raw, where)
        document: Document = {"id": i, "split": split, "cluster": i}
        fields = {"question": "question", "prompt": "prompt", "gt": "reference", "response": "generation"}
        texts = {ours: text(entry.get(name), f"{where}, {name}") for name, ours in fields.items()}
        document |= {name: found for name, found in texts.items() if found is not None}
        if "prompt" in document and "question" not in document:
            document["question"] = document["prompt"]
        f1 = share(entry.get("rougeL"), f"{where}, rougeL")
        documents.append(document | ({} if f1 is None else {"logged": {"rouge_f1": f1}}))
    beside = file.with_name("out.json")
    if not beside.is_file() or not documents:
        return documents, []
    said = number(an_object(store.read_json(beside), f"{beside}").get("mean_rougeL"), f"{beside}, mean_rougeL")
    values = [d["logged"]["rouge_f1"] for d in documents if "logged" in d]
    mean = math.fsum(values) / len(values) if values else math.nan
    if said is None or abs(said - mean) <= 1e-6:
        return documents, []
    return documents, [f"rouge_f1 ({split}): mean {said:.4g} in out.json, {mean:.4g} from its documents"]


def _attacked(file: Path, split: str) -> list[Document]:
    documents: list[Document] = []
    for i, raw in enumerate(a_list(store.read_json(file), f"{file}")):
        where = f"{file}, entry {i}"
        entry = an_object(raw, where)
        values = an_object(entry.get("ppl"), f"{where}, ppl")
        scores = {ours: number(values.get(name), f"{where}, {name}") for name, ours in ATTACKS.items()}
        document: Document = {"id": i, "split": split, "cluster": i}
        document["logged"] = {metric: score for metric, score in scores.items() if score is not None}
        passage = text(entry.get("text"), f"{where}, text")
        documents.append(document | ({} if passage is None else {"reference": passage}))
    return documents


def _aucs(file: Path) -> dict[str, float]:
    """The log's AUCs of forget against holdout: theirs count forget documents as the ones to score higher."""
    if not file.is_file():
        return {}
    pairs = an_object(store.read_json(file), f"{file}")
    values = an_object(pairs.get("forget_holdout", {}), f"{file}, forget_holdout")
    found = {ours: share(values.get(name), f"{file}, {name}") for name, ours in ATTACKS.items()}
    return {f"auc_{ours}": 1 - value for ours, value in found.items() if value is not None}
