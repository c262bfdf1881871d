"""The main job: evaluate the original and the unlearned model, control the latter, evaluate it again, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends import classifier, hf
from unlearn_metrics.benchmarks import other_tasks, suites
from unlearn_metrics.checkpoints.files import Checkpoint, check_finite, identify, open_checkpoint
from unlearn_metrics.checkpoints.pairs import align
from unlearn_metrics.control.controls import Family, family
from unlearn_metrics.control.mixing import ControlFunction, mix, mix_into
from unlearn_metrics.documents import Document, Observations, TokenScores, kept_on
from unlearn_metrics.errors import InputError, first_line
from unlearn_metrics.jobs import identity, keep
from unlearn_metrics.metrics import JUDGED
from unlearn_metrics.record import CheckpointInfo, Control, RunRecord
from unlearn_metrics.records import signature, store
from unlearn_metrics.records.folder import Stages, stages
from unlearn_metrics.scores.composites import membership, whole
from unlearn_metrics.scores.scoring import score_all
from unlearn_metrics.scores.splits import halves
from unlearn_metrics.settings import OwnData, Settings

T = TypeVar("T")


@dataclass
class Warm:
    """What a run leaves for the next one of this process: the model, opened checkpoints, tasks; by what made them.

    common: the folder where what models said is kept, for the runs of any process that ask one of them the same.
    """

    common: Path | None = None
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def __call__(self, *key: Any, make: Callable[[], T]) -> T:
        if key not in self.made:
            self.made[key] = make()
        made: T = self.made[key]
        return made

    def lm(self, original: Checkpoint, info: CheckpointInfo, settings: Settings) -> HFLM:
        """The model of the original. One is held at a time; each run rewrites its parameters.

        One whose vocabulary or head a run has changed is built anew.
        """
        key = ("lm", info, settings.device, settings.dtype, settings.batch_size)
        if key not in self.made or self.made[key][1] != _structure(self.made[key][0]):
            for other in [other for other in self.made if other[0] == "lm"]:
                del self.made[other]
            lm = build_lm(original, settings)
            self.made[key] = lm, _structure(lm)
        lm = self.made[key][0]
        hf.work(lm).clear()
        return lm


def _structure(lm: HFLM) -> list[tuple[int, int]]:
    """What load_into may change beside the values: the vocabulary's rows, and whether the head is the embedding."""
    ends = lm.model.get_input_embeddings().weight, lm.model.get_output_embeddings().weight
    return [(id(weight), len(weight)) for weight in ends]


def open_pair(original: str, unlearned: str, warm: Warm | None = None) -> tuple[Checkpoint, Checkpoint]:
    """Open and check two checkpoints. InputError says what is wrong with either, or how they differ."""
    warm = warm or Warm()
    base = warm("checkpoint", original, make=lambda: open_checkpoint(original))
    o, u = align(base, open_checkpoint(unlearned, base))
    warm("finite", original, make=lambda: check_finite(o))
    check_finite(u)
    return o, u


def family_of(settings: Settings, original: Checkpoint, unlearned: Checkpoint) -> Family:
    """The control that the settings name, applied to a pair."""
    metric = None if settings.keep is None else settings.retention_metric
    return family(settings.control, original, unlearned, settings.layers, settings.trajectory, metric)


def build_lm(checkpoint: Checkpoint, settings: Settings) -> HFLM:
    """lm-eval's Hugging Face model. Default: a GPU if there is one; float32 on a CPU, else the checkpoint's dtype."""
    try:
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {settings.device} cannot be used: {first_line(error)}") from None
    dtype = settings.dtype or ("float32" if device.type == "cpu" else "auto")
    try:
        with suites.quiet():
            return HFLM(
                pretrained=str(checkpoint.folder),
                device=str(device),
                dtype=dtype,
                batch_size=settings.batch_size,
            )
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{checkpoint.name} cannot be loaded by transformers: {first_line(error)}") from None


