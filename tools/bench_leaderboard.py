"""How long a leaderboard of a thousand records takes: by hand, on an idle machine.

    unlearn-metrics score --original ... --out RUN && python -m tools.bench_leaderboard RUN [n]

The records are one real record under n names, with other hashes and other figures, in ten tables.
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

TABLES = 10


def main(run: Path, n: int = 1000) -> None:
    record = load_record(run)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            roles = dict(record.checkpoints)
            for role, of in (("original", i % TABLES), ("unlearned", i)):
                sha = hashlib.sha256(f"{role} {of}".encode()).hexdigest()
                roles[role] = dataclasses.replace(roles[role], path=f"{role}-{of}", weights_sha256=sha)
            scores = {m: {s: dict(names) for s, names in splits.items()} for m, splits in record.scores.items()}
            left = scores["controlled"]["forget"]["extraction_strength"]
            parts = {part: i / n * getattr(left, part) for part in ("value", "ci_low", "ci_high")}
            scores["controlled"]["forget"]["extraction_strength"] = dataclasses.replace(left, **parts)
            varied = dataclasses.replace(record, name=f"method {i}", checkpoints=roles, scores=scores)
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
