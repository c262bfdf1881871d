"""Everything that a run needs, opened and checked before any work: checkpoints, tasks, the model, the control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from unlearn_metrics.backends import classifier, hf
from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.checkpoints.files import Checkpoint, check_finite, identify, open_checkpoint, precision
from unlearn_metrics.checkpoints.pairs import align
from unlearn_metrics.checkpoints.tokenizers import check_chat_template, other_templates, with_fixed_date
from unlearn_metrics.control.controls import Family, family
from unlearn_metrics.control.mixing import FINER
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.jobs import identity, keep
from unlearn_metrics.jobs.job import Job, Reference, Tasks
from unlearn_metrics.record import CheckpointInfo, under
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import stages
from unlearn_metrics.scores.models import membership, whole
from unlearn_metrics.settings import OwnData, Settings
from unlearn_metrics.splits import kept_on

T = TypeVar("T")


@dataclass
class Warm:
    """What a run leaves for the next one of this process: the model, opened checkpoints, tasks; by what made them.

    common: the folder where observations of checkpoints as published are kept, for the runs of any process that need
    the same.
    """

    common: Path | None = None
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def __call__(self, *key: Any, make: Callable[[], T]) -> T:
        if key not in self.made:
            self.made[key] = make()
        made: T = self.made[key]
        return made

    def lm(self, original: Checkpoint, unlearned: Checkpoint, info: CheckpointInfo, settings: Settings) -> HFLM:
        """The model of the original. One is held at a time; each run rewrites its parameters.

        One whose vocabulary or head a run has changed is built anew. info: identifies the original.
        """
        chosen = settings.device, settings.dtype, settings.batch_size, settings.model_args
        key = ("lm", info, precision(unlearned), *chosen)
        if key not in self.made or self.made[key][1] != _structure(self.made[key][0]):
            for other in [other for other in self.made if other[0] == "lm"]:
                del self.made[other]
            lm = build_lm(original, unlearned, settings)
            self.made[key] = lm, _structure(lm)
        lm = self.made[key][0]
        hf.work(lm).clear()
        return lm


def _structure(lm: HFLM) -> list[tuple[int, int]]:
    """What load_into may change beside the values: the vocabulary's rows, and whether the head is the embedding."""
    ends = lm.model.get_input_embeddings().weight, lm.model.get_output_embeddings().weight
    return [(id(weight), len(weight)) for weight in ends]


def open_job(
    original: str,
    unlearned: str,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    say: Callable[[str], None],
    partial: Path | None,
    warm: Warm,
) -> Job:
    """Open and check all that a run needs; the model comes last. InputError for bad input."""
    tasks, others, settings = open_tasks(benchmark, data, settings, warm)
    reference = None if settings.reference_record is None else open_reference(benchmark, tasks, settings)
    gibberish = settings.gibberish_model
    reader = (
        None if gibberish is None else warm("reader", gibberish, make=lambda: classifier.open_classifier(gibberish))
    )
    say(f"checking {original} and {unlearned}")
    o, u = open_pair(original, unlearned, warm)
    models = None if settings.without_control else family_of(settings, o, u)
    published = {"original": (o, o), "unlearned": (o, u)}
    checkpoints = {"original": warm("identity", original, make=lambda: identify(o)), "unlearned": identify(u)}
    if settings.retain_model is not None:
        say(f"checking {settings.retain_model}")
        published["retain_only"] = open_pair(original, settings.retain_model, warm)
        retain = published["retain_only"][1]
        checkpoints["retain_only"] = warm("identity", settings.retain_model, make=lambda: identify(retain))
    elif reference is not None:
        checkpoints["retain_only"] = reference.checkpoint
    for _, checkpoint in published.values():
        for note in checkpoint.notes:
            say(note)
    if settings.apply_chat_template:
        check_chat_template(o)
        if differing := other_templates(published):
            say(f"the chat templates differ: {' and '.join(differing)}; all are asked in the original's")
    coarse = None if models is None else models.rounding(settings.alpha)
    if coarse is not None:
        say(f"{coarse}; {FINER}")
    lm = warm.lm(o, u, checkpoints["original"], settings)
    along = {} if models is None else {f"at {a!r}": identify(models.at(a)) for a in models.strengths or ()}
    # once: rendering all prompts of many tasks takes seconds
    texts = (
        settings.limit,
        settings.sample,
        settings.utility_limit,
        settings.apply_chat_template,
        settings.gradnorm,
        settings.include_path,
    )
    known = ("requests", benchmark, repr(data), settings.utility_tasks, texts, checkpoints["original"])
    requests = warm(*known, make=lambda: identity.requests_hash(tasks, lm, settings, others))
    fingerprint = identity.fingerprint(tasks, lm, checkpoints | along, settings, others, requests)
    stage = stages(partial, fingerprint, hf.work(lm), say, warm.common)
    return Job(
        benchmark=benchmark,
        tasks=tasks,
        others=others,
        settings=settings,
        headline=suites.headline(benchmark),
        published=published,
        models=models,
        rounding=coarse,
        checkpoints=checkpoints,
        reference=reference,
        reader=reader,
        lm=lm,
        requests=requests,
        stage=stage,
        say=say,
    )


