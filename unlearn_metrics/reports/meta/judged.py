"""Labelled records -> every metric judged, as published and under control."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from unlearn_metrics.documents import Floats
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, TRUTH_RATIOS
from unlearn_metrics.record import Estimate, RunRecord, Score
from unlearn_metrics.reports.console import html
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.reports.meta.labels import BEFORE, Labelled, read
from unlearn_metrics.scores.judging import Difference, Judgement, Readings, differences, judge
from unlearn_metrics.scores.stability import COUNTED
from unlearn_metrics.wording import counted

if TYPE_CHECKING:
    from pandas import DataFrame

VIEWS = {"unlearned": "as published", "controlled": "under control"}
# composites that say what a model knows, and whether more of it is more knowledge
_COMPOSITES = {"memorization_score": -1, "privacy_score": -1, "forget_quality": -1, "privleak": -1}
_UTILITY = "model_utility"


def knowledge(name: str) -> int:
    """1 if a higher value on the forget set means more knowledge, -1 if a lower one does, 0 if neither."""
    if name.startswith("auc_"):
        return 1
    if name in _COMPOSITES:
        return _COMPOSITES[name]
    if name not in METRICS or METRICS[name].facet == "fluency":
        return 0
    if name in TRUTH_RATIOS:  # on forget, 1 = true and wrong answers look alike
        return -1
    return {"higher": 1, "lower": -1, "neither": 0}[METRICS[name].better]


@dataclass(frozen=True)
class MetaEvaluation:
    """What metrics are worth, by models of which it is known what they know.

    Attributes:
        against: the metric that the others' faithfulness is compared with.
        judged: "unlearned" (as published) and, where all records have it, "controlled" -> metric -> `Judgement`.
        differences: the same -> metric -> `Difference` of its faithfulness from that of `against`.
        pools: how many models know, do not know, and are unlearned.
        utility: by what an unlearned model is counted: it keeps COUNTED of the original's.
    """

    against: str
    judged: dict[str, dict[str, Judgement]]
    differences: dict[str, dict[str, Difference]]
    pools: tuple[int, int, int]
    utility: str

    def __repr__(self) -> str:
        knows, others, unlearned = self.pools
        count = len(next(iter(self.judged.values())))
        return (
            f"<{counted(count, 'metric')} judged by models: {knows} know, {others} do not, {unlearned} are unlearned>"
        )

    def _repr_html_(self) -> str:
        return html(*self.tables(), *map(Text, self.notes()))

    def tables(self) -> list[Grid]:
        """Faithfulness and stability, as published and under control; then whether the order of methods lasts."""
        made = [grid for view in self.judged for grid in (self._faithful(view), self._stable(view))]
        return [grid for grid in (*made, self._orders()) if grid is not None]

    def by_faithfulness(self, view: str) -> list[tuple[str, Judgement]]:
        """(metric, judgement), the most faithful first."""
        return sorted(self.judged[view].items(), key=lambda item: -(item[1].faithfulness.value or 0))

    def _faithful(self, view: str) -> Grid:
        knows, others, _ = self.pools
        title = f"faithfulness by {knows} models that know and {others} that do not, {VIEWS[view]}"
        heads = ["metric", "AUC [95\u00a0%]", f"minus {self.against}", "p, corrected", "threshold", "right"]
        result = Grid(title, heads, words=1, spare=["threshold", "right"])
        for name, it in self.by_faithfulness(view):
            gap = self.differences[view].get(name)
            p = "—" if gap is None or gap.p_holm is None else f"{gap.p_holm:.2g}"
            right = "—" if it.right is None else f"{it.right:.0%}"
            minus = "—" if gap is None else shown(gap.value)
            result.add(name, shown(it.faithfulness), minus, p, shown(it.threshold), right)
        return result

    def _stable(self, view: str) -> Grid | None:
        attacks = list(next(iter(self.judged[view].values())).stability)
        if all(it.robustness.value is None for it in self.judged[view].values()):
            return None
        title = f"stability of the metrics of {self.pools[2]} unlearned models, {VIEWS[view]}"
        heads = ["metric", *attacks, "robustness", "symmetric", "overall", "counted"]
        result = Grid(title, heads, words=1, spare=["symmetric"])
        for name, it in self.by_faithfulness(view):
            parts = (*it.stability.values(), it.robustness, it.robustness_symmetric, it.overall)
            result.add(name, *map(shown, parts), str(it.n[2]))
        return result

    def _orders(self) -> Grid | None:
        judged = self.judged["unlearned"]
        against = list(next(iter(judged.values())).order)
        if not against:
            return None
        title = f"order of {counted(self.pools[2], 'unlearned model')}, Kendall's tau with the order as published"
        result = Grid(title, ["metric", *against], words=1)
        for name, it in self.by_faithfulness("unlearned"):
            result.add(name, *(shown(it.order[column]) for column in against))
        return result

    def notes(self) -> list[str]:
        """What limits the tables, in words."""
        best = {view: self.by_faithfulness(view)[0] for view in self.judged}
        lines = [
            f"{VIEWS[view]}, {name} has the highest faithfulness: {shown(it.faithfulness)}"
            if it.faithfulness.value is not None
            else f"{VIEWS[view]}, no metric's faithfulness is known: {it.faithfulness.why}"
            for view, (name, it) in best.items()
        ]
        for view, judged in self.judged.items():
            counts = {it.n[2] for it in judged.values()}
            if self.pools[2] and min(counts) < self.pools[2]:
                many = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts) or 'none'}"
                lines.append(
                    f"{VIEWS[view]}, {many} of the {self.pools[2]} unlearned models count, by metric: those that keep "
                    f"{COUNTED:.0%} of the original's {self.utility} and are said not to know"
                )
        return lines

    def to_pandas(self) -> DataFrame:
        """A row for each model kind and metric, with value, low and high of everything that is judged."""
        from pandas import DataFrame

        return DataFrame([{"model": view, "metric": name} | row for view, name, row in self._rows()])

    def _rows(self) -> Iterable[tuple[str, str, dict[str, Any]]]:
        for view, judged in self.judged.items():
            for name, it in judged.items():
                estimates = {
                    "faithfulness": it.faithfulness,
                    "threshold": it.threshold,
                    **{f"stability_{attack}": value for attack, value in it.stability.items()},
                    **{f"symmetric_{attack}": value for attack, value in it.symmetric.items()},
                    "robustness": it.robustness,
                    "overall": it.overall,
                    "robustness_symmetric": it.robustness_symmetric,
                    "overall_symmetric": it.overall_symmetric,
                    **{f"order {other}": value for other, value in it.order.items()},
                }
                row: dict[str, Any] = {"knows": it.n[0], "does_not_know": it.n[1], "unlearned": it.n[2]}
                for key, value in estimates.items():
                    row |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
                gap = self.differences[view].get(name)
                row |= {"p_corrected": None if gap is None else gap.p_holm}
                yield view, name, row

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def shown(estimate: Estimate) -> str:
    """0.912 [0.840, 0.951]; — where it is not known."""
    if estimate.value is None:
        return "—"
    known = estimate.low is not None and estimate.high is not None
    return f"{estimate.value:.3f}" + (f" [{estimate.low:.3f}, {estimate.high:.3f}]" if known else "")


def evaluate(
    plan: Path | Mapping[str, Any], metrics: Collection[str] = (), against: str | None = None, seed: int = 0
) -> MetaEvaluation:
    """The metrics that all records of a plan have, judged by them.

    metrics: only these. against: the metric that others are compared with; by default the benchmark's primary one.
    InputError for what is no plan, records not measured alike, and unknown metrics.
    """
    found = read(plan)
    everything = _records(found)
    views = [view for view in VIEWS if view == "unlearned" or all(view in r.scores for r in everything)]
    there = common(everything, views)
    for name in (*metrics, *([against] if against else [])):
        if name not in there:
            raise InputError(f"'{name}' is no metric that all of these runs have; {did_you_mean(name, there)}")
    base = against or everything[0].headline.forget[0]
    base = base if base in there else there[0]
    names = [name for name in there if not metrics or name in metrics or name == base]
    judged, gaps = {}, {}
    for view in views:
        utility, useful = _useful(found, view)
        readings = {name: _readings(found, view, name, useful) for name in names}
        judged[view] = {name: judge(it, seed) for name, it in readings.items()}
        gaps[view] = differences(readings, base)
    pools = (len(found.knows), len(found.does_not_know), len(found.unlearned))
    return MetaEvaluation(base, judged, gaps, pools, utility)


def _records(found: Labelled) -> list[RunRecord]:
    """Those that a metric must be in to be judged: all but what was measured after attacks."""
    before = [stages[BEFORE] for stages in found.unlearned.values()]
    return [*found.knows.values(), *found.does_not_know.values(), *before]


def common(records: list[RunRecord], views: list[str]) -> list[str]:
    """The metrics that say what a model knows and that all records name, some with a value, in the registry's order."""
    names = [*METRICS, *records[0].composites.get("unlearned", {})]
    pairs = [(record, view) for record in records for view in views]
    found = [
        name
        for name in names
        if knowledge(name)
        and all(_score(*pair, name) is not None for pair in pairs)
        and not all(np.isnan(value(*pair, name)) for pair in pairs)
    ]
    if not found:
        raise InputError("these runs have no metric of a forget set in common")
    return found