def open_tasks(
    benchmark: str | None, data: Path | OwnData | None, settings: Settings, warm: Warm
) -> tuple[dict[str, suites.TokenScoreTask], dict[str, dict[str, Any]], Settings]:
    """(our tasks by split, lm-eval's own by name, the settings with what the benchmark decides).

    InputError for what can't be loaded, or can't be calibrated on.
    """

    def load_tasks() -> dict[str, suites.TokenScoreTask]:
        tasks = {} if benchmark is None else suites.load(benchmark, data)
        if settings.gradnorm:
            if not set(pair := membership(tasks)) <= tasks.keys():
                raise InputError(f"--gradnorm is a membership attack: {benchmark} has no holdout to compare with")
            for split in pair:
                tasks[split].metrics = [*tasks[split].metrics, "gradnorm"]
        return tasks

    tasks = warm("tasks", benchmark, repr(data), settings.gradnorm, make=load_tasks)
    own = [] if benchmark is None else suites.foreign(benchmark)
    if own:  # they are the benchmark
        if settings.utility_limit is not None:
            raise InputError(f"{benchmark} is made of lm-eval's tasks: --limit is about them, not --utility-limit")
        given = settings.retention_metric
        metric = suites.retention_metric(str(benchmark)) if given == Settings.retention_metric else given
        settings = replace(settings, utility_limit=settings.limit, retention_metric=metric)
    names, path, folder = settings.utility_tasks, settings.include_path, data if isinstance(data, Path) else None
    others = dict(warm("own", *own, folder, make=lambda: other_tasks.load(own, folder=folder)))
    others |= warm("ability", names, path, make=lambda: other_tasks.load(names, path))
    if taken := [name for name in others if name in tasks or name.split("_")[0] == "forget"]:
        raise InputError(f"the task {taken[0]} has the name of a split of {benchmark}; copy it under another")
    if settings.keep is not None and not settings.without_control:
        keep.check(settings.retention_metric, benchmark or "this command", tasks, others)
    return tasks, others, settings


def calibrate_only(
    lm: HFLM,
    models: Family,
    benchmark: str | None,
    data: Path | OwnData | None,
    settings: Settings,
    say: Callable[[str], None],
) -> Control:
    """The control that `run` would choose, evaluating nothing but what it is calibrated on."""
    tasks, others, settings = open_tasks(benchmark, data, settings, Warm())
    assert settings.keep is not None
    metric = settings.retention_metric
    documents = keep.observer(lm, tasks, others, settings)()
    half = keep.observer(lm, tasks, others, settings, step=2)
    return keep.control(lm, models, settings.keep, metric, documents, half, say, Stages(None, hf.work(lm), say))


