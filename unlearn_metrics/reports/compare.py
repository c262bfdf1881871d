"""Two runs on the same documents: paired differences, how sure they are, and what can be said. Prints nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS
from unlearn_metrics.places import ends
from unlearn_metrics.record import RunRecord
from unlearn_metrics.records import signature, store
from unlearn_metrics.reports import comparison_words as words
from unlearn_metrics.reports import paired_tests
from unlearn_metrics.reports.console import html
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.reports.paired_tests import Curves, Pairs, Run, Test
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.settings import in_python
from unlearn_metrics.splits import parse

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """model: which of each run's models. signatures, paired (split -> pairs): by run. crossings: by run, the
    retentions at which the curves of the primary metric cross. notes: what limits the whole."""

    model: str
    baseline: str
    signatures: dict[str, str]
    paired: dict[str, dict[str, int]]
    tests: list[Test]
    sentences: list[str]
    crossings: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{' and '.join(self.signatures)} compared ({self.model}): {len(self.tests)} tests>"

    def _repr_html_(self) -> str:
        """The tables and sentences of the command, for a notebook."""
        lines = [Text(in_python(f"note: {note}")) for note in self.notes] + [
            Text(line, style="bold") for line in self.sentences
        ]
        return html(*self.tables(), *lines)

    def tables(self) -> list[Grid]:
        """One of each pair of runs."""
        pairs = itertools.groupby(self.tests, lambda t: (t.baseline, t.run))
        return [words.comparison_table(list(tests)) for _, tests in pairs]

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

    metrics: default the headline's; "all" = all there are. Under control, the primary metric of the benchmark is tested
    at equal retention before all others: see `paired_tests.corrected`.

    Raises InputError for runs of different documents, and, unless anyway, of signatures that differ in what matters.
    """
    model, found = _load(runs, model)
    known = [*METRICS, *COMPOSITES, *(name for run in found for name in run.record.ability)]
    for name in metrics:
        if name not in known and name != "all":
            raise InputError(f"unknown metric '{name}'; {did_you_mean(name, known)}")
    pairs = list(itertools.combinations(found, 2)) if all_pairs else [(found[0], run) for run in found[1:]]
    tests: list[Test] = []
    paired, crossings, notes, sentences = {}, {}, [], []
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
        documents, left_out = _pair(a, b)
        curves = Curves([], [], False, [])
        if model == "controlled":
            curves = paired_tests.at_equal_retention(a, b, metrics, seed)
        of_pair = [*curves.tests, *paired_tests.on_documents(a, b, documents, metrics, seed)]
        of_pair = paired_tests.corrected(of_pair, len(pairs))
        label = b.label if not all_pairs else f"{a.label}, {b.label}"
        paired[label] = {split: len(both) for split, both in documents.items()}
        if curves.crossings:
            crossings[label] = curves.crossings
        notes += left_out + curves.notes
        sentences += words.sentences(of_pair, curves)
        tests += of_pair + paired_tests.of_composites(a, b, model, metrics, seed)
    if not tests:
        raise InputError("the runs have no metric in common" + (f" among {', '.join(metrics)}" if metrics else ""))
    signatures = {run.label: run.record.signature for run in found}
    notes = list(dict.fromkeys([*notes, *_procedure(tests, len(pairs)), *_about(model, found)]))
    return Comparison(model, found[0].label, signatures, paired, tests, sentences, crossings, notes)


def _procedure(tests: Sequence[Test], pairs: int) -> list[str]:
    """How the tests were made, where there is more to say than that Holm corrected them."""
    first = next((t for t in tests if t.primary), None)
    said = []
    if first is not None:
        said.append(
            f"Tested first: residual {first.metric} at {first.retention} retention. The others count only if it "
            "differs, and are corrected by Holm among themselves."
        )
    if pairs > 1:
        said.append(f"Each of the {pairs} pairs gets an equal share of the 5 %.")
    if any(t.undecidable for t in tests):
        said.append("--metrics, chosen before looking, tests fewer.")
    return said


def _about(model: str, runs: Sequence[Run]) -> list[str]:
    """What to keep in mind of the models that are compared."""
    documents = {signature.documents(run.record.signature) for run in runs}
    said = [f"All are measured on {of}." for of in documents if of and len(documents) == 1]
    if model == "unlearned":
        return [
            *said,
            "Without control, a model that lost everything also looks good on the forget set: "
            "read forget quality together with retention.",
        ]
    if model == "controlled" and any(run.record.control.keep is not None for run in runs):
        return [
            *said,
            "Apart from the residual, metrics are those of the controlled checkpoints at their alphas as calibrated: "
            "the noise of the calibration is not in their intervals.",
        ]
    return said


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
        if model in record.scores and not observations:
            raise InputError(f"{place} holds no documents, only means that a log had; comparing pairs documents")
        if model not in observations:
            raise InputError(f"{place} has no {model} model; it has {', '.join(record.scores)}")
        found.append(Run(label, record, record.scores.get(model, {}), observations[model], observations))
    return model, found


def _labels(names: Sequence[str]) -> list[str]:
    """The ends of names; [] if they do not tell all apart."""
    found = ends(names)
    labels = [found[name] for name in names]
    return labels if len(set(labels)) == len(labels) else []


def _origin(run: Run) -> str | None:
    original = run.record.checkpoints.get("original")
    return original.weights_sha256 if original else None


def _pair(a: Run, b: Run) -> tuple[Pairs, list[str]]:
    """(split -> the documents that both runs have, by id, what was left out and why).

    The calibration split of a retain split is left out, and documents of lm-eval's tasks, which have no text here,
    where their number or data differ: an id would not be the same question.
    """
    pairs: Pairs = {}
    notes = []
    for split, documents in a.documents.items():
        if parse(split).calibration or split not in b.documents:
            continue
        if not _same_tasks(a, b, split):
            notes.append(f"{a.label} and {b.label} were asked other questions of {split}, which is left out.")
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
    return pairs, notes


def _same_tasks(a: Run, b: Run, split: str) -> bool:
    """Whether documents of lm-eval's tasks are of the same data, and as many; True for any others."""
    sides = [(run.record, run.documents[split]) for run in (a, b)]
    logged = {name for _, documents in sides for d in documents[:1] for name in d.get("logged", ())}
    tasks = {m.partition(".")[0] for record, _ in sides for m in record.ability if m in logged}
    same = all(a.record.data.get(task) == b.record.data.get(task) for task in tasks)
    return not tasks or (same and len(sides[0][1]) == len(sides[1][1]))
