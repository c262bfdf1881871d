"""record.json: plain dataclasses, whose types are the published schema (pydantic reads them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Le, MaxLen
from pydantic import TypeAdapter

Text: TypeAlias = Annotated[str, MaxLen(10_000)]
LongText: TypeAlias = Annotated[str, MaxLen(10_000_000)]
Count: TypeAlias = Annotated[int, Ge(0)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
Strength: TypeAlias = Annotated[float, Ge(0), Le(1.5)]  # above 1 a path is extrapolated
# pydantic reads this off each class: nothing unknown, nothing converted, no NaN and no infinity
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class Score:
    """An aggregate over documents, with its 95 % interval. `unscored` documents are in no other number.

    n, unscored: None where an imported log tells a value, but not of how many documents. undefined: why a composite has
    no value, in words.
    """

    __pydantic_config__ = STRICT

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: Count | None
    unscored: Count | None
    undefined: Text | None = None

    @property
    def documents(self) -> int | None:
        """How many it is about, scored or not; None where that is not known."""
        return None if self.n is None or self.unscored is None else self.n + self.unscored


@dataclass(frozen=True)
class TracePoint:
    """One evaluation during calibration. forget: the same metric on the forget set, along a trajectory."""

    __pydantic_config__ = STRICT

    alpha: Strength
    retention: float
    forget: float | None = None


@dataclass(frozen=True)
class Control:
    """How the unlearned checkpoint was controlled before it was scored.

    alpha is the control's strength (0 = original, 1 = unlearned): of `mix`, the weight of the unlearned model.
    parameters are what else the control was given. target and achieved are retention, the mean of `metric`, on the
    calibration split; achieved_held_out / original_held_out are on the evaluation split. rounding: where the stored
    dtype swallows most of what a mix would change, the sentence that tells it.
    """

    __pydantic_config__ = STRICT

    method: Text
    alpha: Share
    keep: float | None = None
    metric: Text | None = None
    target: float | None = None
    achieved: float | None = None
    original_held_out: float | None = None
    achieved_held_out: float | None = None
    trace: list[TracePoint] = field(default_factory=list)
    parameters: dict[Text, Text] = field(default_factory=dict)
    rounding: Text | None = None


@dataclass(frozen=True)
class CheckpointInfo:
    """Identity of a checkpoint: sha256 over the weights, the config and the tokenizer; None where not known."""

    __pydantic_config__ = STRICT

    path: Text
    revision: Text | None
    weights_sha256: Text | None
    config_sha256: Text | None
    tokenizer_sha256: Text | None


@dataclass(frozen=True)
class Prompt:
    """How a split was prompted: the task's templates, and the whole prompt of its first document."""

    __pydantic_config__ = STRICT

    doc_to_text: Text
    doc_to_target: Text
    example: LongText


@dataclass(frozen=True)
class GitState:
    """Of the source tree that the plugin ran from. None in a record of an installed package."""

    __pydantic_config__ = STRICT

    commit: Text
    dirty: bool


@dataclass(frozen=True)
class Imported:
    """Where an imported record comes from. as_logged: metrics whose per-document values were taken from the log as
    they are, since it does not hold what they could be computed from. notes: where the log's conventions or values
    are not this package's, in words."""

    __pydantic_config__ = STRICT

    format: Text
    file: Text
    sha256: Text
    as_logged: list[Text] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterSums:
    """A metric of a split, summed over the scored documents of each cluster: total, count [strengths, clusters]."""

    __pydantic_config__ = STRICT

    clusters: list[int]
    total: list[list[float]]
    count: list[list[Count]]


@dataclass(frozen=True)
class MeasuredPath:
    """A control's path at some strengths, ascending from 0, the original.

    metric: what is retained; retain: its sums on the calibration split and on the evaluation split. forget: metric ->
    its sums on the forget set, of the split in `splits`. retain_only: the same of a model that never saw it.
    """

    __pydantic_config__ = STRICT

    metric: Text
    alphas: list[Strength]
    retain: list[ClusterSums]
    forget: dict[Text, ClusterSums]
    splits: dict[Text, Text]
    retain_only: dict[Text, ClusterSums] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval. What is not known is None; why: the reason."""

    __pydantic_config__ = STRICT

    value: float | None
    low: float | None = None
    high: float | None = None
    why: Text | None = None


@dataclass(frozen=True)
class CurvePoint:
    """What is still there at a retention, relative to the original's."""

    __pydantic_config__ = STRICT

    retention: Share
    value: Estimate


@dataclass(frozen=True)
class Residual:
    """What is still there of the forget set at equal retention, by one metric.

    value: at `retention` times the original's; its interval has the noise of the calibration in it. average: over the
    curve, whose retentions reach from 0.90 to 1. above_floor: value as a share of the way from a retain-only model (0)
    to the original (1). alpha: the strength at which retention is rho; above 1 the path is extrapolated.
    sensitivity: value by parts of the retain documents.
    """

    __pydantic_config__ = STRICT

    retention: Share
    value: Estimate
    average: Estimate
    above_floor: Estimate | None
    curve: list[CurvePoint]
    alpha: float | None
    sensitivity: dict[Text, float | None]


