"""Two runs on the same documents: paired differences, how sure they are, and what can be said. Prints nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from rich.table import Table
from rich.text import Text

from unlearn_metrics.documents import Document, Floats, Observations
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, available, good, values
from unlearn_metrics.record import RunRecord, Score
from unlearn_metrics.records import signature, store
from unlearn_metrics.reports import table
from unlearn_metrics.reports.console import html
from unlearn_metrics.scores import stats
from unlearn_metrics.scores.composites import COMPOSITES, Model, Undefined, applicable, whole
from unlearn_metrics.settings import in_python
from unlearn_metrics.splits import parse

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.05
Pairs: TypeAlias = dict[str, list[tuple[Document, Document]]]


@dataclass(frozen=True)
class Run:
    """A run as it is compared: what to call it, of one of its models the scores and documents, by split, and all
    models' documents, which composites may take."""

    label: str
    record: RunRecord
    scores: Mapping[str, Mapping[str, Score]]
    documents: Mapping[str, Sequence[Document]]
    observations: Observations


@dataclass(frozen=True)
class Test:
    """One metric on one split: `run` minus `baseline` over the n documents that both have a value for.

    Or one composite, "" for its split: its difference and interval from joint resamples, without p or effect size.

    scale "log": the metric aggregates geometrically; difference and interval are of logarithms, so exp(difference) is
    the ratio of the two values. clusters: of documents that are drawn, or flipped, together. effect_size: Cohen's d_z
    over them. p_holm: corrected over all tests of the comparison.
    """

    baseline: str
    run: str
    facet: str
    split: str
    metric: str
    good: Literal["higher", "lower", "zero", "half"]
    scale: Literal["linear", "log"]
    value_baseline: float | None
    value_run: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    unscored: int
    clusters: int
    effect_size: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def decided(self) -> bool:
        return self.p_holm is not None and self.p_holm <= LEVEL

    @property
    def better(self) -> bool:
        return self.difference is not None and self.difference != 0 and (self.difference > 0) == (self.good == "higher")


@dataclass(frozen=True)
class Comparison:
    """model: which of each run's models. signatures, paired (split -> pairs): by run. notes: what limits the whole."""

    model: str
    baseline: str
    signatures: dict[str, str]
    paired: dict[str, dict[str, int]]
    tests: list[Test]
    sentences: list[str]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{' and '.join(self.signatures)} compared ({self.model}): {len(self.tests)} tests>"

    def _repr_html_(self) -> str:
        """The tables and sentences of the command, for a notebook."""
        lines = [Text(in_python(f"note: {note}")) for note in self.notes] + [
            Text(line, style="bold") for line in self.sentences
        ]
        return html(*self.tables(), *lines)

    def tables(self) -> list[Table]:
        """One of each pair of runs."""
        pairs = itertools.groupby(self.tests, lambda t: (t.baseline, t.run))
        return [comparison_table(list(tests)) for _, tests in pairs]

    def to_pandas(self) -> DataFrame:
        """A row for each test, with the fields of `Test` as columns."""
        from pandas import DataFrame

        return DataFrame([asdict(test) for test in self.tests])


class Measured(NamedTuple):
    """A run that is in memory. name: what to call it in messages."""

    name: str
    record: RunRecord
    observations: Observations


