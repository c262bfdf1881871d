"""Results of a run into a Hugging Face model card: its metadata, and a table in its text. Offline; `push` alone is not.

Format. The hub reads evaluation results from two places. `model-index` in the card's metadata (huggingface_hub's
EvalResult) takes any data set and any number of metrics: written here. The newer `.eval_results/*.yaml`
(EvalResultEntry) takes one value for a task that a data set's eval.yaml registers, and is refused for others; no
unlearning benchmark is registered, so it is not written. See docs/publish.md.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.record import RunRecord, Score
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import attacked, table
from unlearn_metrics.reports.console import one_line
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.splits import is_forget

MAX_CARD_BYTES = 1 << 22
TASK_TYPE, TASK_NAME = "text-generation", "Unlearning (unlearn-metrics)"
# the benchmarks that come from the hub, by the start of their names
DATASETS = {
    "tofu": "locuslab/TOFU",
    "muse_news": "muse-bench/MUSE-News",
    "muse_books": "muse-bench/MUSE-Books",
    "rwku": "jinzhuoran/RWKU",
    "wmdp": "cais/wmdp",
}
PUBLISHED = {model: table.COLUMNS[model] for model in ("unlearned", "controlled")}
KEY = "model-index"
# the key with all that belongs to it: indented lines and list items, with empty lines and comments between them
_BLOCK = re.compile(
    rf"^(?:{KEY}|'{KEY}'|\"{KEY}\")[ \t]*:.*(?:\n(?:[ \t]*\n|\#.*\n)*(?:[ \t]+\S.*|-.*))*", re.MULTILINE
)


@dataclass(frozen=True)
class Change:
    """What publishing makes of a card: its file, its text before and after."""

    path: Path
    old: str
    new: str

    def diff(self) -> str:
        """The lines that change, in unified form; nothing if none does."""
        old, new = (text.splitlines(keepends=True) for text in (self.old, self.new))
        return "".join(difflib.unified_diff(old, new, str(self.path), f"{self.path} with the run"))


def change(record: RunRecord, card: Path, everything: bool = False) -> Change:
    """What the record makes of the card; nothing is written.

    Everything else in the card stays as it is, byte for byte; entries and table of an earlier run on the same benchmark
    are replaced. Raises InputError for what is no model card.

    Args:
        record: of a run.
        card: a model card with metadata at its top.
        everything: all scores, not the headline's six.
    """
    path = card.resolve()
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise InputError(f"{card} is no model card: it has more than {MAX_CARD_BYTES >> 20} MiB")
        old = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{card} cannot be read as a model card: {first_line(error)}") from None
    return Change(path, old, updated(old, record, str(card), everything))


def publish(record: RunRecord, card: Path, everything: bool = False) -> bool:
    """Write the record's results into the card, see `change`. True if that changed it. The card is whole at any moment.

    What was written is read again from the disk, as the hub reads it, before it takes the card's place.
    """
    made = change(record, card, everything)
    if made.new == made.old:
        return False
    partial = made.path.with_name(f".{made.path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(made.new.encode())
        shutil.copymode(made.path, partial)
        _read_back(partial, made.new, record, everything)
        os.replace(partial, made.path)
    except OSError as error:
        raise InputError(f"{card} cannot be written: {first_line(error)}; it is as it was") from None
    finally:
        partial.unlink(missing_ok=True)
    return True


def _read_back(path: Path, text: str, record: RunRecord, everything: bool) -> None:
    """InputError if the file does not hold the text, or the hub's library does not find the record's values in it."""
    on_disk = path.read_bytes()
    if on_disk != text.encode():
        raise InputError(f"{path} does not hold what was written to it: is the disk full? The card is as it was")
    found = getattr(ModelCard(on_disk.decode().removeprefix("\ufeff")).data, "eval_results", None) or []
    read = [(e.metric_name, e.metric_value) for e in found if _is_ours(e.task_name, e.dataset_config, record.benchmark)]
    wanted = [(e.metric_name, e.metric_value) for e in entries(record, everything)]
    if sorted(map(repr, read)) != sorted(map(repr, wanted)):
        raise InputError(
            f"the hub's library reads other values than were written to {path.name}; the card is as it was"
        )


def push(card: Path, repo_id: str) -> str:
    """Upload the card as the README.md of a model on the hub, by the user's own login. Returns the commit's address."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if get_token() is None:
        raise InputError(
            "not logged in to the Hugging Face hub: `hf auth login`, then --push again; the card is written"
        )
    try:
        return str(
            HfApi().upload_file(
                path_or_fileobj=card.read_bytes(),
                path_in_repo="README.md",
                repo_id=repo_id,
                commit_message="Unlearning results (unlearn-metrics)",
            )
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"{repo_id} was not pushed to: {first_line(error)}; the card is written") from None


