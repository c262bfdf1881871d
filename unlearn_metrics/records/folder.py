"""The folder of a run: who may write to it, whole files only, and the stages that a killed run had completed.

Stages are kept in OUT/.partial/<fingerprint>/ until the run's record is in place; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from unlearn_metrics.documents import TOKEN_SCORE_FIELDS, TokenScores
from unlearn_metrics.errors import InputError, first_line

T = TypeVar("T")
RECORD, TOKENS, TEXTS = "record.json", "token_scores.parquet", "generations.parquet"
CURVE = "trajectory.svg"  # of a run of the control `select`
PARTIAL = ".partial"
LOCK_TRIES = 1_000
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of a file system: some Lustre and NFS


def check_out(out: Path, overwrite: bool | None) -> None:
    """InputError if no run can be written to `out`. Called before any work, and again before writing.

    overwrite: None where the command has no such option.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder for a run")
    if (out / RECORD).exists():
        if not overwrite:
            other = "" if overwrite is None else " or pass --overwrite"
            raise InputError(f"{out} already holds a run; choose another --out{other}")
        return
    # of a run that was killed while it was written
    ours = {TOKENS, TEXTS, CURVE} if (out / PARTIAL).is_dir() else set()
    if out.is_dir() and any(path.name not in ours for path in out.glob("[!.]*")):
        raise InputError(f"{out} is not empty and holds no run; choose another --out")


@contextlib.contextmanager
def claim(out: Path, overwrite: bool) -> Iterator[Path]:
    """Hold `out` for one run, and give the folder in it where stages are kept. InputError if another process holds it.

    Stages are removed once the block is done. If it fails, they stay; where there are none, nothing does.
    """
    check_out(out, overwrite)
    partial = out / PARTIAL
    lock = _hold(partial)
    try:
        check_out(out, overwrite)  # by now, the process that held it before may have written its run
        yield partial
    except BaseException:
        if not unfinished(out):
            _clear(out)
        raise
    else:
        _clear(out)
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # stages are there, or another process has taken it already
            partial.rmdir()
            out.rmdir()  # only if nothing was written


def unfinished(out: Path) -> bool:
    """Whether a run that was interrupted left something to go on from."""
    return any((out / PARTIAL).glob("*/*.npz"))


def locked(path: Path, timeout: float = -1) -> BaseFileLock:
    """An acquired lock on a file that is made for it. filelock.Timeout if another process has it after `timeout` s.

    Where the file system has no locks, the existence of the file is the lock.
    """
    try:
        lock: BaseFileLock = FileLock(path, timeout)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.soft"), timeout)
        lock.acquire()
    return lock


def _hold(partial: Path) -> BaseFileLock:
    for _ in range(LOCK_TRIES):
        try:
            partial.mkdir(parents=True, exist_ok=True)
            return locked(partial / "lock", timeout=0)
        except Timeout:
            raise InputError(f"another process is writing a run to {partial.parent}; choose another --out") from None
        except OSError as error:
            problem = error
            if not isinstance(error, FileNotFoundError):  # else its holder was done just now, and removed the folder
                break
    raise InputError(f"{partial.parent} cannot be written to: {first_line(problem)}")


def _clear(out: Path) -> None:
    """Remove what only serves a run in the making, the lock last: until then nobody else can hold the folder."""
    for path in (out / PARTIAL).iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    for name in (RECORD, TOKENS, TEXTS, CURVE):  # of a process that was killed while it wrote
        for path in out.glob(f".{name}.*.new"):
            path.unlink(missing_ok=True)
    with contextlib.suppress(PermissionError):  # Windows removes no open file, but filelock does once it is released
        (out / PARTIAL / "lock").unlink(missing_ok=True)


def foreign(path: Path, start: str) -> bool:
    """Is what lies there somebody else's? Files of ours begin like this."""
    if path.is_file():
        with path.open("rb") as file:
            return file.read(len(start.encode())) != start.encode()
    return path.exists()


