"""Records of unlearned models before and after attacks -> whether each metric's values agree over the models."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.record import Estimate, RunRecord
from unlearn_metrics.reports.console import html
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.reports.meta import labels
from unlearn_metrics.reports.meta.judged import VIEWS, common, shown, value
from unlearn_metrics.reports.meta.labels import BEFORE
from unlearn_metrics.scores.agreement import MEASURES, agreement
from unlearn_metrics.wording import counted

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Lasting:
    """One metric under one attack over the models that have both values.

    Attributes:
        pearson, kendall: correlation and order of the values before with those after.
        before, after: those values, a model each.
    """

    pearson: Estimate
    kendall: Estimate
    before: list[float]
    after: list[float]


@dataclass(frozen=True)
class RobustnessReport:
    """What attacks leave of the metrics' readings. lasting: "unlearned" (as published) and, where all records have it,
    "controlled" -> attack -> metric -> `Lasting`. models: their names."""

    lasting: dict[str, dict[str, dict[str, Lasting]]]
    models: list[str]

    def __repr__(self) -> str:
        attacks = self.lasting["unlearned"]
        metrics = next(iter(attacks.values()))
        many = f"{counted(len(metrics), 'metric')} of {counted(len(self.models), 'model')}"
        return f"<{many} before and after {', '.join(attacks)}>"

    def _repr_html_(self) -> str:
        return html(*self.tables(), *map(Text, self.notes()))

    def tables(self) -> list[Grid]:
        """One of each attack, as published and under control."""
        made = []
        for view, attacks in self.lasting.items():
            for attack, metrics in attacks.items():
                title = f"{counted(len(self.models), 'model')} before and after {attack}, {VIEWS[view]}"
                grid = Grid(title, ["metric", "Pearson [95\u00a0%]", "Kendall's tau [95\u00a0%]", "models"], words=1)
                for name, it in metrics.items():
                    grid.add(name, shown(it.pearson), shown(it.kendall), str(len(it.before)))
                made.append(grid)
        return made

    def notes(self) -> list[str]:
        """Why a correlation or an interval is not there, once each."""
        whys = {
            why: None
            for attacks in self.lasting.values()
            for metrics in attacks.values()
            for it in metrics.values()
            for why in (it.pearson.why, it.kendall.why)
            if why
        }
        return [f"no interval, or no value, where {why}" for why in whys]

    def to_pandas(self) -> DataFrame:
        """A row for each model kind, attack and metric."""
        from pandas import DataFrame

        rows = []
        for view, attacks in self.lasting.items():
            for attack, metrics in attacks.items():
                for name, it in metrics.items():
                    row: dict[str, Any] = {"model": view, "attack": attack, "metric": name, "models": len(it.before)}
                    for measure in MEASURES:
                        found: Estimate = getattr(it, measure)
                        row |= {measure: found.value, f"{measure}_low": found.low, f"{measure}_high": found.high}
                    rows.append(row)
        return DataFrame(rows)

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def plan_of(runs: Sequence[Path]) -> Path | dict[str, Any]:
    """The plan that these paths are: one that is itself a plan, or runs with attacks."""
    given = runs[0]
    folders = given.is_dir() and any((given / label).is_dir() for label in labels.LABELS)
    if len(runs) == 1 and (folders or given.suffix in (".yaml", ".yml")):
        return given
    return {"unlearned": [*map(str, runs)]}


def evaluate(plan: Path | Mapping[str, Any], metrics: Collection[str] = (), seed: int = 0) -> RobustnessReport:
    """How far each metric's values before attacks agree with those after, over the unlearned models of a plan.

    metrics: only these. InputError for what is no plan, a plan without attacks, and unknown metrics.
    """
    found = labels.read(plan, needed=("unlearned",)).unlearned
    attacks = list(dict.fromkeys(stage for stages in found.values() for stage in stages if stage != BEFORE))
    if not attacks:
        where = labels.spoken(plan)
        raise InputError(f"{where}: no run holds attacks, and no model has a run after one beside '{BEFORE}'")
    records = [stages[BEFORE] for stages in found.values()]
    views = [view for view in VIEWS if all(view in record.scores for record in records)]
    there = common(records, views)
    for name in metrics:
        if name not in there:
            raise InputError(f"'{name}' is no metric that all of these runs have; {did_you_mean(name, there)}")
    names = [name for name in there if not metrics or name in metrics]
    stages = [*found.values()]
    lasting = {
        view: {attack: {name: _lasting(stages, attack, view, name, seed) for name in names} for attack in attacks}
        for view in views
    }
    return RobustnessReport(lasting, list(found))


def _lasting(models: list[dict[str, RunRecord]], attack: str, view: str, name: str, seed: int) -> Lasting:
    pairs = [(value(it[BEFORE], view, name), value(it[attack], view, name)) for it in models if attack in it]
    before, after = np.array([pair for pair in pairs if not np.isnan(pair).any()]).reshape(-1, 2).T
    found = {measure: agreement(before, after, measure, seed) for measure in MEASURES}
    return Lasting(**found, before=before.tolist(), after=after.tolist())
