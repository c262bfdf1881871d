"""Broken input for everything that reads what strangers wrote: importers, record loader, rescoring, signature parser.

    python -m tools.fuzz [--inputs 100000] [--seed 0] [--only TARGET]

Valid files are mutated (values, keys, types, bytes), each target in a process of its own under an address-space limit.
An input must be taken or refused by an InputError of one line; anything else fails, and is printed with its number.
What is taken is shown on a terminal (one in four, with all its rows one in twenty), where no escape may come through,
and saved (one in twenty), where nothing may leave the folder. Prints how many inputs each target took, refused and
failed on, and its peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.imports.test_imports import muse_log, scored, tofu_log
from tests.imports.test_muse import folder as muse_folder
from tests.imports.test_uds import log as uds_log
from tests.imports.test_uds import model as uds_model
from unlearn_metrics.cli.console import Console
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.imports import runs as imports
from unlearn_metrics.records import rescore, signature, store
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import table
from unlearn_metrics.scores.scoring import score_all

SHARES = {"signature": 0.4, "record": 0.2, "tofu": 0.08, "open-unlearning": 0.06, "muse": 0.06, "rescore": 0.1}
SHARES |= {"muse-authors": 0.03, "uds": 0.03, "lm-eval": 0.04}
LIMIT = 4 << 30  # address space beyond what the process has before its first input
HOSTILE: list[Any] = [
    *(None, True, [], {}, "", 0, -1, 1e-320, 1e308, -1e308, 2**31, 2**70, 10**400, math.nan, math.inf, -math.inf),
    *("../../escaped", "/etc/passwd", "a\0b", "\x1b[31mred\x1b]0;title\x07", "[bold red]x[/]", "\u202egnp", "\ud800"),
    *("<script>alert(1)</script>", "=cmd|' /C calc'!A0", "x" * 200_000, "y" * 3_000, "\n\n\n", "0", "-1", "007", "1e3"),
    *([[]], [None], [math.nan], ["a", "b", "c"], {"0": 1}, {"value_by_index": {"0": None}}, [[[[[[[[[[[]]]]]]]]]]]),
]


# --- seeds: small, so that one takes a millisecond


def open_unlearning_log(n: int = 3) -> dict[str, Any]:
    def rows(value: dict[str, Any]) -> dict[str, Any]:
        return {"agg_value": 0.5, "value_by_index": {str(i): copy.deepcopy(value) for i in range(n)}}

    texts = {"rougeL_recall": 0.5, "input": "Question: Who?\nAnswer:", "ground_truth": "a b", "generation": "a c"}
    log: dict[str, Any] = {"extraction_strength": scored([0.5] * n), "exact_memorization": scored([0.5] * n)}
    for short in ("forget", "retain", "ra", "wf"):
        log[f"{short}_Q_A_Prob"] = rows({"prob": math.exp(-1), "avg_loss": 1.0})
        log[f"{short}_Q_A_PERT_Prob"] = rows({"prob": [0.1, 0.2], "avg_loss": [2.0, 3.0]})
        log[f"{short}_Q_A_ROUGE"] = rows(texts)
        log[f"{short}_Truth_Ratio"] = rows({"score": 0.3})
    log["forget_Q_A_PARA_Prob"] = log["retain_Q_A_PARA_Prob"] = rows({"prob": 0.1, "avg_loss": 2.0})
    log["ra_Q_A_Prob_normalised"] = rows({"prob": 0.5})
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        log[f"mia_{attack}"] = {"forget": scored([1.0, 2.0, 3.0]), "holdout": scored([2.0, 2.5, 4.0]), "agg_value": 0.5}
    return log


def lm_eval_results() -> dict[str, Any]:
    metrics = ("extraction_strength", "truth_ratio", "rouge")
    ours = {"metadata": {"version": 1.0, "split": "forget", "cluster": 1}, "doc_to_text": "{{question}}"}
    ours |= {"metric_list": [{"metric": name} for name in metrics], "doc_to_target": "{{answer}}"}
    return {
        "results": {"demo_forget": {"rouge,none": 0.5}, "quiz": {"acc,none": 0.5}},
        "configs": {"demo_forget": ours, "quiz": {"metric_list": [{"metric": "acc"}]}},
        "higher_is_better": {"demo_forget": {"rouge": False}, "quiz": {"acc": True}},
        "versions": {"demo_forget": 1.0, "quiz": 0},
        "n-shot": {"demo_forget": 0, "quiz": 5},
        "group_subtasks": {"demo_suite": ["demo_forget"], "quizzes": ["quiz"]},
        "config": {"model": "hf", "model_args": {"pretrained": "org/x"}, "limit": 3.0, "model_dtype": "torch.float32"},
        "lm_eval_version": "0.4.13",
        "chat_template": None,
    }


def lm_eval_samples() -> dict[str, list[dict[str, Any]]]:
    answer = [[["1", "2", "0"], ["1", "3", "0"], ["-0.5", "-1.0", "-0.1"], ["-4.0"] * 3, ["2.0"] * 3]]
    ours = {"doc": {"question": "Who?", "answer": "a b", "perturbed_answer": ["c", "d"]}, "filter": "none"}
    ours |= {"arguments": {"gen_args_0": {"arg_0": "Who?", "arg_1": " a b"}}, "resps": [*[answer] * 4, ["a b"]]}
    ours |= {"metrics": ["extraction_strength", "rouge"], "extraction_strength": 0.5, "rouge": 1.0, "truth_ratio": 1.0}
    quiz = {"doc": {"q": "?"}, "resps": [[["-1", "True"]]], "filter": "none", "metrics": ["acc"], "doc_hash": "a"}
    return {
        "demo_forget": [{"doc_id": i, **copy.deepcopy(ours)} for i in range(3)],
        "quiz": [{"doc_id": i, **copy.deepcopy(quiz), "acc": float(i)} for i in range(2)],
    }


def seed_run(folder: Path) -> Path:
    """A run with token scores of every role, mean losses and logged values."""
    log = folder / "log.json"
    log.write_text(json.dumps(open_unlearning_log()))
    record, seen = imports.import_log("open-unlearning", log, log, benchmark="tofu_forget05")
    flat = np.array([-0.5, -1.0, -0.1], np.float32)
    scores = TokenScores(np.array([1, 2, 0], np.int32), np.array([1, 3, 0], np.int32), flat, flat, -flat)
    for document in seen["unlearned"]["forget"]:
        document |= dict.fromkeys(("answer", "true_answer", "paraphrased_question"), scores)
        document |= {"wrong_answers": [scores, scores], "judged_generation": scores}
    wanted = {m: {s: imports.available(d) for s, d in splits.items()} for m, splits in seen.items()}
    values, composites = score_all(seen, wanted, 0)
    store.save(folder / "run", replace(record, scores=values, composites=composites), seen)
    return folder / "run"


# --- mutations


def mutated(value: Any, rng: random.Random) -> Any:
    """The JSON with one to four values, keys or types changed. Only what leads to them is copied."""
    value = copy.copy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        parent, key = None, None
        here = value
        while isinstance(here, (dict, list)) and here and (parent is None or rng.random() < 0.85):
            parent, key = here, rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
            here = parent[key] = copy.copy(parent[key])
        if parent is None:
            return rng.choice(HOSTILE)
        change = rng.randrange(7)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            parent[rng.choice([h for h in HOSTILE if isinstance(h, str)])] = parent.pop(key)
        elif change == 2:
            parent[key] = [here]
        elif change == 3 and isinstance(here, (int, float)) and abs(here) < 1e300:
            parent[key] = here * rng.choice((-1, 0, 2, 1e30, 1e-30))
        elif change == 4 and isinstance(here, str):
            at = rng.randrange(len(here) + 1)
            parent[key] = here[:at] + rng.choice([h for h in HOSTILE if isinstance(h, str)]) + here[at:]
        elif change == 5 and isinstance(parent, list):
            parent.extend([here] * rng.choice((1, 50)))
        else:
            parent[key] = rng.choice(HOSTILE)
    return value


def broken(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some changed, left out, repeated or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + rng.choice((1, 4, 64))]
            case 2:
                out[at:at] = out[at : at + rng.choice((1, 16, 256))]
            case 3:
                out[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 4, b"null", b'{"a'))
            case 4:
                del out[at:]
    return bytes(out)


def json_bytes(seed: Any, rng: random.Random) -> bytes:
    text = json.dumps(mutated(seed, rng) if rng.random() < 0.8 else seed).encode()
    return broken(text, rng) if rng.random() < 0.25 else text


def parquet_bytes(data: bytes, rng: random.Random) -> bytes:
    """A Parquet file with bytes changed, or another table written well."""
    if rng.random() < 0.5:
        return broken(data, rng)
    table = pq.read_table(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(table.num_columns) if table.num_columns else 0
        name = table.column_names[i] if table.num_columns else "id"
        match rng.randrange(7):
            case 0 if table.num_columns > 1:
                table = table.remove_column(i)
            case 1:
                table = table.append_column(rng.choice(["id", "logged_rouge", "logged_x", "../x"]), table.column(i))
            case 2:
                table = pa.concat_tables([table, table.slice(rng.randrange(table.num_rows + 1))])
            case 3:
                table = table.slice(0, rng.randrange(table.num_rows + 1))
            case 4:
                table = table.take(pa.array([rng.randrange(table.num_rows) for _ in range(table.num_rows)], pa.int64()))
            case 5:
                values = table.column(i).to_pylist()
                for _ in range(rng.choice((1, 3))):
                    if values:
                        values[rng.randrange(len(values))] = rng.choice(HOSTILE)
                try:
                    column = pa.array(values, table.schema.field(i).type if rng.random() < 0.7 else None)
                except (pa.ArrowException, ValueError, TypeError, OverflowError):
                    column = pa.nulls(len(values), table.schema.field(i).type)
                table = table.set_column(i, name, column)
            case 6 if pa.types.is_list(table.schema.field(i).type):
                values = [mutated(v, rng) if v else v for v in table.column(i).to_pylist()]
                with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
                    table = table.set_column(i, name, pa.array(values, table.schema.field(i).type))
    out = io.BytesIO()
    try:
        pq.write_table(table, out)
    except (pa.ArrowException, ValueError):
        return broken(data, rng)
    return out.getvalue()


# --- what must hold


def shown(*renderables: Any) -> None:
    """AssertionError if what a terminal would get holds an escape that is not rich's own colour."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    for renderable in renderables:
        console.print(renderable)
    left = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert all(c.isprintable() or c == "\n" for c in left), f"control characters on the terminal: {left[:200]!r}"