def check_folder(folder: Path, ours: Mapping[str, str | Callable[[Path], bool]]) -> None:
    """InputError if there can be no such folder, or if a file to write there is somebody else's.

    ours: name of a file -> how those begin that this package wrote, which are replaced; or what tells whether it did.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, not a folder; choose another")
    for name, is_ours in ours.items():
        path = folder / name
        if foreign(path, is_ours) if isinstance(is_ours, str) else path.exists() and not is_ours(path):
            raise InputError(f"{path} was not written by unlearn-metrics; choose another folder")


def write_files(folder: Path, files: Mapping[str, bytes], ours: Mapping[str, str | Callable[[Path], bool]]) -> None:
    """Make the folder and write these files there, by their names. InputError if that fails, and see `check_folder`."""
    check_folder(folder, ours)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write(folder / name, methodcaller("write", data))
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {first_line(error)}") from None


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    with prepared(path, fill):
        pass


@contextlib.contextmanager
def prepared(path: Path, fill: Callable[[IO[bytes]], object]) -> Iterator[None]:
    """Have the file on disk under a hidden name; it gets its own name when the block is done."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")  # two writers do not share it
    try:
        with hidden.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        yield
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows opens no folder, some file systems sync none
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@dataclass
class Stages:
    """The stages of a run, each computed once, in this attempt or in one before it.

    folder: where they are kept, of this fingerprint alone; None keeps nothing. work: the counters of the work done;
    what was done for a stage is kept with it, and counts again when it is taken up. seconds: the same for time.
    common: where what other runs have in common with this one is kept, see `shared`; None: nowhere.
    """

    folder: Path | None
    work: Counter[str]
    say: Callable[[str], None]
    seconds: float = 0.0
    common: Path | None = None

    def shared(self, name: str, fingerprint: str, compute: Callable[[], T]) -> T:
        """The value of a stage that is the same in every run with this fingerprint. Of several processes that want it
        at once, one computes it and the others wait."""
        if self.common is None:
            return self(name, compute)
        folder = self.common / fingerprint[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder / "lock", self.say):
            return self._kept(folder / "value.npz", name, compute)

    def __call__(self, name: str, compute: Callable[[], T]) -> T:
        """The value of the stage: numbers, strings, None and TokenScores, in lists and dicts."""
        return compute() if self.folder is None else self._kept(self.folder / f"{name}.npz", name, compute)

    def _kept(self, path: Path, name: str, compute: Callable[[], T]) -> T:
        if path.exists():
            try:
                value, work, seconds = _read(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self.say(f"{path} cannot be used ({error}); doing it again")
            else:
                self.say(f"{name}: taken from {'an unfinished run' if path.parent == self.folder else 'another run'}")
                self.work.update(work)
                self.seconds += seconds
                return value
        start, before = time.monotonic(), Counter(self.work)
        value = compute()
        write(path, lambda file: _dump(file, value, dict(self.work - before), time.monotonic() - start))
        return value


@contextlib.contextmanager
def _turn(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock, after whoever has it."""
    try:
        lock = locked(path, timeout=0)
    except Timeout:
        say(f"another process is at work on {path.parent}: waiting for it")
        lock = locked(path)
    try:
        yield
    finally:
        lock.release()


def stages(
    partial: Path | None,
    fingerprint: str,
    work: Counter[str],
    say: Callable[[str], None],
    common: Path | None = None,
) -> Stages:
    """Those of a run with this fingerprint. What other settings left in the same place is not used, and it is said."""
    if partial is None:
        return Stages(None, work, say, common=common)
    folder = partial / fingerprint[:16]
    others = [other for other in partial.iterdir() if other.is_dir() and other != folder]
    if others and not folder.exists():
        say(f"{partial} holds an unfinished run with other settings, data or software: not used")
    folder.mkdir(exist_ok=True)
    return Stages(folder, work, say, common=common)


def _dump(file: Any, value: Any, work: dict[str, int], seconds: float) -> None:
    found: list[TokenScores] = []
    mark = secrets.token_hex(16)  # {mark: i} in the JSON stands for the i-th TokenScores of the arrays

    def place(scores: Any) -> dict[str, int]:
        if not isinstance(scores, TokenScores):
            raise TypeError(f"a stage cannot keep {type(scores)}")
        found.append(scores)
        return {mark: len(found) - 1}

    text = json.dumps({"value": value, "work": work, "seconds": seconds}, default=place)
    arrays = {
        name: np.concatenate([np.empty(0, dtype), *(getattr(scores, name) for scores in found)], dtype=dtype)
        for name, dtype in TOKEN_SCORE_FIELDS.items()
    }
    ends = np.cumsum([len(scores.tokens) for scores in found], dtype=np.int64)
    said = {"json": np.frombuffer(text.encode(), np.uint8), "mark": np.frombuffer(mark.encode(), np.uint8)}
    np.savez(file, allow_pickle=False, ends=ends, **said, **arrays)


def _read(path: Path) -> tuple[Any, Counter[str], float]:
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[name] for name in TOKEN_SCORE_FIELDS]
        ends, text, mark = file["ends"].tolist(), file["json"].tobytes(), file["mark"].tobytes().decode()
    pieces = [TokenScores(*(a[start:end] for a in arrays)) for start, end in zip([0, *ends], ends, strict=False)]

    def unplace(found: dict[str, Any]) -> Any:
        return pieces[found[mark]] if found.keys() == {mark} else found

    kept = json.loads(text, object_hook=unplace)
    return kept["value"], Counter(kept["work"]), kept["seconds"]