def open_pair(original: str, unlearned: str, warm: Warm | None = None) -> tuple[Checkpoint, Checkpoint]:
    """Open and check two checkpoints. InputError names what is wrong with either, or how they differ."""
    warm = warm or Warm()
    base = warm("checkpoint", original, make=lambda: open_checkpoint(original))
    o, u = align(base, open_checkpoint(unlearned, base))
    warm("finite", original, make=lambda: check_finite(o))
    warm("finite", unlearned, make=lambda: check_finite(u))
    return o, u


def family_of(settings: Settings, original: Checkpoint, unlearned: Checkpoint) -> Family:
    """The control that the settings name, applied to a pair."""
    metric = None if settings.keep is None else settings.retention_metric
    return family(settings.control, original, unlearned, settings.layers, settings.trajectory, metric)


def build_lm(original: Checkpoint, unlearned: Checkpoint, settings: Settings) -> HFLM:
    """lm-eval's Hugging Face model of the original. Default: a GPU if there is one; float32 on a CPU, else the dtype of
    the unlearned checkpoint, in which `control` writes, so that both are measured in it. dtype auto is that one on a
    CPU too, but float32 instead of a bfloat16 that the CPU has no instructions for."""
    if settings.apply_chat_template:
        check_chat_template(original)
    try:
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {settings.device} cannot be used: {first_line(error)}") from None
    dtype = settings.dtype or ("float32" if device.type == "cpu" else "auto")
    try:
        with suites.quiet():
            lm = HFLM(
                pretrained=str(original.folder),
                device=str(device),
                dtype=_own_precision(unlearned, device) if dtype == "auto" else dtype,
                batch_size=settings.batch_size,
                **simple_parse_args_string(settings.model_args),
            )
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"{original.name} cannot be loaded by transformers: {first_line(error)}") from None
    if lm.prefix_token_id is None:
        raise InputError(
            f"{original.name}'s tokenizer has no token that begins a text and none that ends one; lm-eval needs either"
        )
    if settings.apply_chat_template:
        lm.tokenizer.chat_template = with_fixed_date(lm.tokenizer.chat_template)
    return lm


def _own_precision(checkpoint: Checkpoint, device: torch.device) -> str:
    """The checkpoint's dtype, if the device computes in it: in bfloat16 without instructions for it, a CPU is slower
    than in float32."""
    dtype = precision(checkpoint)
    slow = dtype == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16()
    return "float32" if slow else dtype