def _score(record: RunRecord, view: str, name: str) -> Score | None:
    return record.scores.get(view, {}).get("forget", {}).get(name) or record.composites.get(view, {}).get(name)


def value(record: RunRecord, view: str, name: str) -> float:
    """A metric of the forget set, or a composite; NaN if it is not known."""
    score = _score(record, view, name)
    return np.nan if score is None or score.value is None else score.value


def _useful(found: Labelled, view: str) -> tuple[str, NDArray[np.bool_]]:
    """(the utility that models are counted by, [u] whether each unlearned model keeps COUNTED of the original's)."""
    before = [stages[BEFORE] for stages in found.unlearned.values()]
    shares = []
    name = _UTILITY
    if not all(_UTILITY in record.composites.get(it, {}) for record in before for it in ("original", view)):
        name = f"{before[0].headline.retain} on retain" if before else ""
    for record in before:
        values = [_utility(record, it, name) for it in (view, "original")]
        shares.append(values[0] >= COUNTED * values[1])
    return name, np.array(shares, bool)


def _utility(record: RunRecord, view: str, name: str) -> float:
    if name == _UTILITY:
        score = record.composites[view].get(name)
    else:
        score = record.scores.get(view, {}).get("retain", {}).get(name.removesuffix(" on retain"))
    return np.nan if score is None or score.value is None else score.value


def _readings(found: Labelled, view: str, name: str, useful: NDArray[np.bool_]) -> Readings:
    def of(records: Iterable[RunRecord], view: str = view) -> Floats:
        return np.array([value(record, view, name) for record in records], float)

    stages = [*found.unlearned.values()]
    before = [it[BEFORE] for it in stages]
    attacks = list(dict.fromkeys(attack for it in stages for attack in it if attack != BEFORE))
    return Readings(
        knowledge(name),
        of(found.knows.values()),
        of(found.does_not_know.values()),
        of(before),
        useful,
        {
            attack: np.array([value(it[attack], view, name) if attack in it else np.nan for it in stages])
            for attack in attacks
        },
        {stage: value(record, view, name) for stage, record in found.retain_only.items()},
        of(before, "controlled")
        if view == "unlearned" and before and all("controlled" in r.scores for r in before)
        else None,
    )
