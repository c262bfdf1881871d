"""How long it takes to score 100,000 stored documents again: python -m tools.bench_rescore RUN [DOCUMENTS]

RUN is a real one (tofu_forget05 shows the usual shape), copied with fresh ids and clusters until it is large enough.
In every text of every copy one word, at a place drawn at random, is exchanged for one of VOCABULARY made-up words: the
reference of a document alike under all models, as in a real run, the generation under each model for another. The
vocabulary is as large as that many answers have: the 4,000 of TOFU have 104,742 words, 7,051 different ones, which grow
with the 0.53rd power of the words (Heaps' law), so that 100,000 would have 38,900. Token scores are those of the run.
Prints where the time goes, then what the command takes; its exit code is 0 if the stored scores follow. With
--keep FOLDER the run that was made stays there.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from unlearn_metrics.documents import Document, Observations
from unlearn_metrics.metrics import values
from unlearn_metrics.records import store
from unlearn_metrics.scores.scoring import score_all

VOCABULARY = 37_000


def repeat(seen: Observations, wanted: int) -> Observations:
    """At least `wanted` documents: copies of the run, with a word exchanged in each text."""
    copies = -(-wanted // sum(len(documents) for splits in seen.values() for documents in splits.values()))
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(4, 9))) for _ in range(VOCABULARY)]

    def exchanged(text: str, key: str) -> str:
        own = random.Random(key)
        words = text.split(" ")
        words[own.randrange(len(words))] = own.choice(vocabulary)
        return " ".join(words)

    def again(model: str, split: str, documents: list[Document], copy: int) -> list[Document]:
        numbers = {d["cluster"]: i for i, d in enumerate(documents)}
        known = {"id": max(d["id"] for d in documents) + 1, "cluster": max(numbers) + 1}
        return [
            d
            | {name: d[name] + copy * size for name, size in known.items()}
            | {
                name: exchanged(d[name], f"{who} {split} {d['id']} {copy}")
                for name, who in (("reference", ""), ("generation", model))
                if name in d
            }
            for d in documents
        ]

    return {
        model: {split: [d for c in range(copies) for d in again(model, split, ds, c)] for split, ds in splits.items()}
        for model, splits in seen.items()
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("run", type=Path)
    options.add_argument("documents", type=int, nargs="?", default=100_000)
    options.add_argument("--keep", type=Path)
    given = options.parse_args()
    run, wanted = given.run, given.documents
    record = store.load_record(run)
    seen = repeat(store.load_documents(run), wanted)
    metrics = {model: {split: list(scores) for split, scores in record.scores[model].items()} for model in seen}
    with tempfile.TemporaryDirectory() as folder:
        out = given.keep or Path(folder) / "run"
        scores, composites = score_all(seen, metrics, 0)
        store.save(out, replace(record, scores=scores, composites=composites, path=None, residual={}), seen)
        del seen
        size = sum(path.stat().st_size for path in out.iterdir()) / 1e6

        spent: Counter[str] = Counter()
        start = time.perf_counter()

        def lap(what: str) -> None:
            nonlocal start
            now = time.perf_counter()
            spent[what] += now - start
            start = now

        again = store.load_documents(out)
        lap("read the files")
        documents = tokens = 0
        for model, splits in again.items():
            for split, found in splits.items():
                documents += len(found)
                tokens += sum(len(d["answer"].tokens) for d in found)
                start = time.perf_counter()
                for name in metrics[model][split]:
                    values([name], found)
                    lap(name)
        start = time.perf_counter()
        score_all(again, metrics, 0)
        lap("all at once: metrics again, intervals and composites")
        del again
        print(f"{documents:,} documents, {size:.0f} MB on disk")
        for what, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            print(f"{seconds:7.2f} s  {what}")
        start = time.perf_counter()
        command = [sys.executable, "-m", "unlearn_metrics", "rescore", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        print(f"{time.perf_counter() - start:7.2f} s  `unlearn-metrics rescore`, exit code {done.returncode}")
        print(done.stdout.splitlines()[-1] if done.returncode == 0 else done.stdout + done.stderr)


if __name__ == "__main__":
    main()
