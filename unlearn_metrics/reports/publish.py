"""Results of a run into a Hugging Face model card: its metadata, and a table in its text. Offline; `push` alone is not.

Format. The hub reads evaluation results from two places. `model-index` in the card's metadata (huggingface_hub's
EvalResult) takes any data set and any number of metrics: written here. The newer `.eval_results/*.yaml`
(EvalResultEntry) takes one value for a task that a data set's eval.yaml registers, and is refused for others; no
unlearning benchmark is registered, so it is not written. See docs/publish.md.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.record import RunRecord, Score
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import table

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


def publish(record: RunRecord, card: Path) -> bool:
    """Write the record's results into the card. True if that changed it.

    Everything else in the card stays as it is, byte for byte; entries and table of an earlier run on the same benchmark
    are replaced. Raises InputError for what is no model card. The card is whole at any moment.
    """
    path = card.resolve()
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise InputError(f"{card} is no model card: it has more than {MAX_CARD_BYTES >> 20} MiB")
        old = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{card} cannot be read as a model card: {first_line(error)}") from None
    new = updated(old, record, str(card))
    if new == old:
        return False
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(new.encode())
        shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


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


def updated(text: str, record: RunRecord, name: str = "the card") -> str:
    """The text of a card with the record's results in its metadata and at its end, or where an earlier run's were."""
    bom = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(bom)
    found = REGEX_YAML_BLOCK.search(text)
    if found is None:
        raise InputError(f"{name} is no model card: it does not begin with metadata between two lines of ---")
    newline = "\r\n" if "\r\n" in found[1] else "\n"
    metadata, body = found[2].replace("\r\n", "\n"), text[found.end() :]
    before = _load(metadata, name)
    index = _merge(before.get(KEY), record, name)
    written = yaml.safe_dump({KEY: index}, sort_keys=False, allow_unicode=True).rstrip("\n")
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
    body = _section(body, record, newline, name)
    return bom + found[1] + metadata.replace("\n", newline) + found[3] + body


def _load(metadata: str, name: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(metadata)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is no model card: its metadata is not YAML: {first_line(error)}") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{name} is no model card: its metadata is not a mapping")
    return loaded or {}


def _merge(index: Any, record: RunRecord, name: str) -> list[dict[str, Any]]:
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
    mine = entries(record)
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
    return (
        isinstance(task, dict)
        and isinstance(dataset, dict)
        and (task.get("name"), dataset.get("config")) == (TASK_NAME, benchmark)
    )


def entries(record: RunRecord) -> list[EvalResult]:
    """The metadata: the headline's metrics and the composites, as published and under control.

    What has no value has no entry. Each carries its interval, n, alpha and the signature as arguments of the metric.
    """
    rows = [
        (model, split, metric, record.scores[model].get(split, {}).get(metric))
        for _, split, metric in table.rows(table.measured(record.scores))
        for model in PUBLISHED
        if model in record.scores
    ]
    rows += [
        (model, "all", metric, score)
        for model in PUBLISHED
        for metric, score in record.composites.get(model, {}).items()
    ]
    rows.sort(key=lambda row: row[1])
    dataset = next((hub for start, hub in DATASETS.items() if record.benchmark.startswith(start)), record.benchmark)
    return [
        EvalResult(
            task_type=TASK_TYPE,
            task_name=TASK_NAME,
            dataset_type=dataset,
            dataset_name=f"{record.benchmark} ({split})",
            dataset_config=record.benchmark,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{metric}, {PUBLISHED[model]}",
            metric_value=score.value,
            metric_args=_arguments(record, model, score),
        )
        for model, split, metric, score in rows
        if score is not None and score.value is not None
    ]


def _arguments(record: RunRecord, model: str, score: Score) -> dict[str, Any]:
    interval = {} if score.ci_low is None else {"ci95": [score.ci_low, score.ci_high]}
    alpha = record.control.alpha if model == "controlled" else 1.0
    count = {} if score.n is None else {"n": score.n}
    return {**interval, **count, "alpha": alpha, "signature": record.signature}


def _label(name: str) -> str:
    """A hub id as it is, of a path the last part: the rest is nobody's business. No control characters."""
    parts = name.rstrip("/").split("/")
    text = name if len(parts) == 2 and all(parts) else parts[-1] or name
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def section(record: RunRecord) -> str:
    """The table of a card, between two comments that mark it."""
    original = record.checkpoints.get("original")
    text = table.escape_markdown
    names = [_label(record.name), *([_label(original.path)] if original else [])]
    lines = [
        _mark(record),
        f"### Unlearning: {record.benchmark}",
        "",
        table.markdown(record).rstrip("\n"),
        "",
        f"{', unlearned from '.join(map(text, names))}; {text(describe(record.control))}. "
        "Values with 95 % intervals over n documents; the arrow shows which way is good.",
        "",
        f"Signature: `{record.signature}`",
        _mark(record, "/"),
    ]
    return "\n".join(lines)


def _mark(record: RunRecord, end: str = "") -> str:
    return f"<!-- {end}unlearn-metrics {record.benchmark} -->"


def _section(body: str, record: RunRecord, newline: str, name: str) -> str:
    start, end = _mark(record), _mark(record, "/")
    written = section(record).replace("\n", newline)
    counts = body.count(start), body.count(end)
    if counts == (1, 1) and body.index(start) < body.index(end):
        return body[: body.index(start)] + written + body[body.index(end) + len(end) :]
    if counts != (0, 0):
        raise InputError(
            f"{name}: the marks around the results of {record.benchmark} are not a pair; repair or delete them"
        )
    gap = "" if not body else newline if body.endswith("\n") else newline * 2
    return body + gap + written + newline
