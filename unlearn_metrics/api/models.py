"""The functions of the Python API that run a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from unlearn_metrics import progress as bars
from unlearn_metrics.api.parameters import Place, listed, python_names, text
from unlearn_metrics.benchmarks.data import OWN, parse_fields
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.progress import Say
from unlearn_metrics.record import Control
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.run import Run
from unlearn_metrics.settings import DType, Model, OwnData, chosen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Progress: TypeAlias = bool | Say
_SPLITS = ("forget", "retain", "holdout")


@contextlib.contextmanager
def _shown(progress: Progress) -> Iterator[Say]:
    """The function to which a job reports its steps, and whatever shows them."""
    if callable(progress):
        with bars.shown(visible=False, line=progress) as say:
            yield say
    else:
        with bars.shown(visible=None if progress else False) as say:
            yield say


def _source(
    benchmark: str | OwnData | None, data: Place | None, first: str
) -> tuple[str | None, Path | OwnData | None]:
    """(name, data) of a benchmark; of the user's own data, `first` is the split that must be there."""
    if not isinstance(benchmark, OwnData):
        return benchmark, None if data is None else Path(data)
    if data is not None:
        raise InputError("data goes with a benchmark's name; OwnData names its files itself")
    files = {split: Path(path) for split, path in benchmark.files.items()}
    if unknown := files.keys() - {*_SPLITS}:
        raise InputError(f"OwnData has no split '{min(unknown)}'; {did_you_mean(min(unknown), _SPLITS)}")
    if first not in files:
        raise InputError(f"OwnData needs a file for '{first}', such as OwnData({{'{first}': 'mine.jsonl'}})")
    if not benchmark.prefix >= 0:
        raise InputError(f"OwnData: prefix {benchmark.prefix} is below 0")
    fields = benchmark.fields
    if fields is not None:
        fields = parse_fields(",".join(f"{name}={column}" for name, column in fields.items()), "OwnData: fields")
    return OWN, OwnData(files, fields, benchmark.prefix)