def show_record(record: Any, rng: random.Random) -> None:
    if rng.random() < 0.25:  # it takes longer than all the rest
        everything = rng.random() < 0.2
        shown(table.table(record, everything), describe(record.control), record.verdict, record.name)


class Targets:
    """One function for each kind of reader: takes a generator of chance, feeds one input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = seed_run(folder)
        self.record = json.loads((self.run / store.RECORD).read_text())
        self.files = {name: (self.run / name).read_bytes() for name in (store.TEXTS, store.TOKENS)}
        muse_folder(folder / "seed")
        files = (folder / "seed").rglob("*.json")
        self.muse = {str(p.relative_to(folder / "seed")): json.loads(p.read_text()) for p in files}
        self.logs = {"tofu": tofu_log(3), "open-unlearning": open_unlearning_log(), "muse": muse_log(3)}
        self.targets: dict[str, Callable[[random.Random], None]] = {
            "signature": self.signature,
            "record": self.load_record,
            "rescore": self.rescore,
            **{name: (lambda rng, name=name: self.log(name, rng)) for name in self.logs},
            "muse-authors": self.muse_folder,
            "uds": self.uds,
            "lm-eval": self.lm_eval,
        }

    def signature(self, rng: random.Random) -> None:
        line = self.record["signature"]
        line = (
            str(mutated([line], rng)) if rng.random() < 0.3 else broken(line.encode(), rng).decode("utf-8", "replace")
        )
        fields = signature.parse(line)
        assert signature.make(fields.pop("benchmark"), fields) == line

    def load_record(self, rng: random.Random) -> None:
        path = self.folder / "hostile.json"
        path.write_bytes(json_bytes(self.record, rng))
        show_record(store.load_record(path), rng)

    def rescore(self, rng: random.Random) -> None:
        for name, data in self.files.items():
            (self.run / name).write_bytes(parquet_bytes(data, rng) if rng.random() < 0.6 else data)
        show_record(rescore.rescore(self.run, ["all"]), rng)

    def log(self, name: str, rng: random.Random) -> None:
        files = [self.folder / f"{which}.json" for which in ("log", "retain")]
        for file in files:
            file.write_bytes(json_bytes(self.logs[name], rng))
        retain = files[1] if rng.random() < 0.3 else None
        kind = "tofu" if name == "tofu" else "open-unlearning"
        called = rng.choice([None, "ga", *(h for h in HOSTILE if isinstance(h, str))])
        benchmark = "muse_news" if name == "muse" else "tofu_forget10"
        self.taken([imports.import_log(kind, files[0], retain, called, benchmark)], rng)

    def muse_folder(self, rng: random.Random) -> None:
        """The folder with one or two of its files broken, some of them gone."""
        root = self.folder / "muse-authors"
        for name, seed in self.muse.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps(seed))
        for name in rng.sample(sorted(self.muse), rng.choice((1, 1, 2))):
            if rng.random() < 0.1:
                (root / name).unlink()
            else:
                (root / name).write_bytes(json_bytes(self.muse[name], rng))
        self.taken(imports.import_logs("muse", root, benchmark=rng.choice([None, "muse_news"])), rng)

    def uds(self, rng: random.Random) -> None:
        path = self.folder / "uds.json"
        path.write_bytes(json_bytes(uds_log(uds_model("full"), uds_model("../npo")), rng))
        self.taken(imports.import_logs("uds", path), rng)

    def lm_eval(self, rng: random.Random) -> None:
        """Results and samples of one task of ours and one other, one or two of the files broken."""
        root = self.folder / "lm-eval"
        root.mkdir(exist_ok=True)
        stamp = "2026-01-02T03-04-05.000001"
        files = {f"results_{stamp}.json": [lm_eval_results()]}
        files |= {f"samples_{name}_{stamp}.jsonl": rows for name, rows in lm_eval_samples().items()}
        broken_ones = rng.sample(sorted(files), rng.choice((1, 1, 2)))
        for name, rows in files.items():
            hit = rng.randrange(len(rows)) if name in broken_ones else None
            lines = [json_bytes(row, rng) if i == hit else json.dumps(row).encode() for i, row in enumerate(rows)]
            (root / name).write_bytes(b"\n".join(lines))
        self.taken(imports.import_logs("lm-eval", root, benchmark=rng.choice([None, "ours"])), rng)

    def taken(self, found: imports.Imports, rng: random.Random) -> None:
        """What was imported can be shown, and written where it belongs."""
        out = self.folder / "out"
        places = imports.folders(out, [record.name for record, _ in found])
        assert all(place == out or place.parent == out for place in places)
        for (record, seen), place in zip(found[:3], places, strict=False):
            show_record(record, rng)
            if rng.random() < 0.05:
                place = self.folder / "saved" / place.name
                store.save(place, record, seen, overwrite=True)
                again = rescore.rescore(place)
                assert rescore.changed(store.load_record(place), again)[1] == []


def feed(target: Callable[[random.Random], None], seed: str) -> str:
    """taken or refused; AssertionError or whatever else came up is the caller's to report."""
    try:
        target(random.Random(seed))
    except InputError as error:
        message = str(error)
        assert "\n" not in message.strip(), f"more than a line: {message[:300]!r}"
        assert len(message) < 2_000, f"a line of {len(message)} characters"
        shown(message)
        return "refused"
    return "taken"


