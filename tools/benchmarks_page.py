"""The tables of docs/benchmarks.md, from the YAML and the registry: python -m tools.benchmarks_page docs/benchmarks.md

What stands above the marker is written by hand and stays.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from unlearn_metrics.benchmarks import suites
from unlearn_metrics.metrics import METRICS, good
from unlearn_metrics.splits import is_forget

MARKER = "<!-- From here on made by `make benchmarks-page` from tasks/ and the metrics' docstrings. -->\n"
ARROW = {"higher": "↑", "lower": "↓"}


def page(before: str) -> str:
    """The page with its tables made anew."""
    head, found, _ = before.partition(MARKER)
    if not found:
        raise SystemExit("the page has no marker: " + MARKER.strip())
    index = suites.OurTaskManager(include_defaults=False).task_index
    benchmarks_of = suites.benchmarks()
    benchmarks = [
        (f"`{name}`", ", ".join(f"`{task}`" for task in members), index[f"{name}_suite"].cfg["metadata"]["source"])
        for name, members in benchmarks_of.items()
    ]
    names = [*dict.fromkeys(task for members in benchmarks_of.values() for task in members)]
    names += [name for name in index if name.startswith(f"{suites.OWN}_")]
    tasks = [task_row(task, index[task].cfg) if task in index else foreign_row(task) for task in names]
    metrics = [
        (f"`{name}` {arrow(metric.better)}", metric.facet, ", ".join(metric.needs), *described(metric.fn))
        for name, metric in METRICS.items()
    ]
    return (
        f"{head}{MARKER}\n## The benchmarks\n\nUnder lm-eval, the group `NAME_suite`.\n\n"
        f"{table(('benchmark', 'tasks', 'source'), benchmarks)}"
        "\n## The tasks\n\nArrows: what is good on this split.\n\n"
        f"{table(('task', 'split', 'metrics', 'data: hub id, configuration, split', 'text generated'), tasks)}"
        "\n## The metrics\n\n"
        "Arrows: the good direction for a model that should have memorized the text and writes fluently.\n\n"
        f"{table(('metric', 'facet', 'of', 'what it is', 'source of the definition'), metrics)}"
    )


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def arrow(better: str) -> str:
    return ARROW.get(better, "·")


def task_row(task: str, config: dict[str, Any]) -> tuple[str, ...]:
    metadata = config["metadata"]
    split = metadata["split"]
    metrics = [entry["metric"] for entry in config["metric_list"]]
    if metadata.get("own"):
        data = f"your `{split}_file`"
    elif metadata.get("packaged"):
        data = "in the package"
    elif lines := metadata.get("lines"):
        data = "local: " + ", ".join(f"`{file}`" for file in lines.values())
    else:
        parts = (config["dataset_path"], config.get("dataset_name"), config["test_split"])
        data = ", ".join(f"`{part}`" for part in parts if part is not None)
        data += f"; local: `{file}`" if (file := metadata.get("file")) else ""
    text = "—"
    if any("generation" in METRICS[metric].needs for metric in metrics):
        kwargs = config["generation_kwargs"]
        stops = ", ".join(f"`{stop!r}`" for stop in kwargs["until"])
        text = f"{kwargs['max_gen_toks']} tokens" + (f", up to {stops}" if stops else "")
    if config.get("fewshot_split"):
        text += f"; after the examples of `{config['fewshot_split']}`"
    shown = ", ".join(f"`{metric}` {arrow(good(metric, split))}" for metric in metrics)
    return f"`{task}`", f"`{split}`", shown, data, text


def foreign_row(task: str) -> tuple[str, ...]:
    return f"`{task}`", "—", "`acc` ↓" if is_forget(suites.split_of(task)) else "`acc` ↑", "lm-eval's own task", "—"


def described(fn: Any) -> tuple[str, str]:
    """(first paragraph, source) of a metric's docstring."""
    text = " ".join(inspect.getdoc(fn).split())
    what, _, source = text.partition("Source: ")
    return what.split(". ")[0].rstrip(". ") + ".", source or "—"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
