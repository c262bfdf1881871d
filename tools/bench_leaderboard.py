"""How long a leaderboard of a thousand records takes: python -m tools.bench_leaderboard RUNS [N] [--tables T]

RUNS is a folder of real runs, measured or imported, which are copied in turn under N names, with other hashes and their
texts, into T tables each. Of those with a path the forget set's sums are made others than in any copy of the same
table: a level that falls from copy to copy, and each cluster apart by up to a fifth. Prints the command's processor
time, its peak memory, and the files' sizes. With --keep FOLDER the runs stay there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from unlearn_metrics.record import RECORD_TYPE, RunRecord
from unlearn_metrics.records.folder import RECORD, TEXTS
from unlearn_metrics.reports.leaderboard import reading
from unlearn_metrics.scores import equal_retention


def varied(record: RunRecord, level: float, seed: int) -> RunRecord:
    """The record of a run that has another, smaller share of each cluster on the forget set, but for the original."""
    if record.path is None:
        return record
    forget = {}
    for metric, sums in record.path.forget.items():
        share = level * np.random.default_rng(seed).uniform(0.8, 1, len(sums.clusters))
        original, *rows = sums.total
        forget[metric] = dataclasses.replace(sums, total=[original, *(np.multiply(rows, share).tolist())])
    path = dataclasses.replace(record.path, forget=forget)
    return dataclasses.replace(record, path=path, residual=equal_retention.residuals(path, record.control.keep, seed=0))


def named(record: RunRecord, name: str, original: str) -> RunRecord:
    """The record of a run of other checkpoints."""
    roles = dict(record.checkpoints)
    for role, path in (("original", original), ("unlearned", name)):
        if role in roles:
            sha256 = roles[role].weights_sha256 and hashlib.sha256(path.encode()).hexdigest()
            roles[role] = dataclasses.replace(roles[role], path=path, weights_sha256=sha256)
    return dataclasses.replace(record, name=name, checkpoints=roles)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("runs", type=Path)
    options.add_argument("n", type=int, nargs="?", default=1000)
    options.add_argument("--tables", type=int, default=10)
    options.add_argument("--keep", type=Path)
    given = options.parse_args()
    found, _ = reading.read([given.runs])
    with tempfile.TemporaryDirectory() as folder:
        runs, site = given.keep or Path(folder) / "runs", Path(folder) / "site"
        copies = -(-given.n // given.tables)  # in each table
        for copy in range(copies):
            item = found[copy % len(found)]
            record = varied(item.record, 1 - copy / copies, seed=copy)
            for table in range(min(given.tables, given.n - copy * given.tables)):
                run = runs / f"{table}-{copy}"
                run.mkdir(parents=True)
                made = named(record, f"method {table}-{copy}", f"original {table}")
                (run / RECORD).write_bytes(RECORD_TYPE.dump_json(made))
                if item.folder is not None and (item.folder / TEXTS).exists():
                    shutil.copy(item.folder / TEXTS, run)
        command = [sys.executable, "-m", "unlearn_metrics", "leaderboard", str(runs), "--out", str(site)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(site.iterdir()))
    said, cpu = done.stdout.splitlines()[-1].split(": ")[0], used.ru_utime + used.ru_stime
    print(f"{said}: {cpu:.1f} s of processor time, {used.ru_maxrss / 1e6:.2f} GB at most; {sizes}")


if __name__ == "__main__":
    main()
