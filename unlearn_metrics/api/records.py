"""The functions of the Python API that read records and run no model."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unlearn_metrics.api.parameters import Place, listed, python_names
from unlearn_metrics.errors import InputError
from unlearn_metrics.records import rescore as rescoring
from unlearn_metrics.records import store
from unlearn_metrics.records.folder import RECORD
from unlearn_metrics.reports import compare as comparing
from unlearn_metrics.reports.compare import Comparison
from unlearn_metrics.reports.meta import judged, lasting
from unlearn_metrics.reports.meta.judged import MetaEvaluation
from unlearn_metrics.reports.meta.lasting import RobustnessReport
from unlearn_metrics.run import Run


@python_names
def load(folder: Place) -> Run:
    """Open a run that was written before, here or elsewhere. Its documents are read when they are used.

    Args:
        folder: the run's folder, or its record.json.

    Returns:
        The run.

    Raises:
        InputError: there is no run, or its record is not valid.
    """
    path = Path(folder)
    record = store.load_record(path)
    return Run(record, path.parent if path.name == RECORD else path)


@python_names
def rescore(run: Run | Place, metrics: str | Iterable[str] = ()) -> Run:
    """Compute every score of a run again from its stored token scores and texts, without a model.

    A warning names the metrics that cannot be computed again, because they are not installed.

    Args:
        run: a run, or its folder.
        metrics: further metrics, by name; "all": all that its documents allow.

    Returns:
        The run with the new scores, in memory.

    Raises:
        InputError: an unknown metric, one whose arguments no document has, or a run that cannot be read.
    """
    run = run if isinstance(run, Run) else load(run)
    names = listed(metrics)
    with tempfile.TemporaryDirectory() as folder:
        place = run.folder
        if place is None:
            place = Path(folder, "run")
            store.save(place, run.record, run.observations)
        try:
            record = rescoring.rescore(place, names)
        except InputError as error:
            raise InputError(str(error).replace(str(place), run.name)) from None
    if unknown := store.unknown_metrics(run.record):
        warnings.warn(f"not computed again, since these metrics are not installed: {', '.join(unknown)}", stacklevel=3)
    return Run(record, None, bool(names), run.observations)


@python_names
def compare(
    runs: Sequence[Run | Place],
    *,
    model: str | None = None,
    metrics: str | Iterable[str] = (),
    all_pairs: bool = False,
    anyway: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare runs on the documents that they share: paired differences, intervals, tests, and a summary.

    Args:
        runs: runs, or their folders; the first is the baseline.
        model: which of their models: "original", "unlearned", "controlled" or "retain_only"; by default controlled if
            all have it, else unlearned.
        metrics: by default those of the table; "all": all there are.
        all_pairs: every two runs, not only each with the first.
        anyway: also where signatures differ in what matters, with a note.
        seed: of resampling and sign flips.

    Returns:
        The tests; `to_pandas()` has a row for each, `sentences` what they establish and leave open.

    Raises:
        InputError: runs of different documents, or not measured alike; an unknown metric or model.

    Source: docs/compare.md: the primary metric at equal retention first, then sign flips of whole clusters, corrected
    by Holm's method (1979).
    """
    if isinstance(runs, str | os.PathLike | Run):  # a text is not a list of its letters
        runs = [runs]
    opened = [
        run if isinstance(run, Path) else comparing.Measured(run.name, run.record, run.observations)
        for run in (_opened(run) for run in runs)
    ]
    return comparing.compare(opened, model, listed(metrics), all_pairs, anyway, seed)


@python_names
def robustness(
    runs: Mapping[str, object] | Place | Sequence[Place], *, metrics: str | Iterable[str] = (), seed: int = 0
) -> RobustnessReport:
    """Correlate metrics of unlearned models with the same metrics after attacks: does a reading last?

    Args:
        runs: folders of runs with attacks; or a plan as that of `meta`, of which it needs `unlearned` with the run
            before and the runs after attacks.
        metrics: only these; by default all that say what a model knows and that all runs have.
        seed: of resampling.

    Returns:
        Pearson's correlation and Kendall's tau of every metric under every attack, with 95 % intervals over models;
        `to_pandas()` has a row for each.

    Raises:
        InputError: what is no plan, runs that were not measured alike, or an unknown metric.

    Source: Wang et al. 2024, "Unlearning with Control" (arXiv 2406.09179), its test of metrics (Pearson's
    correlation before and after attacks).
    """
    if isinstance(runs, Mapping):
        return lasting.evaluate(runs, listed(metrics), seed)
    paths = [Path(runs)] if isinstance(runs, (str, os.PathLike)) else [*map(Path, runs)]
    return lasting.evaluate(lasting.plan_of(paths), listed(metrics), seed)


def _opened(run: Run | Place) -> Run | Path:
    """The folder of a run, or the run where it is in none."""
    if isinstance(run, Run):
        return run if run.folder is None else run.folder
    path = Path(run)
    return path.parent if path.name == RECORD else path


@python_names
def meta(
    plan: Mapping[str, object] | Place,
    *,
    metrics: str | Iterable[str] = (),
    against: str | None = None,
    seed: int = 0,
) -> MetaEvaluation:
    """Judge metrics by models of which it is known whether they know what was to be forgotten.

    Args:
        plan: which run is what, as docs/meta.md has it: a mapping, a YAML file, or a folder of folders named as the
            plan's keys.
        metrics: only these; by default all that say what a model knows and that all runs have.
        against: the metric that the others' faithfulness is compared with; by default the benchmark's primary one.
        seed: of resampling.

    Returns:
        Every metric's faithfulness, stability under attacks and both, with 95 % intervals over models;
        `to_pandas()` has a row for each metric.

    Raises:
        InputError: what is no plan, runs that were not measured alike, or an unknown metric.

    Source: Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618), section 4.
    """
    return judged.evaluate(plan if isinstance(plan, Mapping) else Path(plan), listed(metrics), against, seed)
