"""A run, opened: what every step of it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lm_eval.models.huggingface import HFLM

from unlearn_metrics.backends.classifier import Classifier
from unlearn_metrics.benchmarks.other_tasks import Loaded
from unlearn_metrics.benchmarks.suites import TokenScoreTask
from unlearn_metrics.checkpoints.files import Checkpoint
from unlearn_metrics.control.controls import Family
from unlearn_metrics.documents import Document
from unlearn_metrics.record import AttackInfo, CheckpointInfo, Headline, RunRecord
from unlearn_metrics.records.folder import Stages
from unlearn_metrics.settings import Settings

Tasks: TypeAlias = dict[str, TokenScoreTask]


@dataclass(frozen=True)
class Reference:
    """A model of an earlier run that stands for the retain-only model: its record, checkpoint and documents. attacked:
    attacks that were made there, and its documents under each."""

    record: RunRecord
    checkpoint: CheckpointInfo
    documents: dict[str, list[Document]]
    attacked: dict[str, tuple[AttackInfo, dict[str, list[Document]]]]


@dataclass(frozen=True)
class Job:
    """A run, opened. tasks: the benchmark's by split; others: lm-eval's own, by name.

    published: model -> the pair of checkpoints whose second is the model as published. models: what the control makes
    of the pair; None: no control. rounding: what is to be said of its mixes (Family.rounding). checkpoints: what
    identifies each model. reader: a classifier of generations. requests: the hash of all that the models are sent.
    """

    benchmark: str
    tasks: Tasks
    others: Loaded
    settings: Settings
    headline: Headline
    published: Mapping[str, tuple[Checkpoint, Checkpoint]]
    models: Family | None
    rounding: str | None
    checkpoints: dict[str, CheckpointInfo]
    reference: Reference | None
    reader: Classifier | None
    lm: HFLM
    requests: str
    stage: Stages
    say: Callable[[str], None]
