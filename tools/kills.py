"""Runs that are killed at random moments and started again: score, sweep and leaderboard on the packaged demo.

    python -m tools.kills [--kills 300] [--seed 0]

Each command runs once undisturbed. Then SIGKILL hits it up to three times, each at a random moment of as long a time.
It is started again until it ends by itself, and what it wrote is compared with the undisturbed: which files there are,
records but for their time, tables and pages byte for byte. Prints how many kills hit it while it ran, and how many runs
lost something; what they lost is shown.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml

from tests import CHECKPOINTS, DATA
from unlearn_metrics.records import store

LIMIT = 2  # documents a split
TRIES = 3  # kills of one run, at most
SHARES = {"score": 0.4, "sweep": 0.4, "leaderboard": 0.2}
# torch is imported once, in the server that commands are forked from
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["unlearn_metrics.jobs.score", "unlearn_metrics"])


def command_line(args: list[str], log: Path, die_at: int | None) -> None:
    """The command line in this process; SIGKILL itself instead of giving the die_at-th file its name."""
    from unlearn_metrics.cli import main

    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        stream.flush()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    if die_at is not None:
        rename, calls = os.replace, itertools.count(1)

        def deadly(*paths: Path) -> None:
            if next(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)

        os.replace = deadly
    sys.argv = ["unlearn-metrics", *args]
    main()


def started(args: list[object], log: Path, die_at: int | None = None) -> BaseProcess:
    """The command in a process of its own; log: where it prints to."""
    log.unlink(missing_ok=True)
    process = processes.Process(target=command_line, args=([str(arg) for arg in args], log, die_at))
    process.start()
    return process


def warm() -> None:
    """Return once the server has imported what it should."""
    process = processes.Process(target=abs, args=(1,))
    process.start()
    process.join()


def everything(out: Path) -> dict[str, object]:
    """All that lies below a folder, without what may differ: when it was made and how long that took."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == store.RECORD:
            found[name] = replace(store.load_record(path.parent), wall_seconds=0, created="")
            store.load_documents(path.parent)
        elif path.match(".*.new"):  # a write that was killed; hidden, and nobody reads it
            continue
        elif path.is_file():  # what a sweep has observed is kept with the seconds that it took
            found[name] = path.read_bytes() if ".observed" not in path.parts else None
    return found


def different(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """The files that only one of them has, or that differ."""
    shared = found.keys() & expected.keys()
    return sorted({*found, *expected} - shared | {name for name in shared if found[name] != expected[name]})


def commands(folder: Path) -> dict[str, list[object]]:
    """What is run; the place for --out comes after it."""
    plan = folder / "plan.yaml"
    unlearned = [str(CHECKPOINTS / name) for name in ("excessive", "moderate")]
    given = {"original": str(CHECKPOINTS / "original"), "benchmarks": "demo", "data": str(DATA), "limit": LIMIT}
    plan.write_text(yaml.safe_dump(given | {"unlearned": unlearned, "controls": ["none", {"keep": 0.9}]}))
    demo: list[object] = ["--benchmark", "demo", "--data", DATA, "--limit", LIMIT]
    checkpoints: list[object] = ["--original", CHECKPOINTS / "original", "--unlearned", unlearned[0]]
    return {
        "score": ["score", *checkpoints, *demo, "--out"],
        "sweep": ["sweep", plan, "--out"],
        "leaderboard": ["leaderboard", folder / "sweep", "--out"],
    }


def undisturbed(args: list[object], out: Path) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    process = started([*args, out], out.with_suffix(".log"))
    process.join()
    if process.exitcode != 0:
        raise SystemExit(out.with_suffix(".log").read_text())
    return time.monotonic() - begun


def killed(args: list[object], out: Path, seconds: float, rng: random.Random, most: int) -> tuple[int, int, float]:
    """Kill it up to `most` times, until it has ended by itself: kills, those that hit it running, seconds it takes."""
    hits = 0
    for tries in range(1, most + 1):
        begun = time.monotonic()
        process = started([*args, out], out.with_suffix(".log"))
        process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # it takes less than it did: kill the next sooner
            return tries, hits, min(seconds, time.monotonic() - begun)
        if (out / store.RECORD).exists():  # killed after its last step
            return tries, hits, seconds
    undisturbed(args, out)
    return most, hits, seconds


def main(kills: int, seed: int) -> int:
    rng = random.Random(seed)
    warm()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command, args in commands(folder).items():
            seconds = undisturbed(args, folder / command)
            expected = everything(folder / command)
            wanted = round(kills * SHARES[command])
            done = hit = lost = 0
            for run in itertools.count():
                if hit >= wanted:
                    break
                out = folder / f"{command}-{run}"
                tries, hits, seconds = killed(args, out, seconds, rng, min(TRIES, wanted - hit))
                done, hit = done + tries, hit + hits
                differing = different(everything(out), expected)
                lost += bool(differing)
                if differing:
                    print(f"{command}, run {run}: other than undisturbed: {', '.join(differing)}", file=sys.stderr)
            rows.append((command, seconds, run, done, hit, lost))
            print("| {} | {:.1f} | {} | {} | {} | {} |".format(*rows[-1]), file=sys.stderr, flush=True)
    print("| command | undisturbed, s | runs | kills | hit it running | runs that lost something |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print("| {} | {:.1f} | {} | {} | {} | {} |".format(*row))
    return int(any(row[-1] for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed))
