"""What is refused before torch is imported and the hub asked: names that are none, files that are not there."""

from __future__ import annotations

from pathlib import Path

from unlearn_metrics.benchmarks.data import OWN, check_known
from unlearn_metrics.checkpoints.names import repository
from unlearn_metrics.errors import InputError
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.settings import OwnData, Settings


def check(
    original: str | None, unlearned: str | None, benchmark: str | None, data: Path | OwnData | None, settings: Settings
) -> None:
    """InputError for the first that cannot be used."""
    if benchmark is not None and benchmark != OWN:
        check_known(benchmark)
    relearned = [place for name in settings.attacks if (place := name.partition("=")[2])]
    for name in (original, unlearned, settings.retain_model, *relearned):
        if name is not None:
            repository(name)
    if isinstance(data, Path) and not data.is_dir():
        raise InputError(f"data folder {data} does not exist")
    for split, file in data.files.items() if isinstance(data, OwnData) else ():
        if not Path(file).exists():
            raise InputError(f"{file} cannot be read: there is no such file, which is the {split} data")
    for option, folder in (("--trajectory", settings.trajectory), ("--include-path", settings.include_path)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{option} {folder} is not a folder")
    reference = settings.reference_record
    if reference is not None and not reference.is_file() and not (reference / RECORD).is_file():
        raise InputError(f"{reference} holds no run: there is no {RECORD}")
