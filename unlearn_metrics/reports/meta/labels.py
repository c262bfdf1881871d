"""What each record is: a plan in YAML, or folders with the names of labels -> labelled records."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_metrics.errors import InputError, did_you_mean, first_line
from unlearn_metrics.record import RunRecord, under
from unlearn_metrics.records import signature
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.records.store import load_record
from unlearn_metrics.settings import explained

Name = Annotated[str, MinLen(1)]
Places: TypeAlias = Name | Annotated[list[Name], MinLen(1)]
BEFORE = "before"


class _Plan(BaseModel):
    """knows, does_not_know: runs, patterns and folders. unlearned: the same, or NAME: {before: RUN, ATTACK: RUN}.
    retain_only: {before: RUN, ATTACK: RUN}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knows: Places | None = None
    does_not_know: Places | None = None
    unlearned: Places | dict[Name, dict[Name, Name]] = {}
    retain_only: dict[Name, Name] = {}


LABELS = tuple(_Plan.model_fields)


@dataclass(frozen=True)
class Labelled:
    """Records of models by what is known of them. unlearned: name -> "before" and attacks -> record."""

    knows: dict[str, RunRecord]
    does_not_know: dict[str, RunRecord]
    unlearned: dict[str, dict[str, RunRecord]]
    retain_only: dict[str, RunRecord]


def read(given: Path | Mapping[str, Any], needed: Collection[str] = LABELS[:2]) -> Labelled:
    """The records of a plan: a mapping, a YAML file, or a folder whose subfolders are named as the keys of a plan.

    needed: the keys that must be there. InputError says which key, and what is wrong.
    """
    where = spoken(given)
    raw = given if isinstance(given, Mapping) else _folder(given) if given.is_dir() else _yaml(given)
    plan = _validated(where, raw)
    for key in needed:
        if not getattr(plan, key):
            raise InputError(f"{where}: {key} is missing: runs of models of which this is known")
    pools = {key: _runs(f"{where}: {key}", getattr(plan, key) or []) for key in LABELS[:2]}
    unlearned = plan.unlearned
    if isinstance(unlearned, dict):
        models = {name: _attacked(f"{where}: unlearned.{name}", stages) for name, stages in unlearned.items()}
    else:
        models = {name: {BEFORE: it} for name, it in _runs(f"{where}: unlearned", unlearned).items()}
    retain_only = _attacked(f"{where}: retain_only", plan.retain_only) if plan.retain_only else {}
    for stages in models.values():
        retain_only = _own(stages[BEFORE], "retain_only") | retain_only
        stages |= _own(stages[BEFORE], "unlearned") | stages
    found = Labelled(pools["knows"], pools["does_not_know"], models, retain_only)
    _check_alike(where, found)
    return found


def _own(record: RunRecord, model: str) -> dict[str, RunRecord]:
    """What a run with attacks says of one of its models before and after each of them, each as a record of its own."""

    def of(name: Callable[[str], str]) -> RunRecord:
        models = {view: name(model if view == "unlearned" else view) for view in ("unlearned", "controlled")}
        scores = {view: record.scores[it] for view, it in models.items() if it in record.scores}
        composites = {view: record.composites.get(it, {}) for view, it in models.items()}
        return replace(record, scores=scores, composites=composites)

    attacks = [] if record.attacks is None else [a for a in record.attacks.made if under(model, a) in record.scores]
    after = {attack: of(lambda name, attack=attack: under(name, attack)) for attack in attacks}  # type: ignore[misc]
    return {BEFORE: of(str) if model != "unlearned" else record, **after} if after else {}


def spoken(given: Path | Mapping[str, Any]) -> str:
    """What to call a plan in messages."""
    return "the plan" if isinstance(given, Mapping) else str(given)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None


def _folder(path: Path) -> dict[str, Any]:
    """The plan that folders are: knows, does_not_know, unlearned/NAME/before, retain_only/before, below the path."""
    plan: dict[str, Any] = {label: str(path / label) for label in LABELS[:2] if (path / label).is_dir()}
    if (models := path / "unlearned").is_dir():
        plan["unlearned"] = {it.name: _stages(it) for it in sorted(models.iterdir()) if it.is_dir()}
    if (retain_only := path / "retain_only").is_dir():
        plan["retain_only"] = _stages(retain_only)
    return plan


def _stages(path: Path) -> dict[str, str]:
    return {it.name: str(it) for it in sorted(path.iterdir()) if it.is_dir()}


def _validated(where: str, raw: Any) -> _Plan:
    if not isinstance(raw, Mapping):
        raise InputError(f"{where}: expected keys and values, of {', '.join(LABELS)}")
    try:
        return _Plan(**{str(key): value for key, value in raw.items()})
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda it: it["type"] != "extra_forbidden")
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: {key}: no such key; {did_you_mean(key, LABELS)}") from None
        raise InputError(f"{where}: {explained(error, raw)}") from None


def _attacked(where: str, stages: Mapping[str, str]) -> dict[str, RunRecord]:
    if BEFORE not in stages:
        raise InputError(
            f"{where}: needs '{BEFORE}', the run before any attack; there are {', '.join(stages) or 'none'}"
        )
    found = {}
    for stage, place in stages.items():
        records = _runs(f"{where}.{stage}", place)
        if len(records) > 1:
            raise InputError(f"{where}.{stage}: {place} holds {len(records)} runs; name one")
        found[stage] = next(iter(records.values()))
    return found


def _runs(where: str, places: str | list[str]) -> dict[str, RunRecord]:
    """folder -> record, of runs, patterns that match runs, and folders that hold runs at any depth."""
    found: dict[str, RunRecord] = {}
    for place in [places] if isinstance(places, str) else places:
        matches = sorted(glob.glob(place)) if glob.has_magic(place) else [place]
        paths = [path for match in matches for path in _records(Path(match))]
        if not paths:
            raise InputError(f"{where}: {place} holds no run")
        for path in paths:
            found.setdefault(str(path.parent), load_record(path))
    return found


def _records(path: Path) -> list[Path]:
    if path.is_dir():
        return [path / RECORD] if (path / RECORD).exists() else sorted(path.rglob(RECORD))
    return [path] if path.exists() else []


def _check_alike(where: str, found: Labelled) -> None:
    """InputError if the records are not measured alike, or one checkpoint is in both pools."""
    pools = (found.knows, found.does_not_know, found.retain_only, *found.unlearned.values())
    everything = [(name, record) for pool in pools for name, record in pool.items()]
    for name, record in everything[1:]:
        first, base = everything[0]
        if differing := signature.differences(base.signature, record.signature, words=(f"in {first}", f"in {name}")):
            raise InputError(f"{where}: not measured alike: {differing[0]}")
    hashes = [
        {c.weights_sha256 for r in pool.values() if (c := r.checkpoints.get("unlearned")) and c.weights_sha256}
        for pool in (found.knows, found.does_not_know)
    ]
    if both := hashes[0] & hashes[1]:
        raise InputError(f"{where}: a checkpoint is labelled both as knowing and as not knowing: {min(both)[:12]}")