def run(
    original: str,
    unlearned: str,
    benchmark: str,
    data: Path | OwnData | None,
    settings: Settings,
    say: Callable[[str], None] = lambda message: None,
    partial: Path | None = None,
    warm: Warm | None = None,
) -> tuple[RunRecord, Observations]:
    """Score an unlearned checkpoint, raw and under control, beside the original. InputError for bad input.

    partial: where each stage is kept as it completes, and taken from if the same run was killed (folder.claim).
    warm: what runs before this one left, and this one leaves; without it, nothing. The record is the same.
    """
    start = time.monotonic()
    warm = warm or Warm()
    tasks, others, settings = open_tasks(benchmark, data, settings, warm)
    metric, kept = settings.retention_metric, kept_on(settings.retention_metric)
    if settings.reference_record is not None and not tasks:
        raise InputError(f"{benchmark} has no figure that needs a reference")
    if settings.reference_record is not None:
        earlier, known, answered = open_reference(
            settings.reference_record, settings.reference_from, benchmark, tasks, settings.limit
        )
    reader = None
    if (judge_of_language := settings.gibberish_model) is not None:
        reader = warm("classifier", judge_of_language, make=lambda: classifier.open_classifier(judge_of_language))
    say(f"checking {original} and {unlearned}")
    o, u = open_pair(original, unlearned, warm)
    models = None if settings.without_control else family_of(settings, o, u)
    checkpoints = {"original": warm("identity", original, make=lambda: identify(o)), "unlearned": identify(u)}
    notes = u.notes
    if settings.retain_model is not None:
        say(f"checking {settings.retain_model}")
        base, r = open_pair(original, settings.retain_model, warm)
        checkpoints["retain_only"] = identify(r)
        notes = (*notes, *r.notes)
    elif settings.reference_record is not None:
        checkpoints["retain_only"] = known
    for note in notes:
        say(note)
    lm = warm.lm(o, checkpoints["original"], settings)
    along = () if models is None else models.strengths or ()
    known_as = checkpoints | {f"at {alpha!r}": identify(models.at(alpha)) for alpha in along if models is not None}
    whole_run = identity.fingerprint(tasks, lm, known_as, settings, others)
    stage = stages(partial, whole_run, hf.work(lm), say, warm.common)

    def observe(
        alpha: float, low: Checkpoint = o, high: Checkpoint = u, fn: ControlFunction = mix
    ) -> dict[str, list[Document]]:
        mix_into(lm.model, low, high, alpha, fn)
        splits = suites.evaluate(lm, tasks, settings.limit, settings.apply_chat_template) if tasks else {}
        documents = spoken(splits)
        for document, judged in zip(documents, judge(lm, documents), strict=True):
            document["self_judged_generation"] = judged
            if alpha == 0:  # the original is the judge
                document["judged_generation"] = judged
        return splits | other_tasks.evaluate(lm, others, settings.utility_limit, settings.apply_chat_template)

    def plainly(model: str, alpha: float, low: Checkpoint = o, high: Checkpoint = u) -> dict[str, list[Document]]:
        """What a checkpoint says as it is, which is the same in every run that asks it the same."""
        of = {"original": checkpoints["original"]}
        if model != "original":
            of["checkpoint"] = checkpoints[model]
        key = identity.fingerprint(tasks, lm, of, identity.asked(settings), others)
        return stage.shared(model, key, lambda: observe(alpha, low, high))

    say("evaluating the original")
    seen: Observations = {"original": plainly("original", 0)}
    firsts = {split: seen["original"][split][0] for split in tasks}
    if settings.reference_record is not None:
        mine = identity.signature_of(benchmark, tasks, firsts, lm, Control("none", 1.0), settings, {})
        if differing := signature.differences(earlier.signature, mine, besides=("ctl",)):
            where = f"{settings.reference_record} can't be the reference of this run"
            raise InputError(f"{where}: {'; '.join(differing)}")
    # calibrating reads only the original's documents; it comes before the rest so that its refusals do
    if models is None:
        control = Control(method="none", alpha=1.0)
    elif settings.alpha is not None:
        control = Control(method=models.method, alpha=settings.alpha, parameters=models.given(settings.alpha))
    else:
        say(f"calibrating the control {models.method} on {metric}")
        assert settings.keep is not None
        half = keep.observer(lm, tasks, others, settings, step=2)
        beside = None
        if models.strengths is not None and kept == "retain" and metric in tasks["forget"].metrics:
            beside = keep.observer_of(lm, tasks["forget"], metric, settings)
        documents = seen["original"][kept]
        control = keep.control(lm, models, settings.keep, metric, documents, half, say, stage, beside)
    say("evaluating the unlearned model")
    seen["unlearned"] = plainly("unlearned", 1)
    if models is not None:
        held = models.at(control.alpha)
        same = next((seen[model] for model, it in (("original", o), ("unlearned", u)) if it is held), None)
        if same is not None:
            seen["controlled"] = {split: [dict(d) for d in documents] for split, documents in same.items()}
        else:
            say(f"evaluating the unlearned model under control ({models.method}, alpha {control.alpha:.4g})")
            seen["controlled"] = stage("controlled", lambda: observe(control.alpha, fn=models.fn))
    if settings.retain_model is not None:
        say("evaluating the retain-only model")
        seen["retain_only"] = plainly("retain_only", 1, base, r)
    elif settings.reference_record is not None:
        seen["retain_only"] = {split: documents for split, documents in answered.items() if split in tasks}
    say("judging the generations by the original")
    unjudged = [d for model, splits in seen.items() if model != "original" for d in spoken(splits)]

    def judge_all() -> list[TokenScores | None]:
        mix_into(lm.model, o, u, 0)
        return judge(lm, unjudged)

    for document, judged in zip(unjudged, stage("judged generations", judge_all), strict=True):
        document["judged_generation"] = judged
    if reader is not None:
        say(f"reading the generations by {reader.name}")
        written = [d for splits in seen.values() for d in spoken(splits)]
        clean = classifier.clean_probabilities(reader, [d["generation"] for d in written], lm.device)
        for document, probability in zip(written, clean, strict=True):
            document["clean_probability"] = probability

    if control.keep is not None:  # reported on the half that did not calibrate; the other half kept beside
        for splits in (splits for splits in seen.values() if kept in splits):  # a reference record has no other tasks
            splits[f"{kept}_calibration"], splits[kept] = halves(splits[kept])
        control = replace(control, achieved_held_out=keep.mean(metric, seen["controlled"][kept]))
    of_split = {split: [*task.metrics, *_judged(task, reader is not None)] for split, task in tasks.items()}
    of_split |= {name: list(seen["original"][name][0]["logged"]) for name in others}
    directions = {n: better for n, better in other_tasks.directions(others).items() if n in of_split[kept_on(n)]}
    metrics = {m: {split: of_split.get(split.removesuffix("_calibration"), []) for split in seen[m]} for m in seen}
    scores, composites = score_all(seen, metrics, settings.seed, benchmark)
    record = identity.record(
        name=settings.name or unlearned,
        benchmark=benchmark,
        tasks=tasks,
        firsts=firsts,
        lm=lm,
        checkpoints=checkpoints,
        control=control,
        scores=scores,
        composites=composites,
        settings=settings,
        wall_seconds=time.monotonic() - start + stage.seconds,
        others=others,
        directions=directions,
    )
    if reader is not None:
        record = replace(record, settings=record.settings | {"gibberish_sha256": reader.sha256})
    return record, seen


