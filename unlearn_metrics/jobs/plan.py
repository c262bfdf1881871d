"""A sweep's plan: YAML -> cells, each the arguments of one run and the folder it goes to. No model, no torch."""

from __future__ import annotations

import contextlib
import glob
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml
from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from unlearn_metrics.benchmarks.data import to_score
from unlearn_metrics.errors import InputError, did_you_mean, first_line
from unlearn_metrics.places import ends
from unlearn_metrics.records.folder import RECORD, unfinished, write
from unlearn_metrics.settings import OF_CONTROL, PREFIX, OwnData, Settings, check_exclusive, explained

T = TypeVar("T")
Name = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class Cell:
    """One run of the grid. folder: within the sweep's. data: the benchmark's folder, or own; None: the hub."""

    folder: Path
    original: str
    unlearned: str
    benchmark: str
    data: Path | OwnData | None
    settings: Settings

    def arguments(self) -> dict[str, Any]:
        """What it asks for, as JSON has it: checkpoints, benchmark, and the settings that are not the default."""
        given = asdict(self)
        settings = given.pop("settings")
        del given["folder"]
        given |= {name: value for name, value in settings.items() if value != getattr(Settings, name)}
        return dict(json.loads(json.dumps(given, default=str)))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


# every setting of a run by its name; `name` is what a checkpoint is called
_SETTINGS: dict[str, Any] = {
    f.name: (get_type_hints(Settings, include_extras=True)[f.name], f.default)
    for f in fields(Settings)
    if f.name != "name"
}


class _Grid(_Strict):
    original: Name
    unlearned: Name | Annotated[list[Name], MinLen(1)] | Annotated[dict[Name, Name], MinLen(1)]
    benchmarks: Name | Annotated[list[Name], MinLen(1)] | None = None
    data: Path | dict[Name, Path] | None = None
    forget: Path | None = None
    retain: Path | None = None
    holdout: Path | None = None
    fields: Name | None = None
    prefix: Annotated[float, Ge(0)] = PREFIX
    controls: Annotated[list[Any], MinLen(1)] = [{}]


# settings that are a folder, a file or a hub id; in the name of a cell's folder the end of one will do
_PLACES = ("trajectory", "retain_model", "reference_record", "include_path", "gibberish_model")
_KEYS = {"benchmark": "benchmarks"}  # an option of `score` -> its key in a plan, where they differ
_Control: type[_Strict] = create_model("_Control", __base__=_Strict, **_SETTINGS)
_Plan: type[_Grid] = create_model("_Plan", __base__=_Grid, **_SETTINGS)


def read(path: Path) -> list[Cell]:
    """The cells of a plan: benchmark by benchmark, checkpoint by checkpoint, control by control.

    InputError, naming file and key, for what is no plan.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    plan: Any = _validated(_Plan, str(path), raw)
    common = plan.model_dump(include=plan.model_fields_set & {*_SETTINGS})
    with _at(path):
        check_exclusive(common, str)
    chosen: dict[str, dict[str, Any]] = {}
    for i, given in enumerate(plan.controls):
        where = f"{path}: controls.{i}"
        named = {"control": given} if isinstance(given, str) else given
        own: Any = _validated(_Control, where, named)
        own = own.model_dump(include=own.model_fields_set)
        with _at(where):
            check_exclusive({name: value for name, value in common.items() if name not in OF_CONTROL} | own, str)
        chosen[where] = {"control": common.get("control", "mix")} | own
    controls: dict[str, dict[str, Any]] = {}
    for (where, own), label in zip(chosen.items(), _labels([*chosen.values()]), strict=True):
        if label in controls:
            raise InputError(f"{where}: the same as another control, {label}")
        controls[label] = _settings(common, own)
    sources = _sources(path, plan)
    checkpoints = _checkpoints(path, plan.unlearned)
    named = isinstance(plan.unlearned, dict)
    cells = [
        Cell(
            folder=Path(_safe(benchmark), _safe(label), control),
            original=plan.original,
            unlearned=unlearned,
            benchmark=benchmark,
            data=data,
            settings=Settings(**settings, name=label if named else None),
        )
        for benchmark, data in sources.items()
        for label, unlearned in checkpoints.items()
        for control, settings in controls.items()
    ]
    for folder, count in Counter(cell.folder for cell in cells).items():
        if count > 1:
            raise InputError(f"{path}: {count} cells would be written to {folder}; name the checkpoints: NAME: FOLDER")
    return cells


def _validated(model: type[T], where: str, raw: Any) -> T:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys and values, of {', '.join(_keys(model))}")
    try:
        return model(**{str(key): value for key, value in raw.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: {key}: no such key; {did_you_mean(key, _keys(model))}") from None
        raise InputError(f"{where}: {explained(error, raw)}") from None


def _keys(model: Any) -> list[str]:
    return list(model.model_fields)


def _settings(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one control, which override the plan's; as the options of `score`."""
    both = {**common, **own}
    if both.get("control") == "none":
        return {name: value for name, value in both.items() if name not in OF_CONTROL} | {"keep": None}
    if "alpha" in own or (both.get("alpha") is not None and "keep" not in own):
        return both | {"keep": None}
    return both | {"alpha": None, "keep": 0.95 if both.get("keep") is None else both["keep"]}


