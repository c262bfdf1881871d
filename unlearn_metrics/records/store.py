"""A run on disk: record.json, token_scores.parquet, generations.parquet. Save and load."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pydantic import ValidationError

from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.record import MODELS, RECORD_TYPE, SCHEMA, RunRecord, Score, attack_of
from unlearn_metrics.records import signature, tables
from unlearn_metrics.records.folder import CURVE, RECORD, TEXTS, TOKENS, claim, prepared
from unlearn_metrics.registry import NAME
from unlearn_metrics.scores import recovery
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.scores.equal_retention import MAX_CLUSTERS

T = TypeVar("T")
ABILITY = re.compile(r"[\w-]{1,100}\.[\w.,@=-]{1,100}", re.ASCII)  # a metric of another lm-eval task: TASK.METRIC
MAX_RECORD_BYTES = 1 << 26
MAX_MODELS = 500  # with those under attacks
MAX_UNKNOWN = 100  # metrics of a record that are not installed here
MAX_STRENGTHS = 64  # of a path
MAX_SUM = 1e12  # of a metric over documents: products of such sums are still numbers
ROUNDING = 1e-9  # relative, of a value against its interval
OLDER = ("unlearn-metrics/record/1", "unlearn-metrics/record/2")


def save(out: Path, record: RunRecord, observations: Observations, overwrite: bool = False) -> None:
    """Write a run to a folder that nobody holds."""
    with claim(out, overwrite):
        put(out, record, observations)


def put(out: Path, record: RunRecord, observations: Observations) -> None:
    """Write a run to a folder that is claimed: record and tables. A picture of an earlier run there goes.

    record.json comes last and vouches for the rest.
    """
    text = RECORD_TYPE.dump_json(record, indent=2) + b"\n"
    tokens, texts = tables.of_tokens(observations), tables.of_texts(observations)
    with (
        prepared(out / RECORD, lambda file: file.write(text)),
        prepared(out / TEXTS, lambda file: pq.write_table(texts, file, compression="zstd")),
        prepared(out / TOKENS, lambda file: pq.write_table(tokens, file, compression="zstd")),
    ):
        (out / RECORD).unlink(missing_ok=True)
        (out / CURVE).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The JSON in a file from anyone. InputError if it is none, is too large, or has a key twice."""
    return parsed(path, _bytes(path))


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise InputError(f"{path} is {'no file' if path.exists() else 'not there'}")
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"{path} is too large: it has more than {MAX_RECORD_BYTES >> 20} MiB")
    return data


def parsed(path: Path | str, data: bytes) -> Any:
    """The JSON in bytes from anyone; path: where they are from.

    InputError if it is none, has a key twice or a whole number that no float holds.
    """
    try:
        return json.loads(data, object_pairs_hook=_once, parse_int=_counted)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {first_line(error)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Which of two equal keys counts is not defined, so readers would disagree."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _counted(digits: str) -> int:
    """A whole number of JSON. One that is too large to become a float ends every computation."""
    if math.isinf(float(digits)):
        raise ValueError(f"a number has {len(digits.lstrip('-')):,} digits")
    return int(digits)


def load_record(folder: Path) -> RunRecord:
    """Read and validate a run's record.json (or a record.json itself). Raises InputError with what is wrong in it."""
    path = folder / RECORD if folder.is_dir() else folder
    if not path.exists():
        raise InputError(f"{folder} holds no run: there is no {RECORD}")
    data = _bytes(path)
    raw = parsed(path, data)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found in OLDER:
        data = json.dumps(_from_older(raw)).encode()
    elif found != SCHEMA:
        raise InputError(f"{path} has schema {str(found)[:80]!r}; this version reads {SCHEMA!r} and older ones")
    try:
        record = RECORD_TYPE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:200] or "top level"
        raise InputError(f"{path} is not a valid record: {where}: {first['msg']}") from None
    except RecursionError:
        raise InputError(f"{path} is not a valid record: it is nested too deeply") from None
    _check(path, record)
    return record


