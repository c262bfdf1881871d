"""How long a leaderboard of a thousand records takes: by hand, on an idle machine.

    unlearn-metrics score --original ... --out RUN && python -m tools.bench_leaderboard RUN [n]

The records are one real record under n names, with other hashes and less and less on the forget set, in ten tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unlearn_metrics.record import RECORD_TYPE, RunRecord
from unlearn_metrics.records.store import load_record
from unlearn_metrics.scores import equal_retention

TABLES, LEVELS = 10, 20


def less(record: RunRecord, share: float) -> RunRecord:
    """The record of a run that has only a share of it on the forget set, but for the original."""
    assert record.path is not None, "a record without a path cannot be ranked"
    forget = {
        metric: dataclasses.replace(sums, total=[sums.total[0], *([share * x for x in row] for row in sums.total[1:])])
        for metric, sums in record.path.forget.items()
    }
    path = dataclasses.replace(record.path, forget=forget)
    return dataclasses.replace(record, path=path, residual=equal_retention.residuals(path, record.control.keep, seed=0))


def main(run: Path, n: int = 1000) -> None:
    record = load_record(run)
    levels = [less(record, (1 + level) / LEVELS) for level in range(LEVELS)]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            roles = dict(record.checkpoints)
            for role, of in (("original", i % TABLES), ("unlearned", i)):
                sha = hashlib.sha256(f"{role} {of}".encode()).hexdigest()
                roles[role] = dataclasses.replace(roles[role], path=f"{role}-{of}", weights_sha256=sha)
            varied = dataclasses.replace(levels[i // TABLES % LEVELS], name=f"method {i}", checkpoints=roles)
            (Path(folder) / "runs" / str(i)).mkdir(parents=True)
            (Path(folder) / "runs" / str(i) / "record.json").write_bytes(RECORD_TYPE.dump_json(varied))
        start = time.monotonic()
        command = [sys.executable, "-m", "unlearn_metrics", "leaderboard", f"{folder}/runs"]
        command += ["--out", f"{folder}/site"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        sizes = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(Path(folder, "site").iterdir()))
    said, cpu = done.stdout.splitlines()[-1].split(": ")[0], used.ru_utime + used.ru_stime
    print(f"{said}: {seconds:.1f} s, {cpu:.1f} s of CPU; {sizes}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