def _sources(path: Path, plan: Any) -> dict[str, Path | OwnData | None]:
    """benchmark -> its data; or the user's own."""
    benchmarks = [plan.benchmarks] if plan.benchmarks is None or isinstance(plan.benchmarks, str) else plan.benchmarks
    for benchmark in plan.data if isinstance(plan.data, dict) else ():
        if benchmark not in benchmarks:
            raise InputError(f"{path}: data.{benchmark}: not among the benchmarks, {', '.join(map(str, benchmarks))}")
    files = {"forget": plan.forget, "retain": plan.retain, "holdout": plan.holdout}
    sources = {}
    for name in benchmarks:
        folder = plan.data.get(name) if isinstance(plan.data, dict) else plan.data
        with _at(path):
            made, data = to_score(name, folder, files, plan.fields, plan.prefix, lambda key: _KEYS.get(key, key))
        sources[made] = data
    return sources


@contextlib.contextmanager
def _at(where: Path | str) -> Iterator[None]:
    """Errors in it name the place."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _labels(controls: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the folders of these controls: mix-keep0.9, select-trajectory=ga."""
    ended = {n: ends((str(c[n]) for c in controls if c.get(n) is not None), same=_safe) for n in _PLACES}

    def part(name: str, value: Any) -> str:
        if end := ended.get(name, {}).get(str(value)):
            return f"{name}={end}"
        return f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"

    return [
        _safe("-".join([c["control"], *(part(name, value) for name, value in sorted(c.items()) if name != "control")]))
        for c in controls
    ]


def _safe(name: str) -> str:
    """A name that is one folder, and no hidden one."""
    return re.sub(r"[^\w.=+-]+", "_", name).lstrip(".")[:150] or "_"


def _checkpoints(path: Path, given: str | list[str] | dict[str, str]) -> dict[str, str]:
    """label -> checkpoint."""
    if isinstance(given, dict):
        return given
    found: list[str] = []
    for pattern in [given] if isinstance(given, str) else given:
        if glob.has_magic(pattern):
            folders = sorted((p for p in glob.glob(pattern) if Path(p).is_dir()), key=_natural)
            if not folders:
                raise InputError(f"{path}: unlearned: no folder matches {pattern}")
            found += folders
        else:
            found.append(pattern)
    return {label: place for place, label in ends((name.rstrip("/") for name in found), same=_safe).items()}


def _natural(path: str) -> list[Any]:
    """checkpoint-9 before checkpoint-10."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", path) if part]


def shard(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Every count-th checkpoint of a benchmark with all its controls, from the index-th (1 = the first); single cells
    where there are fewer checkpoints than shards. All shards together are all cells, each once."""
    pairs = list(dict.fromkeys((cell.benchmark, cell.unlearned) for cell in cells))
    if len(pairs) < count:
        return list(cells[index - 1 :: count])
    mine = set(pairs[index - 1 :: count])
    return [cell for cell in cells if (cell.benchmark, cell.unlearned) in mine]


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' as (2, 8). InputError unless 1 <= 2 <= 8."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text!r} is not i/n with i from 1 to n, for example 2/8")
    return int(found[1]), int(found[2])


# --- what has become of a cell: its folder, and a note beside it ----------------------------------------------------


def note_path(out: Path, cell: Cell) -> Path:
    folder = out / cell.folder
    return folder.with_name(f".{folder.name}.json")  # hidden: runs/*/*/* are runs


def note(out: Path, cell: Cell, error: str | None) -> None:
    """Write beside the cell's folder its arguments, and why it failed, if it did."""
    path = note_path(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(cell.arguments() | {"error": error}, indent=2) + "\n"
    write(path, lambda file: file.write(text.encode()))


def noted(out: Path, cell: Cell) -> dict[str, Any] | None:
    """What stands beside the cell's folder; None if nothing that can be read does."""
    try:
        found = json.loads(note_path(out, cell).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def state(out: Path, cell: Cell) -> str:
    """ "done", "unfinished", "failed: why" or "to do", by what lies in the folder."""
    if (out / cell.folder / RECORD).exists():
        return "done"
    if error := (noted(out, cell) or {}).get("error"):
        return f"failed: {str(error).strip().splitlines()[-1]}"  # of a traceback: what it ended with
    return "unfinished" if unfinished(out / cell.folder) else "to do"