def _from_older(raw: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 or 2 in today's names: what it did not hold is unknown."""
    if isinstance(models := raw.get("scores"), dict):
        renamed = {model: _renamed(splits) if isinstance(splits, dict) else splits for model, splits in models.items()}
        raw = raw | {"scores": _renamed(renamed)}
    if isinstance(models := raw.get("composites"), dict):
        raw = raw | {"composites": {model: _without_intervals(found) for model, found in _renamed(models).items()}}
    return raw | {"schema": SCHEMA} if raw["schema"] == OLDER[1] else _from_1(raw)


def _without_intervals(scores: Any) -> Any:
    """Composites without the intervals that they had before it was known that none can hold their truth."""
    if not isinstance(scores, dict):
        return scores
    return {
        name: score | {"ci_low": None, "ci_high": None}
        if name in COMPOSITES and COMPOSITES[name].no_interval and isinstance(score, dict)
        else score
        for name, score in scores.items()
    }


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    unlearned = raw.get("checkpoints", {}) if isinstance(raw.get("checkpoints"), dict) else {}
    path = unlearned.get("unlearned", {})
    name = str(path.get("path", "unknown")) if isinstance(path, dict) else "unknown"
    return raw | {"schema": SCHEMA, "name": name, "composites": {}, "prompts": {}, "git": None, "imported": None}


def _check(path: Path, record: RunRecord) -> None:
    """What the types can't express: names that exist here, and claims that do not contradict each other."""
    for name in record.scores:
        if not is_model(name):
            raise InputError(f"{path} has an unknown model '{name[:80]}'; a newer version may know it")
    if len(record.scores) > MAX_MODELS:
        raise InputError(
            f"{path} has scores of {len(record.scores):,} models and attacks; at most {MAX_MODELS} are read"
        )
    named: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("model", record.composites, MODELS),
        ("composite", [name for names in record.composites.values() for name in names], COMPOSITES),
    ]
    for what, names, known in named:
        for name in names:
            if name not in known:
                raise InputError(f"{path} has an unknown {what} '{name[:80]}'; a newer version may know it")
    unknown = unknown_metrics(record)
    for name in unknown:
        if not NAME.fullmatch(name):
            raise InputError(f"{path} has an unknown metric {name[:80]!r}, which is no metric's name")
    if len(unknown) > MAX_UNKNOWN:
        raise InputError(f"{path} has {len(unknown):,} metrics that are unknown here; at most {MAX_UNKNOWN} are read")
    for name in record.ability:
        if name in METRICS or not ABILITY.fullmatch(name):
            raise InputError(f"{path} is not a valid record: '{name[:80]}' is no TASK.METRIC of another lm-eval task")
    for contradiction in _contradictions(record):
        raise InputError(f"{path} is not a valid record: {contradiction}")


def is_model(name: str) -> bool:
    """Whether it names a model of a run, as it is or under an attack."""
    model, attack = attack_of(name)
    return model in MODELS and (attack is None or NAME.fullmatch(attack) is not None)


def unknown_metrics(record: RunRecord) -> list[str]:
    """The metrics in a record that nobody here can compute: of a newer version, or of a package that is not there."""
    scored = [name for splits in record.scores.values() for metrics in splits.values() for name in metrics]
    return [name for name in dict.fromkeys(scored) if name not in METRICS and name not in record.ability]


def _contradictions(record: RunRecord) -> Iterable[str]:
    """Where a record disagrees with itself, in words."""
    fields, control = signature.parse(record.signature), record.control
    if fields["benchmark"] != record.benchmark:
        yield "its signature is of another benchmark"
    if ("src" in fields) != (record.imported is not None):
        yield "its signature and 'imported' disagree on whether it was imported"
    if "ctl" in fields and (fields["ctl"] == "none") != (control.method == "none"):
        yield "its signature and 'control' disagree on whether there was a control"
    if control.keep is not None and not 0 < control.keep <= 1:
        yield f"control keeps a share of {control.keep:g}"
    _, keeps, kept = fields.get("ctl", "").rpartition(".keep")
    if (kept if keeps else "") != ("" if control.keep is None else f"{control.keep:g}"):
        yield "its signature and 'control' disagree on the share of retention that was kept"
    elif keeps and control.metric is not None and fields["ctl"] != signature.ctl(control):
        yield "its signature and 'control' disagree on what was kept"
    if control.method == "none" and (control.alpha != 1 or "controlled" in record.scores):
        yield "it has no control, but a controlled model"
    yield from _path_contradictions(record)
    yield from _attack_contradictions(record)
    groups: list[tuple[str, bool, Mapping[str, Score]]] = [
        *((f"{m}, {split}", True, scores) for m, splits in record.scores.items() for split, scores in splits.items()),
        *((m, False, scores) for m, scores in record.composites.items()),
    ]
    for where, one_split, scores in groups:
        for name, score in scores.items():
            low, high = score.ci_low, score.ci_high
            if score.n == 0 and (score.value, low, high) != (None, None, None):
                yield f"{where[:80]}: {name} has a value, but no document"
            if (low is None) != (high is None) or (low is not None and high is not None and low > high):
                yield f"{where[:80]}: {name} has no interval from {low} to {high}"
            # a composite's draws can all lie on one side of it: a distance grows with noise, a clipped share cannot
            if one_split and score.value is not None and low is not None and high is not None:
                room = ROUNDING * max(abs(low), abs(high))
                if not low - room <= score.value <= high + room:
                    yield f"{where[:80]}: {name} is {score.value:g}, outside its own interval from {low:g} to {high:g}"
            if (score.n is None) != (score.unscored is None) or (score.n is None and record.imported is None):
                yield f"{where[:80]}: of how many documents {name} is, is not known"
        if one_split and len({score.documents for score in scores.values()}) > 1:
            yield f"{where[:80]}: its metrics count different documents"