@python_names
def score(
    original: Place,
    unlearned: Place | None = None,
    *,
    benchmark: str | OwnData,
    data: Place | None = None,
    keep: float | None = None,
    alpha: float | None = None,
    control: str = "mix",
    retention_metric: str | None = None,
    layers: str | None = None,
    trajectory: Place | None = None,
    retain_model: Place | None = None,
    reference_record: Place | Run | None = None,
    reference_from: Model = "retain_only",
    metrics: str | Iterable[str] = (),
    utility_tasks: str | Iterable[str] = (),
    include_path: Place | None = None,
    utility_limit: int | None = None,
    attacks: str | Iterable[str] = (),
    gibberish_model: str | None = None,
    gradnorm: bool = False,
    depth: bool = False,
    entity_spans: Place | None = None,
    name: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    device: str | None = None,
    dtype: DType | None = None,
    apply_chat_template: bool = False,
    model_args: str = "",
    batch_size: int = 1,
    seed: int = 0,
    out: Place | None = None,
    overwrite: bool = False,
    progress: Progress = True,
) -> Run:
    """Score an unlearned checkpoint beside the original, as published and under control.

    A model that is in memory is scored after `model.save_pretrained(folder)`: the control mixes checkpoints on disk,
    so that it holds one model in memory instead of three. `token_scores` accepts models as they are.

    Args:
        original: checkpoint before unlearning: a folder, or a hub id or ID@REVISION.
        unlearned: checkpoint after unlearning, or a LoRA adapter; with a trajectory, by default its last.
        benchmark: a name such as "tofu_forget05" (see `list_benchmarks`), or your own data.
        data: folder with the benchmark's files, named as on the hub; None: from the hub.
        keep: calibrate the control to the largest alpha that keeps this share, in (0, 1], of the original's retention.
            By default 0.95, unless alpha is given.
        alpha: control at this strength instead: 0 = original, 1 = unlearned.
        control: "mix", "trim", "layers", "temperature", "select", one that was registered, or "none".
        retention_metric: what `keep` keeps: a metric of the retain split, or TASK.METRIC of one of utility_tasks.
            By default extraction_strength.
        layers: of the control "layers", the layers ("0-3") or the tensors (a regular expression) that it mixes.
        trajectory: of the control "select", the folder of checkpoint-1, checkpoint-2, ...
        retain_model: checkpoint that never saw the forget set: the reference of forget quality and privacy.
        reference_record: an earlier run that scored the reference, instead of retain_model.
        reference_from: which model of that run is the reference.
        metrics: metrics beyond the benchmark's, by name: whatever its documents allow.
        utility_tasks: lm-eval tasks or groups beside the benchmark: general ability.
        include_path: folder with task YAML of your own, for utility_tasks.
        utility_limit: only the first documents of each of these tasks.
        attacks: names of attacks (docs/attacks.md) under which the forget set is scored too, "all" of them, and
            "relearn=CHECKPOINT", "relearn_retain=CHECKPOINT" for those that somebody else fine-tuned again.
        gibberish_model: a text classifier, with a label "clean", that reads the generations.
        gradnorm: the membership attack by gradient norm too, at a backward pass for each document.
        depth: how deep the forgetting reaches, by patching each layer into the original; needs retain_model.
        entity_spans: of depth, a JSON list of {"question", "entity"}, where the entity alone is read.
        name: what tables call the unlearned checkpoint; by default as it is given.
        limit: only the first documents of each split.
        sample: only so many documents of each split, drawn with a fixed seed.
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one.
        dtype: by default float32 on a CPU, the checkpoint's own elsewhere.
        apply_chat_template: prompt through the tokenizer's chat template.
        model_args: how the model is loaded, as lm-eval spells it: "parallelize=True,attn_implementation=sdpa", ...
        batch_size: rows in a batch at most; 1: as many as memory allows.
        seed: of resampling.
        out: folder to write the run to. An interrupted run goes on from there when the same call is made again. None:
            the run is kept in memory only.
        overwrite: replace the run that `out` already holds.
        progress: True: a bar, where it can be seen; False: nothing; a function: it is given each step's line.

    Returns:
        The run.

    Raises:
        InputError: bad input, in one line: what was wrong, where, and what to do.

    Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), for the control by mixing.
    """
    for metric in listed(metrics):
        if metric not in METRICS:
            raise InputError(f"unknown metric '{metric}'; {did_you_mean(metric, METRICS)}")
    if isinstance(reference_record, Run):
        if reference_record.folder is None:
            raise InputError("reference_record is a run in memory: save it to a folder first")
        reference_record = reference_record.folder
    settings = chosen(
        {
            "keep": keep,
            "alpha": alpha,
            "control": control,
            "retention_metric": retention_metric,
            "layers": layers,
            "trajectory": trajectory,
            "retain_model": text(retain_model),
            "reference_record": reference_record,
            "reference_from": reference_from,
            "utility_tasks": listed(utility_tasks),
            "include_path": include_path,
            "utility_limit": utility_limit,
            "attacks": listed(attacks),
            "gibberish_model": gibberish_model,
            "gradnorm": gradnorm,
            "depth": depth,
            "entity_spans": entity_spans,
            "name": name,
            "limit": limit,
            "sample": sample,
            "device": device,
            "dtype": dtype,
            "apply_chat_template": apply_chat_template,
            "model_args": model_args,
            "batch_size": batch_size,
            "seed": seed,
        }
    )
    chosen_name, source = _source(benchmark, data, "forget")
    folder = None if out is None else Path(out)
    from unlearn_metrics.jobs import whole

    with _shown(progress) as say:
        record, observations = whole.score(
            os.fspath(original),
            text(unlearned),
            str(chosen_name),
            source,
            settings,
            folder,
            overwrite,
            say,
            listed(metrics),
        )
    return Run(record, folder, bool(metrics), observations)