def compare(
    runs: Sequence[Path | Measured],
    model: str | None = None,
    metrics: Collection[str] = (),
    all_pairs: bool = False,
    anyway: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare every run, in its folder or in memory, with the first (all_pairs: every two).

    metrics: default the headline's; "all" = all there are.

    Raises InputError for runs of different documents, and, unless anyway, of signatures that differ in what matters.
    """
    for name in metrics:
        if name not in METRICS and name not in COMPOSITES and name != "all":
            raise InputError(f"unknown metric '{name}'; {did_you_mean(name, [*METRICS, *COMPOSITES])}")
    model, found = _load(runs, model)
    notes = []
    pairs = list(itertools.combinations(found, 2)) if all_pairs else [(found[0], run) for run in found[1:]]
    tests: list[Test] = []
    paired = {}
    for a, b in pairs:
        # how a run was controlled is nothing to its other models
        besides = () if model == "controlled" else ("ctl",)
        if differing := signature.differences(a.record.signature, b.record.signature, besides):
            said = f"{a.label} and {b.label} were not measured alike: {'; '.join(differing)}"
            if not anyway:
                raise InputError(f"{said}; --anyway compares them nevertheless")
            notes.append(f"{said}. A difference may come from that.")
        if _origin(a) != _origin(b) and None not in (_origin(a), _origin(b)):
            notes.append(f"{a.label} and {b.label} were unlearned from different original models.")
        documents = _pair(a, b)
        paired[b.label if not all_pairs else f"{a.label}, {b.label}"] = {s: len(p) for s, p in documents.items()}
        tests += _tests(a, b, documents, metrics, seed)
        tests += _composites(a, b, model, metrics, seed)
    tests = _corrected(tests)
    if not tests:
        raise InputError("the runs have no metric in common" + (f" among {', '.join(metrics)}" if metrics else ""))
    if model == "unlearned":
        notes.append(
            "Without control, a model that lost everything also looks good on the forget set: "
            "read forget quality together with retention."
        )
    notes += _limits(tests)
    sentences = [
        sentence(facet, [t for t in tests if (t.baseline, t.run, t.facet) == (a.label, b.label, facet)])
        for a, b in pairs
        for facet in table.HEADLINE
        if any((t.baseline, t.run, t.facet) == (a.label, b.label, facet) for t in tests)
    ]
    signatures = {run.label: run.record.signature for run in found}
    return Comparison(model, found[0].label, signatures, paired, tests, sentences, notes)


def _load(runs: Sequence[Path | Measured], model: str | None) -> tuple[str, list[Run]]:
    if len(runs) < 2:
        raise InputError("compare takes at least two runs: a baseline and another")
    records = [run.record if isinstance(run, Measured) else store.load_record(run) for run in runs]
    places = [run.name if isinstance(run, Measured) else str(run) for run in runs]
    if model is None:
        model = "controlled" if all("controlled" in r.scores for r in records) else "unlearned"
    labels = _labels([record.name for record in records]) or _labels(places)
    if not labels:
        raise InputError(f"{Counter(places).most_common(1)[0][0]} is given twice")
    found = []
    for label, place, run, record in zip(labels, places, runs, records, strict=True):
        observations = run.observations if isinstance(run, Measured) else store.load_documents(run)
        if model not in observations:
            raise InputError(f"{place} has no {model} model; it has {', '.join(record.scores)}")
        found.append(Run(label, record, record.scores.get(model, {}), observations[model], observations))
    return model, found


def _labels(names: Sequence[str]) -> list[str]:
    """The last parts of paths or hub ids, as few as tell them apart; [] if nothing does."""
    parts = [name.rstrip("/").split("/") for name in names]
    for keep in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-keep:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return []


def _origin(run: Run) -> str | None:
    original = run.record.checkpoints.get("original")
    return original.weights_sha256 if original else None


def _pair(a: Run, b: Run) -> Pairs:
    """split -> the documents that both runs have, by id. The calibration split of a retain split is left out."""
    pairs: Pairs = {}
    for split, documents in a.documents.items():
        if parse(split).calibration or split not in b.documents:
            continue
        theirs = {d["id"]: d for d in b.documents[split]}
        both = [(d, theirs[d["id"]]) for d in documents if d["id"] in theirs]
        others = [d for d, e in both if any(n in d and n in e and d[n] != e[n] for n in ("reference", "question"))]
        if others:
            raise InputError(
                f"{a.label} and {b.label} hold different documents: {len(others)} of {len(both)} on {split} "
                f"have another text in each, the first is document {others[0]['id']}"
            )
        if both:
            pairs[split] = both
    if not pairs:
        raise InputError(f"{a.label} and {b.label} have no document in common")
    return pairs


def _tests(a: Run, b: Run, pairs: Pairs, metrics: Collection[str], seed: int) -> list[Test]:
    names = {}
    for split, both in pairs.items():
        sides = [available(d for d, _ in both), available(e for _, e in both)]
        if not metrics:  # what was asked for when the runs were made
            sides += [list(run.scores.get(split, ())) for run in (a, b)]
        names[split] = [m for m in sides[0] if all(m in side for side in sides)]
    rows = [
        (facet, split, metric)
        for facet, split, metric in table.rows(names, bool(metrics))
        if (not metrics or {metric, "all"} & {*metrics}) and good(metric, split) != "neither"
    ]
    found: dict[tuple[str, str, str], Test] = {}
    for split, both in pairs.items():
        if of_split := [row for row in rows if row[1] == split]:
            found |= {(t.facet, t.split, t.metric): t for t in _of_split(a.label, b.label, both, of_split, seed)}
    return [found[row] for row in rows]


def _of_split(
    a: str, b: str, pairs: Sequence[tuple[Document, Document]], rows: Sequence[tuple[str, str, str]], seed: int
) -> list[Test]:
    """One resampling and one set of flips for all metrics of the split."""
    clusters = np.array([d["cluster"] for d, _ in pairs])
    labels, member = np.unique(clusters, return_inverse=True)
    sides = [values([metric for *_, metric in rows], [pair[i] for pair in pairs]) for i in (0, 1)]
    tests, sums = [], []
    for facet, split, metric in rows:
        direction, geometric = good(metric, split), METRICS[metric].geometric
        assert direction != "neither"
        both = np.array([side[metric] for side in sides]).T
        difference = _difference(both, geometric)
        scored = ~np.isnan(difference)
        (score,) = stats.scores(difference[None], clusters, seed, [False])
        counts = np.bincount(member[scored], minlength=len(labels))
        total = np.bincount(member[scored], difference[scored], minlength=len(labels))
        means = [stats.mean(side[scored], geometric) if score.n else None for side in both.T]
        sums.append(total)
        tests.append(
            Test(
                baseline=a,
                run=b,
                facet=facet,
                split=split,
                metric=metric,
                good=direction,
                scale="log" if geometric else "linear",
                value_baseline=means[0],
                value_run=means[1],
                difference=score.value,
                ci_low=score.ci_low,
                ci_high=score.ci_high,
                n=score.n,
                unscored=score.unscored,
                clusters=int((counts > 0).sum()),
                effect_size=stats.effect_size(total[counts > 0] / counts[counts > 0]),
                p=None,
            )
        )
    ps = stats.sign_flip(np.array(sums), seed)
    return [replace(t, p=float(p) if t.n else None) for t, p in zip(tests, ps, strict=True)]


def _composites(a: Run, b: Run, model: str, metrics: Collection[str], seed: int) -> list[Test]:
    """Composites that both runs have, on the documents that both hold; drawn jointly, since they are the same ones."""
    sides = [{name: whole(splits) for name, splits in run.observations.items()} for run in (a, b)]
    ids = [{split: {d["id"] for d in documents} for split, documents in side[model].items()} for side in sides]
    both = {split: found & ids[1][split] for split, found in ids[0].items() if found & ids[1].get(split, set())}
    models = []
    for run, side in zip((a, b), sides, strict=True):
        held = {
            name: {s: sorted((d for d in splits.get(s, []) if d["id"] in both[s]), key=lambda d: d["id"]) for s in both}
            for name, splits in side.items()
        }
        made = {name: Model(splits, seed) for name, splits in held.items()}
        asked = Model(held[model], seed, made.get("retain_only"), made.get("original"), run.record.benchmark)
        models.append(asked)
    tests = []
    for name, composite, about in applicable(models[0], model == "retain_only"):
        had = all(name in run.record.composites.get(model, {}) for run in (a, b))
        if not (had if not metrics else {name, "all"} & {*metrics}):
            continue
        try:
            mine, theirs = (composite.fn(m) for m in models)
        except (Undefined, ValueError):  # it has no value in one of them; its record says why
            continue
        rows = min(len(mine), len(theirs))
        clusters = models[0].clusters(about)
        low, high = composite.interval((theirs[:rows] - mine[:rows])[1:], clusters)
        tests.append(
            Test(
                baseline=a.label,
                run=b.label,
                facet="Composites",
                split="",
                metric=name,
                good=composite.better,
                scale="linear",
                value_baseline=float(mine[0]),
                value_run=float(theirs[0]),
                difference=float(theirs[0] - mine[0]),
                ci_low=low,
                ci_high=high,
                n=sum(len(both[split]) for split in about),
                unscored=0,
                clusters=clusters,
                effect_size=None,
                p=None,
            )
        )
    return tests


def _difference(values: Floats, geometric: bool) -> Floats:
    """[n, 2] -> [n]. What has no finite difference has none (NaN)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (np.log(values) if geometric else values).T
        difference = b - a
    return np.where(np.isfinite(difference), difference, np.nan)


def _corrected(tests: Sequence[Test]) -> list[Test]:
    known = [t.p for t in tests if t.p is not None]
    adjusted = iter(stats.holm(np.array(known)))
    return [t if t.p is None else replace(t, p_holm=float(next(adjusted))) for t in tests]


def _limits(tests: Sequence[Test]) -> list[str]:
    """Where so few clusters can't show a difference, however large, among so many tests."""
    count, notes = sum(t.p is not None for t in tests), []
    for split in dict.fromkeys(t.split for t in tests):
        here = [t for t in tests if t.split == split and t.p is not None]
        floor = stats.smallest_p(max((t.clusters for t in here), default=2))
        if here and floor * count > LEVEL and not any(t.decided for t in here):
            notes.append(
                f"{split} has {here[0].clusters} clusters: no p there can be below {floor:.2g}, nor below "
                f"{min(floor * count, 1):.2g} among {count} tests. --metrics, chosen before looking, tests fewer."
            )
    return notes


def sentence(facet: str, tests: Sequence[Test]) -> str:
    """What the tests of one facet, of one pair of runs, establish, and what they leave open."""
    a, b = tests[0].baseline, tests[0].run
    known = [t for t in tests if t.p_holm is not None]
    if not known:
        return f"{facet}: unknown; no document has a value in both {a} and {b}."
    if all(t.difference == 0 and t.value_baseline == t.value_run for t in known):
        return f"{facet}: {b} is as good as {a}, by the same {_names(known)}."
    decided, open_ = [t for t in known if t.decided], [t for t in known if not t.decided]
    if not decided:
        smallest = min(t.p_holm for t in known if t.p_holm is not None)
        text = f"{facet}: no difference between {b} and {a} is established (smallest p {_p(smallest)})"
        widest = next((t for t in known if t.ci_low is not None), None)
        if widest is None:
            return text + "; they may be alike or not."
        return (
            f"{text}; that does not make them alike: {widest.metric} on {widest.split} may differ by {_span(widest)}."
        )
    said = [
        f"{way} than {a} by {_names(which)}"
        for way, which in (
            ("better", [t for t in decided if t.better]),
            ("worse", [t for t in decided if not t.better]),
        )
        if which
    ]
    largest = max(t.p_holm for t in decided if t.p_holm is not None)
    text = f"{facet}: {b} is {' and '.join(said)} (p ≤ {_p(largest)})"
    return text + (f"; no difference is established by {_names(open_)}." if open_ else ".")


def _names(tests: Sequence[Test]) -> str:
    splits: dict[str, list[str]] = {}
    for test in tests:
        splits.setdefault(test.metric, []).append(test.split)
    return ", ".join(f"{metric} ({', '.join(where)})" for metric, where in splits.items())


def _p(p: float) -> str:
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _span(test: Test) -> str:
    assert test.ci_low is not None
    assert test.ci_high is not None
    if test.scale == "log":
        return f"a factor of {table.number(np.exp(test.ci_low))} to {table.number(np.exp(test.ci_high))}"
    return f"{_signed(test.ci_low)} to {_signed(test.ci_high)}"


def _signed(x: float) -> str:
    return ("+" if x > 0 else "") + table.number(x)


def _cell(test: Test) -> str:
    """'difference [low, high]', of logarithms as factors."""
    shown = [
        "×" + table.number(float(np.exp(x))) if test.scale == "log" else _signed(x)
        for x in (test.difference, test.ci_low, test.ci_high)
        if x is not None
    ]
    return "—" if not shown else shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def comparison_table(tests: Sequence[Test]) -> Table:
    """The tests of one pair of runs."""
    a, b = tests[0].baseline, tests[0].run
    result = Table(title=Text(f"{b} compared with {a}"), title_style="bold")
    result.add_column("facet, metric (arrow: good)", no_wrap=True)
    result.add_column("on")
    for name in (Text(a), Text(b), "difference [95 %]", "effect", "p", "p (Holm)", "n (clusters)"):
        result.add_column(name, justify="right")
    for facet, rows in itertools.groupby(tests, lambda t: t.facet):
        if result.row_count:
            result.add_section()
        result.add_row(Text(facet, style="bold"))
        for t in rows:
            unscored = f", {t.unscored} unscored" if t.unscored else ""
            result.add_row(
                f"  {t.metric} {table.ARROW[t.good]}",
                Text(t.split),
                *("—" if v is None else table.number(v) for v in (t.value_baseline, t.value_run)),
                _cell(t),
                "—" if t.effect_size is None else f"{t.effect_size:.2f}",
                *("—" if p is None else _p(p) for p in (t.p, t.p_holm)),
                f"{t.n} ({t.clusters}{unscored})",
                style="bold" if t.decided else None,
            )
    return result