def _attack_contradictions(record: RunRecord) -> Iterable[str]:
    block = record.attacks
    if block is None:
        if any(attack_of(name)[1] for name in record.scores):
            yield "it has scores under attacks, but says nothing of the attacks"
        return
    for made in block.made:
        if not NAME.fullmatch(made):
            yield f"{made[:80]!r} is no attack's name"
    named = {attack for name in record.scores if (attack := attack_of(name)[1])}
    named |= {attack for metrics in block.recovery.values() for of in metrics.values() for attack in of}
    named |= {w.attack for metrics in block.worst.values() for w in metrics.values()}
    if not named <= block.made.keys():
        yield f"it has numbers of the attack '{min(named - block.made.keys())[:80]}', which was not made"
    if not {*block.recovery, *block.worst} <= {*recovery.ATTACKED}:
        yield f"attacks bring something back of other models than {' and '.join(recovery.ATTACKED)}"


def _path_contradictions(record: RunRecord) -> Iterable[str]:
    path = record.path
    if record.residual and (path is None or record.residual.keys() != path.forget.keys()):
        yield "what is still there at equal retention is not of its path"
    if path is None:
        return
    if path.alphas[:1] != [0] or path.alphas != sorted({*path.alphas}) or len(path.alphas) > MAX_STRENGTHS:
        yield f"its path is not of up to {MAX_STRENGTHS} ascending strengths from 0"
    if len(path.retain) != 2 or path.retain[0].clusters != path.retain[1].clusters:
        yield "its path does not have two halves of the same clusters of retain documents"
    if path.splits.keys() != path.forget.keys() or not path.retain_only.keys() <= path.forget.keys():
        yield "its path disagrees with itself on the metrics of the forget set"
    wanted = [(sums, len(path.alphas)) for sums in (*path.retain, *path.forget.values())]
    for sums, strengths in (*wanted, *((sums, 1) for sums in path.retain_only.values())):
        k = len(sums.clusters)
        if not 0 < k <= MAX_CLUSTERS or len({*sums.clusters}) < k:
            yield f"a sum of its path is not over 1 to {MAX_CLUSTERS} different clusters"
        if any(len(rows) != strengths or {*map(len, rows)} != {k} for rows in (sums.total, sums.count)):
            yield "a sum of its path is not of one row for each strength and one column for each cluster"
        elif any(abs(total) > MAX_SUM for row in sums.total for total in row):
            yield f"a sum of its path is beyond {MAX_SUM:.0e}, which no metric gives"
    for metric in path.retain_only.keys() & path.forget.keys():
        if path.retain_only[metric].clusters != path.forget[metric].clusters:
            yield f"{metric} of the retain-only model is over other clusters"


def load_documents(folder: Path) -> Observations:
    """The documents of a run as they were observed, bit for bit. InputError if the files are not what `save` writes."""
    record = load_record(folder) if (folder / RECORD).exists() else None
    return tables.load(folder, () if record is None else (*record.ability, *unknown_metrics(record)))


def _renamed(named: dict[str, T]) -> dict[str, T]:
    return {tables.RENAMED.get(name, name): found for name, found in named.items()}
