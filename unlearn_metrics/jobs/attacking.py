"""Attacks on the models of a run: which can be made, and the forget set as they find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from unlearn_metrics import attacks
from unlearn_metrics.attacks.attack import Attack, Impossible
from unlearn_metrics.benchmarks import suites
from unlearn_metrics.benchmarks.suites import TokenScoreTask
from unlearn_metrics.checkpoints.files import Checkpoint, identify
from unlearn_metrics.control.mixing import ControlFunction, mix, mix_into
from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs import identity
from unlearn_metrics.jobs.job import Job
from unlearn_metrics.jobs.observing import Splits
from unlearn_metrics.jobs.opening import open_pair
from unlearn_metrics.metrics import available
from unlearn_metrics.record import AttackInfo, CheckpointInfo, Control, RunRecord, attack_of, under
from unlearn_metrics.records.attacked import SAMPLED, with_recovery
from unlearn_metrics.scores import recovery
from unlearn_metrics.scores.recovery import SPLIT
from unlearn_metrics.scores.scoring import score_split
from unlearn_metrics.settings import RELEARN

NAMED = {"unlearned": "unlearned model", "controlled": "controlled model", "retain_only": "retain-only model"}
OF = dict(zip(RELEARN, ("unlearned", "retain_only"), strict=True))  # an attack by a checkpoint -> of which model


@dataclass(frozen=True)
class Prepared:
    """An attack that can be made. task: the forget set as it is asked; relearned: model -> the pair of checkpoints of
    which the second stands for the model after the attack, and what identifies it."""

    info: AttackInfo
    task: TokenScoreTask
    attack: Attack | None = None
    relearned: Mapping[str, tuple[tuple[Checkpoint, Checkpoint], CheckpointInfo]] | None = None


def prepare(job: Job, names: Sequence[str]) -> dict[str, Prepared]:
    """Everything that attacks take, opened and checked before any work. names: of attacks, all, relearn=CHECKPOINT.

    InputError for what can't be made; among "all" that is left out, and said.
    """
    if not names:
        return {}
    if SPLIT not in job.tasks:
        raise InputError(f"attacks are made on the split forget, which {job.benchmark} has not")
    task = job.tasks[SPLIT]
    retain = list(job.tasks["retain"].eval_docs) if "retain" in job.tasks else []
    given = [name for name in names if "=" not in name]
    found = {}
    for name in attacks.ATTACKS if "all" in given else given:
        attack = attacks.known(name)
        info = AttackInfo(attack.on, attack.what, attack.source)
        try:
            asked = task.under(attack, retain) if attack.on == "prompts" else task
            found[name] = Prepared(info, asked, attack)
        except Impossible as error:
            if name in given:
                raise InputError(f"the attack {name}: {error}") from None
            job.say(f"left out, the attack {name}: {error}")
    checkpoints = dict(name.split("=", 1) for name in names if "=" in name)
    if checkpoints:
        original = job.published["original"][0].name
        pairs = {OF[kind]: open_pair(original, place) for kind, place in checkpoints.items()}
        relearned = {model: (pair, identify(pair[1])) for model, pair in pairs.items()}
        what = "fine-tuned again by somebody else"
        info = AttackInfo("checkpoint", what, "", {model: known for model, (_, known) in relearned.items()})
        found["relearn"] = Prepared(info, task, relearned=relearned)
    return found


def observe(job: Job, prepared: Mapping[str, Prepared], control: Control) -> Observations:
    """The forget set under every attack, of the unlearned model as published and under control, and of the retain-only
    model where its checkpoint, or an earlier run under the attack, is at hand: names of record.under -> split ->
    documents. Each is a stage of the run."""
    found: Observations = {}
    theirs = {} if job.reference is None else job.reference.attacked
    for name, it in prepared.items():
        if name in theirs and theirs[name][0] == it.info:
            found[under("retain_only", name)] = theirs[name][1]
        for model, subject in _models(job, control).items():
            stage = under(model, name)
            if it.relearned is not None:
                if model not in it.relearned:
                    continue
                pair, info = it.relearned[model]
                subject, stage = (pair, 1.0, mix), f"{stage}-{str(info.weights_sha256)[:16]}"
            elif model == "controlled" and _is_published(job, control):
                found[stage] = {
                    s: [dict(d) for d in documents] for s, documents in found[under("unlearned", name)].items()
                }
                continue
            job.say(f"evaluating the {NAMED[model]} under the attack {name}")
            look = partial(_observe, job, name, it, *subject)
            shared = model == "retain_only" and it.relearned is None
            found[under(model, name)] = (
                job.stage.shared(stage, _same_for_all(job, name, it, model), look) if shared else job.stage(stage, look)
            )
    return found


def _same_for_all(job: Job, name: str, it: Prepared, model: str) -> str:
    """What a model under an attack, as published, depends on: all checkpoints of a sweep share the retain-only one."""
    tasks = {SPLIT: it.task}
    requests = identity.requests_hash(tasks, job.lm, job.settings, {})
    return identity.as_published(job, model, tasks, {}, f"{requests} {name} {it.info.what}")


def _observe(
    job: Job, name: str, it: Prepared, pair: tuple[Checkpoint, Checkpoint], alpha: float, fn: ControlFunction
) -> Splits:
    change = it.attack.fn if it.attack is not None and it.attack.on == "weights" else None
    try:
        mix_into(job.lm.model, pair[0], pair[1], alpha, fn, change)
        return suites.evaluate(job.lm, {SPLIT: it.task}, job.settings.limit, job.settings.apply_chat_template)
    except InputError as error:  # such as a model that gives NaN
        raise InputError(f"under the attack {name}: {error}") from None


def _is_published(job: Job, control: Control) -> bool:
    """Whether the control leaves the unlearned model as it is."""
    return job.models is not None and job.models.at(control.alpha) is job.published["unlearned"][1]


def _models(job: Job, control: Control) -> dict[str, tuple[tuple[Checkpoint, Checkpoint], float, ControlFunction]]:
    models: dict[str, tuple[tuple[Checkpoint, Checkpoint], float, ControlFunction]] = {
        "unlearned": (job.published["unlearned"], 1.0, mix)
    }
    if job.models is not None:
        models["controlled"] = (job.published["unlearned"], control.alpha, job.models.fn)
    if "retain_only" in job.published:
        models["retain_only"] = (job.published["retain_only"], 1.0, mix)
    return models


def summed_up(
    record: RunRecord, observations: Observations, attacked: Observations, prepared: Mapping[str, Prepared], seed: int
) -> RunRecord:
    """The record with the scores under attacks, and what these bring back.

    Args:
        record: of the run; attacks that it has already stay, unless they were made again.
        observations: all of its documents, those under attacks too.
        attacked: the documents under the attacks that have just been made.
        prepared: these attacks.
        seed: of the draws.
    """
    if not prepared:
        return record
    scores = dict(record.scores)
    for name, splits in attacked.items():
        had = {*record.scores[attack_of(name)[0]][SPLIT], SAMPLED}
        wanted = [metric for metric in available(splits[SPLIT]) if metric in had]
        scores[name] = {SPLIT: score_split(splits[SPLIT], wanted, seed)[0]}
    for model in recovery.ATTACKED:
        if model in scores:
            sampled = score_split(observations[model][SPLIT], [SAMPLED], seed)[0]
            scores[model] = scores[model] | {SPLIT: scores[model][SPLIT] | sampled}
    made = {} if record.attacks is None else record.attacks.made
    made = made | {name: it.info for name, it in prepared.items()}
    return with_recovery(replace(record, scores=scores), observations, made, seed)