def work(name: str, inputs: int, seed: int) -> int:
    """One target in this process."""
    import warnings

    warnings.simplefilter("ignore")
    memory = Path("/dev/shm")  # to empty and fill a file on a disk takes a millisecond
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        outside = set(Path(folder).parent.glob("escaped*"))
        inner = Path(folder) / "a" / "b"
        inner.mkdir(parents=True)
        targets = Targets(inner)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts: Counter[str] = Counter()
        start = time.monotonic()
        for i in range(inputs):
            mark = f"{seed}/{name}/{i}"
            try:
                counts[feed(targets.targets[name], mark)] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                counts["failed"] += 1
                if counts["failed"] <= 5:
                    print(f"--- input {mark}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                    traceback.print_exc(limit=-6, file=sys.stderr)
        strays = [p for p in Path(folder).rglob("*") if inner not in p.parents and p not in (inner, inner.parent)]
        strays += set(Path(folder).parent.glob("escaped*")) - outside
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        print(
            f"{name:16} {inputs:>8,} inputs: {counts['taken']:>7,} taken, {counts['refused']:>7,} refused, "
            f"{counts['failed']:>4} failed; {grown} MiB more at most; {len(strays)} files outside; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
        return int(bool(counts["failed"] or strays))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SHARES)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return work(given.only, given.inputs, given.seed)
    failed = 0
    for name in [given.only] if given.only else SHARES:
        share = given.inputs if given.only else math.ceil(given.inputs * SHARES[name])
        command = [
            sys.executable,
            "-m",
            "tools.fuzz",
            "--child",
            "--only",
            name,
            "--inputs",
            str(share),
            "--seed",
            str(given.seed),
        ]
        code = subprocess.run(command).returncode
        if code not in (0, 1):
            print(f"{name}: the process ended with {code}", file=sys.stderr)
        failed |= int(code != 0)
    return failed


if __name__ == "__main__":
    sys.exit(main())