def open_reference(
    folder: Path, model: str, benchmark: str, tasks: identity.Tasks, limit: int | None
) -> tuple[RunRecord, CheckpointInfo, dict[str, list[Document]]]:
    """(record, checkpoint, documents by split) of a model of an earlier run. InputError if it is not there, or if that
    run was of other documents."""
    record = store.load_record(folder)
    if model not in record.scores or model not in record.checkpoints:
        there = ", ".join(m for m in record.scores if m in record.checkpoints)
        raise InputError(f"{folder} holds no {model} model; --reference-from takes {there}")
    if record.benchmark != benchmark:
        raise InputError(f"{folder} is a run of {record.benchmark}, not of {benchmark}")
    if (theirs := record.settings.get("limit")) != limit:
        raise InputError(
            f"{folder} is a run of {theirs or 'all'} documents of each split, this one is of {limit or 'all'}"
        )
    for split, task in tasks.items():
        if record.data.get(split) != task.data_sha256:
            raise InputError(f"{folder} can't be the reference of this run: its {split} documents are others")
    return record, record.checkpoints[model], whole(store.load_documents(folder).get(model, {}))


def _judged(task: suites.TokenScoreTask, read: bool) -> list[str]:
    return sorted(JUDGED if read else JUDGED - {"gibberish"}) if "generation" in task.needs else []


def spoken(splits: Mapping[str, Sequence[Document]]) -> list[Document]:
    """The documents that a generation was asked for."""
    return [d for documents in splits.values() for d in documents if "generation" in d]


def judge(lm: HFLM, documents: list[Document]) -> list[TokenScores | None]:
    """The token scores of every document's generation under the model as it is; None where it is empty."""
    said = [i for i, d in enumerate(documents) if d["generation"].strip()]
    # broken bytes decode to replacement characters, which can take more tokens than were generated
    pairs = [hf.encode(lm, documents[i]["prompt"], documents[i]["generation"], cut=lm.max_length) for i in said]
    judged: list[TokenScores | None] = [None] * len(documents)
    for i, scores in zip(said, hf.token_scores(lm, pairs), strict=True):
        judged[i] = scores
    return judged