def cpu_has_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself: x86 with AVX512_BF16 or AMX, ARM with BF16. False if torch can't say."""
    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def open_tasks(
    benchmark: str | None, data: Path | OwnData | None, settings: Settings, warm: Warm
) -> tuple[Tasks, dict[str, dict[str, Any]], Settings]:
    """(our tasks by split, lm-eval's own by name, the settings with what the benchmark decides).

    InputError for what can't be loaded, or can't be calibrated on.
    """

    def load_tasks() -> Tasks:
        tasks = {} if benchmark is None else suites.load(benchmark, data, settings.sample)
        if settings.gradnorm:
            if not set(pair := membership(tasks)) <= tasks.keys():
                raise InputError(f"--gradnorm is a membership attack: {benchmark} has no holdout to compare with")
            for split in pair:
                tasks[split].metrics = [*tasks[split].metrics, "gradnorm"]
        return tasks

    tasks = warm("tasks", benchmark, repr(data), settings.sample, settings.gradnorm, make=load_tasks)
    own = [] if benchmark is None else suites.foreign(benchmark)
    if own and settings.sample is not None:
        raise InputError(f"{benchmark} is made of lm-eval's tasks, which --sample cannot draw from: pass --limit")
    if own:  # they are the benchmark
        if settings.utility_limit is not None:
            raise InputError(f"{benchmark} is made of lm-eval's tasks: --limit is about them, not --utility-limit")
        given = settings.retention_metric
        metric = suites.headline(str(benchmark)).retain if given == Settings.retention_metric else given
        settings = replace(settings, utility_limit=settings.limit, retention_metric=metric)
    if settings.entity_spans is not None and not settings.depth:
        raise InputError("--entity-spans is about --depth")
    if settings.depth and "forget" not in tasks:
        raise InputError(f"--depth reads answers of a split 'forget', which {benchmark} does not have")
    if settings.depth and settings.retain_model is None:
        raise InputError("--depth compares with a retain-only model: pass --retain-model")
    if settings.reference_record is not None and not tasks:
        raise InputError(f"{benchmark} has no metric that needs a reference")
    names, path, folder = settings.utility_tasks, settings.include_path, data if isinstance(data, Path) else None
    others = dict(warm("own", *own, folder, make=lambda: other_tasks.load(own, folder=folder)))
    others |= warm("ability", names, path, make=lambda: other_tasks.load(names, path))
    if taken := [name for name in others if name in tasks or name.split("_")[0] == "forget"]:
        raise InputError(f"the task {taken[0]} has the name of a split of {benchmark}; copy it under another")
    if settings.keep is not None and not settings.without_control:
        keep.check(settings.retention_metric, benchmark or "this command", tasks, others)
        kept = kept_on(settings.retention_metric)
        if kept in tasks and min(len(tasks[kept].eval_docs), settings.limit or 2) < 2:
            raise keep.too_few(kept)
    return tasks, others, settings


def _documents(settings: Mapping[str, object]) -> str:
    limit, sample = settings.get("limit"), settings.get("sample")
    return str(limit or (f"{sample} drawn" if sample else "all"))


def open_reference(benchmark: str, tasks: Tasks, settings: Settings) -> Reference:
    """The earlier run that settings.reference_record names. InputError if the model is not there, or if that run was of
    other documents."""
    folder, model = settings.reference_record, settings.reference_from
    assert folder is not None
    record = store.load_record(folder)
    if model not in record.scores or model not in record.checkpoints:
        there = ", ".join(m for m in record.scores if m in record.checkpoints)
        raise InputError(f"{folder} holds no {model} model; --reference-from can be {there}")
    if record.benchmark != benchmark:
        raise InputError(f"{folder} is a run of {record.benchmark}, not of {benchmark}")
    theirs, ours = _documents(record.settings), _documents(vars(settings))
    if theirs != ours:
        raise InputError(f"{folder} is a run of {theirs} documents of each split, this one is of {ours}")
    for split, task in tasks.items():
        if record.data.get(split) != task.data_sha256:
            raise InputError(f"{folder} can't be the reference of this run: its {split} documents are others")
    observed = store.load_documents(folder)
    documents = whole(observed.get(model, {}))
    made = {} if record.attacks is None else record.attacks.made
    attacked = {name: (info, observed[at]) for name, info in made.items() if (at := under(model, name)) in observed}
    return Reference(record, record.checkpoints[model], {split: documents[split] for split in tasks}, attacked)
