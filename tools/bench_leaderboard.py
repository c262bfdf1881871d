"""How long a leaderboard of a thousand records takes: by hand, on an idle machine.

    unlearn-metrics score --original ... --out RUN && python -m tools.bench_leaderboard RUN [n]

The records are one real record under n names, with other hashes and less and less on the forget set, in ten tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unlearn_metrics.record import RECORD_TYPE
from unlearn_metrics.records.store import load_record
from unlearn_metrics.scores import equal_retention

TABLES = 10


def main(run: Path, n: int = 1000) -> None:
    record = load_record(run)
    assert record.path is not None, "a record without a path cannot be ranked"
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            roles = dict(record.checkpoints)
            for role, of in (("original", i % TABLES), ("unlearned", i)):
                sha = hashlib.sha256(f"{role} {of}".encode()).hexdigest()
                roles[role] = dataclasses.replace(roles[role], path=f"{role}-{of}", weights_sha256=sha)
            forget = {
                metric: dataclasses.replace(
                    sums,
                    total=[
                        [of if not row else of * (i + 1) / n for of in totals] for row, totals in enumerate(sums.total)
                    ],
                )
                for metric, sums in record.path.forget.items()
            }
            path = dataclasses.replace(record.path, forget=forget)
            residual = equal_retention.residuals(path, record.control.keep, 0)
            varied = dataclasses.replace(record, name=f"method {i}", checkpoints=roles, path=path, residual=residual)
            (Path(folder) / "runs" / str(i)).mkdir(parents=True)
            (Path(folder) / "runs" / str(i) / "record.json").write_bytes(RECORD_TYPE.dump_json(varied))
        start = time.monotonic()
        command = [sys.executable, "-m", "unlearn_metrics", "leaderboard", f"{folder}/runs"]
        command += ["--out", f"{folder}/site"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.monotonic() - start
        sizes = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(Path(folder, "site").iterdir()))
    print(f"{done.stdout.split(': ')[0]}: {seconds:.1f} s; {sizes}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