@python_names
def attack(
    run: Run | Place,
    attacks: str | Iterable[str] = "all",
    *,
    data: Place | OwnData | None = None,
    original: Place | None = None,
    unlearned: Place | None = None,
    retain_model: Place | None = None,
    device: str | None = None,
    progress: Progress = True,
) -> Run:
    """Attack the models of a run that lies in a folder, and add what comes back of the forget set to it.

    Args:
        run: the run, or its folder, which is written anew. An interrupted call goes on where it was.
        attacks: as in `score`.
        data: as `score` was given it: the benchmark's folder, or your own data; None: from the hub.
        original, unlearned, retain_model: where these checkpoints lie now, if not where the record says.
        device: by default the run's.
        progress: as in `score`.

    Returns:
        The run, with `Run.attacks`.

    Raises:
        InputError: bad input, and checkpoints, data or software that are not the run's.

    Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), robustness under attacks.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    if folder is None:
        raise InputError("attack needs a run in a folder: save it first")
    wanted = chosen({"attacks": listed(attacks)}).attacks
    source = _source(data, None, "forget")[1] if isinstance(data, OwnData) else None if data is None else Path(data)
    places = {"original": text(original), "unlearned": text(unlearned), "retain_only": text(retain_model)}
    from unlearn_metrics.jobs import whole

    folder = folder.parent if folder.name == RECORD else folder
    with _shown(progress) as say:
        record, observations = whole.attack_run(folder, wanted, source, places, device, say)
    return Run(record, folder, False, observations)


@python_names
def mix(
    original: Place,
    unlearned: Place | None = None,
    *,
    alpha: float,
    out: Place,
    control: str = "mix",
    layers: str | None = None,
    trajectory: Place | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    progress: Progress = True,
) -> Control:
    """Write the checkpoint that a control gives, for transformers and lm-eval to load: by default a mix of the two.

    Args:
        original: checkpoint before unlearning: a folder, or a hub id or ID@REVISION.
        unlearned: checkpoint after unlearning, or a LoRA adapter; with a trajectory, by default its last.
        alpha: strength of the control, in [0, 1]: 0 = original, 1 = unlearned; `calibrate` finds one.
        out: folder to write to; it must not hold anything.
        control, layers, trajectory: as in `score`.
        dtype: of the tensors written; by default the unlearned checkpoint's.
        progress: as in `score`.

    Returns:
        What was done, as a record has it.

    Raises:
        InputError: bad input, in one line.

    Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), model mixing.
    """
    settings = chosen({"alpha": alpha, "control": control, "layers": layers, "trajectory": trajectory})
    from unlearn_metrics.jobs import whole

    with _shown(progress) as say:
        return whole.control(os.fspath(original), text(unlearned), None, None, settings, Path(out), dtype, say)


@python_names
def calibrate(
    original: Place,
    unlearned: Place | None = None,
    *,
    benchmark: str | OwnData | None = None,
    data: Place | None = None,
    keep: float = 0.95,
    control: str = "mix",
    retention_metric: str | None = None,
    layers: str | None = None,
    trajectory: Place | None = None,
    utility_tasks: str | Iterable[str] = (),
    include_path: Place | None = None,
    utility_limit: int | None = None,
    limit: int | None = None,
    sample: int | None = None,
    device: str | None = None,
    dtype: DType | None = None,
    apply_chat_template: bool = False,
    model_args: str = "",
    batch_size: int = 1,
    progress: Progress = True,
) -> Control:
    """Find how far an unlearned checkpoint can be followed and still keep what it should, and evaluate nothing else.

    Args:
        original, unlearned: as in `score`.
        benchmark: whose retain split calibrates; or your own data, of which the file for "retain" does. None where
            retention_metric is one of another lm-eval task.
        data, keep, control, retention_metric, layers, trajectory: as in `score`.
        utility_tasks, include_path, utility_limit, limit, sample: as in `score`.
        device, dtype, apply_chat_template, model_args, batch_size: as in `score`.
        progress: as in `score`.

    Returns:
        The control that `score` would choose: alpha, target and achieved retention, and every evaluation made.

    Raises:
        InputError: bad input, in one line.

    Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), calibration of the mixing strength.
    """
    settings = chosen(
        {
            "keep": keep,
            "control": control,
            "retention_metric": retention_metric,
            "layers": layers,
            "trajectory": trajectory,
            "utility_tasks": listed(utility_tasks),
            "include_path": include_path,
            "utility_limit": utility_limit,
            "limit": limit,
            "sample": sample,
            "device": device,
            "dtype": dtype,
            "apply_chat_template": apply_chat_template,
            "model_args": model_args,
            "batch_size": batch_size,
        }
    )
    name, source = _source(benchmark, data, "retain")
    from unlearn_metrics.jobs import whole

    with _shown(progress) as say:
        return whole.control(os.fspath(original), text(unlearned), name, source, settings, None, None, say)


@python_names
def token_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[TokenScores]:
    """Score answers by one teacher-forced pass of a transformers model that is in memory; it is left as it was.

    Args:
        model: a causal language model, on any device and in any dtype.
        tokenizer: its tokenizer.
        pairs: (prompt, answer), where the answer begins with what separates it from the prompt, mostly a space. The
            text is tokenized as lm-eval does.

    Returns:
        For each pair its `TokenScores`: arrays of shape [n + 1], for n answer tokens and end-of-sequence, with
        log-probabilities in nats. It is the argument of most functions in `unlearn_metrics.metrics`.

    Raises:
        InputError: an empty answer, a model that is no causal language model, or one that gives NaN.
    """
    from lm_eval.models.huggingface import HFLM

    from unlearn_metrics.backends import causal, encoding, hf

    training, padding = model.training, tokenizer.pad_token
    with bars.hushed():
        try:
            lm = causal(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1))
            encoded = [encoding.encode(lm, *pair, f"pair {i}") for i, pair in enumerate(pairs)]
            return hf.token_scores(lm, encoded)
        finally:
            model.train(training)
            tokenizer.pad_token = padding


def list_benchmarks() -> dict[str, list[str]]:
    """The benchmarks that `score` accepts by name.

    Returns:
        Name -> its lm-eval tasks.
    """
    from unlearn_metrics.benchmarks import suites

    return suites.benchmarks()