@dataclass(frozen=True)
class Headline:
    """What a benchmark is summed up by: metrics of what is to be forgotten, and what a useful model keeps.

    forget: metrics of the forget split, or TASK.METRIC of lm-eval's own tasks; the first is the primary one. retain:
    what calibration keeps unless told otherwise. chance: the value of `forget` for a model without knowledge.
    """

    __pydantic_config__ = STRICT

    forget: list[Text] = field(default_factory=lambda: ["extraction_strength", "exact_memorization", "probability"])
    retain: Text = "extraction_strength"
    chance: Share = 0.0


@dataclass(frozen=True)
class AttackInfo:
    """An attack as it was made. on: "weights", "prompts", or "checkpoint" where somebody else's stands for it. what: it
    does; source: whose definition that is; checkpoints: of others, by the model that they are of."""

    __pydantic_config__ = STRICT

    on: Literal["weights", "prompts", "checkpoint"]
    what: Text
    source: Text = ""
    checkpoints: dict[Text, CheckpointInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class Recovery:
    """What an attack brings back of the forget set by one metric: after it minus before, paired by document.

    net: value minus what the same attack brings back of the retain-only model, on the same documents; None where that
    was not attacked. p: two-sided, that net (value, where there is none) is 0; p_corrected: held over all attacks.
    """

    __pydantic_config__ = STRICT

    value: Estimate
    net: Estimate | None = None
    p: Share | None = None
    p_corrected: Share | None = None


@dataclass(frozen=True)
class Worst:
    """The worst case of a metric over all attacks. attack, value: under which it is largest, and what it is then.

    net_attack, net: the same of the net recovery. Intervals are of the maximum, taken anew in each draw.
    """

    __pydantic_config__ = STRICT

    attack: Text
    value: Estimate
    net_attack: Text | None = None
    net: Estimate | None = None


@dataclass(frozen=True)
class Attacks:
    """What attacks bring back of the forget set.

    made: by name. recovery: model -> metric -> attack -> Recovery; worst: model -> metric -> Worst; models are
    "unlearned" and "controlled". sentence: the same in words. Scores under an attack are among the run's, of the model
    MODEL+ATTACK.
    """

    __pydantic_config__ = STRICT

    made: dict[Text, AttackInfo]
    recovery: dict[Text, dict[Text, dict[Text, Recovery]]]
    worst: dict[Text, dict[Text, Worst]]
    sentence: Text


# model -> split -> metric -> Score
Scores: TypeAlias = dict[Text, dict[Text, dict[Text, Score]]]


@dataclass(frozen=True)
class RunRecord:
    """record.json: what was measured, on what, with what, and the scores.

    name: what a table calls the unlearned checkpoint. composites: model -> name -> values of several splits or models.
    checkpoints: "original", "unlearned", and "retain_only" where forget quality has a reference. imported: None where
    the package measured the record itself. ability: metrics of other lm-eval tasks, TASK.METRIC -> which way is
    good. depth: model -> what each layer lacks of the forget answers, in nats per token (see erasure_depth). What could
    not be known is None or absent, never a default.
    """

    __pydantic_config__ = STRICT

    schema: Text
    signature: Text
    name: Text
    benchmark: Text
    verdict: Text
    control: Control
    scores: Scores
    composites: dict[Text, dict[Text, Score]]
    checkpoints: dict[Text, CheckpointInfo]
    data: dict[Text, Text]
    task_versions: dict[Text, Text]
    prompts: dict[Text, Prompt]
    settings: dict[Text, Text | int | float | bool | None]
    software: dict[Text, Text]
    git: GitState | None
    imported: Imported | None
    work: dict[Text, Count]
    wall_seconds: float | None
    created: Text
    ability: dict[Text, Literal["higher", "lower"]] = field(default_factory=dict)
    headline: Headline = field(default_factory=Headline)
    path: MeasuredPath | None = None
    residual: dict[Text, Residual] = field(default_factory=dict)
    depth: dict[Text, list[float]] = field(default_factory=dict)
    attacks: Attacks | None = None


SCHEMA = "unlearn-metrics/record/3"
RECORD_TYPE = TypeAdapter(RunRecord)
MODELS = ("original", "unlearned", "controlled", "retain_only")


def under(model: str, attack: str) -> str:
    """The name of a model under an attack, in scores and tables: unlearned+int4."""
    return f"{model}+{attack}"


def attack_of(name: str) -> tuple[str, str | None]:
    """(model, attack) of such a name; None: the model as it is."""
    model, found, attack = name.partition("+")
    return model, attack if found else None


def record_schema() -> dict[str, Any]:
    """JSON Schema of record.json, from the types. Also at record.schema.json in the package."""
    schema = RECORD_TYPE.json_schema()
    schema["properties"]["schema"] = {"const": SCHEMA, "title": "Schema", "type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "unlearn-metrics run record"} | schema