def updated(text: str, record: RunRecord, name: str = "the card", everything: bool = False) -> str:
    """The text of a card with the record's results in its metadata and at its end, or where an earlier run's were."""
    bom = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(bom)
    found = REGEX_YAML_BLOCK.search(text)
    if found is None:
        raise InputError(f"{name} is no model card: it does not begin with metadata between two lines of ---")
    newline = "\r\n" if "\r\n" in found[1] else "\n"
    metadata, body = found[2].replace("\r\n", "\n"), text[found.end() :]
    before = _load(metadata, name)
    index = _merge(before.get(KEY), record, name, everything)
    written = yaml.dump({KEY: index}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n")
    blocks = list(_BLOCK.finditer(metadata))
    if (KEY in before) != (len(blocks) == 1):
        raise InputError(f"{name}: its {KEY} is written in a way that cannot be edited; put it on lines of its own")
    if blocks:
        metadata = metadata[: blocks[0].start()] + written + metadata[blocks[0].end() :]
    else:
        metadata = "\n".join(part for part in (metadata.rstrip("\n"), written) if part)
    after = _load(metadata, name)
    if {**after, KEY: None} != {**before, KEY: None} or after[KEY] != index:
        raise InputError(f"{name}: its metadata cannot be edited without changing the rest of it")
    body = _section(body, record, newline, name, everything)
    return bom + found[1] + metadata.replace("\n", newline) + found[3] + body


class _Dumper(yaml.SafeDumper):
    """An interval on one line."""


def _numbers(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = bool(data) and all(isinstance(part, int | float) for part in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _numbers)


def _load(metadata: str, name: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(metadata)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is no model card: its metadata is not YAML: {first_line(error)}") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{name} is no model card: its metadata is not a mapping")
    return loaded or {}


def _merge(index: Any, record: RunRecord, name: str, everything: bool) -> list[dict[str, Any]]:
    """The model-index with the results of others kept as they are, and ours of this benchmark replaced."""
    if index is not None and not (
        isinstance(index, list)
        and index
        and all(isinstance(model, dict) and isinstance(model.get("results"), list) for model in index)
    ):
        raise InputError(f"{name}: its {KEY} is not a list of models with results")
    try:
        if index is not None:
            model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"an entry has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{name}: the hub cannot read its {KEY} ({what}); repair it or take it out") from None
    mine = entries(record, everything)
    if not mine:
        raise InputError("the run has no score to publish")
    fresh = eval_results_to_model_index(_label(record.name), mine)[0]
    if index is None:
        return [fresh]
    first, *others = index
    kept = [result for result in first["results"] if not _ours(result, record.benchmark)]
    return [{**first, "results": kept + fresh["results"]}, *others]


def _ours(result: Any, benchmark: str) -> bool:
    if not isinstance(result, dict):
        return False
    task, dataset = result.get("task"), result.get("dataset")
    if not isinstance(task, dict) or not isinstance(dataset, dict):
        return False
    return _is_ours(task.get("name"), dataset.get("config"), benchmark)


def _is_ours(task: Any, config: Any, benchmark: str) -> bool:
    return (task, config) == (TASK_NAME, benchmark)


@dataclass(frozen=True)
class Figure:
    """A value of the card: of a split, a metric, a model; as called in tables. alpha: of the model."""

    split: str
    metric: str
    called: str
    score: Score
    alpha: float | None


HEADLINE, USUAL = 6, ("model_utility", "forget_quality", "privleak")  # values; composites among them


def headline(record: RunRecord) -> list[Figure]:
    """At most six values that sum a run up: what is still there, at equal retention and as published, what was kept,
    and the benchmark's composites as published. Of a record that has none of these: the first that it has."""
    first = record.headline.forget[0] if record.headline.forget else "extraction_strength"
    found = []
    if (residual := record.residual.get(first)) is not None:
        split = record.path.splits.get(first, "forget") if record.path else "forget"
        at = f"at {100 * residual.retention:.4g} % retention"
        n = None if record.path is None else int(sum(record.path.forget[first].count[0]))
        parts = [
            (f"residual {first} {at}", residual.value),
            (f"{first} {at}, {table.RESCALED}", residual.above_floor),
        ]
        for called, estimate in parts:
            if estimate is not None and estimate.value is not None:
                score = Score(estimate.value, estimate.low, estimate.high, n, 0)
                found.append(Figure(split, first, called, score, residual.alpha))
    found += _published(record, record.headline.forget, True, 1 if not record.headline.chance else HEADLINE)
    found += _published(record, [record.control.metric or record.headline.retain, *record.headline.forget], False, 1)
    found += [
        f for f in _composites(record) if f.called == f"{f.metric}, {PUBLISHED['unlearned']}" and f.metric in USUAL
    ]
    found = [f for f in found if f.score.value is not None]
    return (found or [f for f in (*_scores(record), *_composites(record)) if f.score.value is not None])[:HEADLINE]


def _published(record: RunRecord, metrics: Sequence[str], forget: bool, most: int) -> list[Figure]:
    """Of the first of these metrics that are known as published, on the forget set or beside it; of each, one value."""
    found: dict[str, Figure] = {}
    for metric in metrics:
        for figure in _scores(record):
            there = is_forget(figure.split) == forget or "." in metric
            if figure.metric == metric and there and figure.called.endswith(PUBLISHED["unlearned"]):
                found.setdefault(metric, figure)
    return [figure for figure in found.values() if figure.score.value is not None][:most]


def _scores(record: RunRecord) -> list[Figure]:
    return [
        Figure(split, metric, f"{metric}, {PUBLISHED[model]}", score, _alpha(record, model))
        for _, split, metric in table.rows(table.measured(record.scores))
        for model in PUBLISHED
        if (score := record.scores.get(model, {}).get(split, {}).get(metric)) is not None
    ]


def _composites(record: RunRecord) -> list[Figure]:
    return [
        Figure("all", metric, f"{metric}, {PUBLISHED[model]}", score, _alpha(record, model))
        for model in PUBLISHED
        for metric, score in record.composites.get(model, {}).items()
    ]


def _alpha(record: RunRecord, model: str) -> float:
    return record.control.alpha if model == "controlled" else 1.0


def entries(record: RunRecord, everything: bool = False) -> list[EvalResult]:
    """The metadata: the headline, or everything that the table has.

    What has no value has no entry. Each carries its interval, n and alpha as arguments of the metric, and the signature
    as an argument of the data set.
    """
    figures = headline(record)
    if everything:
        figures += [f for f in (*_scores(record), *_composites(record)) if f.called not in {h.called for h in figures}]
    dataset = next((hub for start, hub in DATASETS.items() if record.benchmark.startswith(start)), record.benchmark)
    return [
        EvalResult(
            task_type=TASK_TYPE,
            task_name=TASK_NAME,
            dataset_type=dataset,
            dataset_name=record.benchmark,
            dataset_config=record.benchmark,
            dataset_args={"signature": record.signature},
            metric_type=figure.metric,
            metric_name=_named(figure),
            metric_value=figure.score.value,
            metric_args=_arguments(figure),
        )
        for figure in figures
        if figure.score.value is not None
    ]


def _named(figure: Figure) -> str:
    return figure.called if figure.split == "all" else f"{figure.called} ({figure.split})"


def _arguments(figure: Figure) -> dict[str, Any]:
    score = figure.score
    interval = {} if score.ci_low is None else {"ci95": [score.ci_low, score.ci_high]}
    found = {"n": score.n, "alpha": figure.alpha}
    return interval | {name: value for name, value in found.items() if value is not None}


def _label(name: str) -> str:
    """A hub id as it is, of a path the last part: the rest is nobody's business. No control characters."""
    parts = name.rstrip("/").split("/")
    return one_line(name if len(parts) == 2 and all(parts) else parts[-1] or name)


def section(record: RunRecord, everything: bool = False) -> str:
    """The part of a card between two comments that mark it: the verdict, and the headline's table or all there is."""
    original = record.checkpoints.get("original")
    text = table.escape_markdown
    names = [_label(record.name), *([_label(original.path)] if original else [])]
    lines = [_mark(record), f"### Unlearning: {record.benchmark}", ""]
    lines += [f"**{text(record.verdict)}**", ""] if record.verdict else []
    lines += ["| | value [95 % interval] | on | n |", "|---|---:|---|---:|"]
    for figure in headline(record):
        way = table.arrow(record, figure.metric, figure.split) if figure.split != "all" else _way(figure.metric)
        n = "" if figure.score.n is None else str(figure.score.n)
        split = "" if figure.split == "all" else text(figure.split)
        lines.append(f"| {text(figure.called)} {way} | {table.cell(figure.score)} | {split} | {n} |")
    lines += attacked.markdown(record)
    lines += ["", "All scores:", "", table.markdown(record).rstrip("\n")] if everything else []
    lines += [
        "",
        f"{', unlearned from '.join(map(text, names))}; {text(describe(record.control))}. "
        "The arrow shows which way is good.",
        "",
        f"Signature: `{record.signature}`",
        _mark(record, "/"),
    ]
    return "\n".join(lines)


def _way(composite: str) -> str:
    return table.ARROW[COMPOSITES[composite].better] if composite in COMPOSITES else "·"


def _mark(record: RunRecord, end: str = "") -> str:
    return f"<!-- {end}unlearn-metrics {record.benchmark} -->"


def _section(body: str, record: RunRecord, newline: str, name: str, everything: bool) -> str:
    start, end = _mark(record), _mark(record, "/")
    written = section(record, everything).replace("\n", newline)
    counts = body.count(start), body.count(end)
    if counts == (1, 1) and body.index(start) < body.index(end):
        return body[: body.index(start)] + written + body[body.index(end) + len(end) :]
    if counts != (0, 0):
        raise InputError(
            f"{name}: the marks around the results of {record.benchmark} are not a pair; repair or delete them"
        )
    gap = "" if not body else newline if body.endswith("\n") else newline * 2
    return body + gap + written + newline
