"""A run as a Python user holds it: its scores, its verdict, and its documents as data frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape
from rich.text import Text

from unlearn_metrics.documents import Observations
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, available, good, values
from unlearn_metrics.record import Attacks, Control, Residual, RunRecord, Score
from unlearn_metrics.records import store
from unlearn_metrics.records.verdict import describe
from unlearn_metrics.reports import attacked, figures, table
from unlearn_metrics.reports.console import html, plain
from unlearn_metrics.reports.showing import examples as showing
from unlearn_metrics.reports.showing import paper
from unlearn_metrics.scores.composites import COMPOSITES
from unlearn_metrics.settings import in_python

if TYPE_CHECKING:
    from pandas import DataFrame

TEXTS = ("question", "prompt", "reference", "generation")
# a page of its own within the notebook's: neither's style reaches the other, and nothing in it may run
FOLDED = """<details><summary>Report: plots, what the models said, all scores</summary>
<iframe sandbox srcdoc="{}" title="report" loading="lazy" style="width: 100%; height: 75vh; border: 0"></iframe>
</details>
"""


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A scored run, in memory or in a folder. A notebook shows it as the table that the command line prints, with the
    report folded beneath it.

    Made by `score`, `load` and `rescore`, not by hand.

    Attributes:
        record: everything that record.json holds: checkpoints, settings, prompts, software, scores.
        folder: where the run lies; None if it is in memory only (see `save`).
        everything: whether it is shown with all its metrics, instead of those of the headline.
    """

    record: RunRecord
    folder: Path | None = None
    everything: bool = False
    _observations: Observations | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What tables call the unlearned checkpoint."""
        return self.record.name

    @property
    def verdict(self) -> str:
        """What the unlearned model's scores hide, and what is still there under control, in one plain sentence."""
        return self.record.verdict

    @property
    def control(self) -> Control:
        """How the unlearned checkpoint was controlled, by which method and how far, and what it kept."""
        return self.record.control

    @property
    def residual(self) -> dict[str, Residual]:
        """metric -> `Residual`: what is still there of the forget set once the model is as useful as before.

        Empty where the control was not calibrated, so that no path was measured.
        """
        return self.record.residual

    @property
    def attacks(self) -> Attacks | None:
        """What attacks bring back of the forget set; None where none was made. Scores under an attack are among
        `scores`, of the model "unlearned+int4" and the like."""
        return self.record.attacks

    @cached_property
    def scores(self) -> dict[tuple[str, str, str], Score]:
        """(model, split, metric) -> `Score`: the mean over documents and its 95 % interval.

        Models are "original", "unlearned", "controlled" and "retain_only", splits "forget", "retain" and what else
        the benchmark has.
        """
        return {
            (model, split, metric): score
            for model, splits in self.record.scores.items()
            for split, metrics in splits.items()
            for metric, score in metrics.items()
        }

    @cached_property
    def composites(self) -> dict[tuple[str, str], Score]:
        """(model, name) -> `Score` of what is made of several splits or models, such as forget quality."""
        return {(m, name): score for m, scores in self.record.composites.items() for name, score in scores.items()}

    @cached_property
    def observations(self) -> Observations:
        """model -> split -> documents, with the token scores that were observed; read from the folder when used.

        Raises:
            InputError: the folder's files are not there, or not what a run writes.
        """
        if self._observations is not None:
            return self._observations
        assert self.folder is not None
        return store.load_documents(self.folder)

    def to_pandas(self) -> DataFrame:
        """The scores as a data frame.

        Returns:
            A row for each score, with the columns model, split ("" for a composite), metric, value, ci_low and
            ci_high (its 95 % interval), n (documents scored), unscored (documents that have no value, which are in
            no other number) and good ("higher", "lower", ...: which way is good on this split).
        """
        from pandas import DataFrame

        rows: list[tuple[str, str, str, Score, str]] = [
            (*key, score, self.record.ability.get(key[2]) or good(key[2], key[1])) for key, score in self.scores.items()
        ]
        rows += [(model, "", name, score, COMPOSITES[name].better) for (model, name), score in self.composites.items()]
        return DataFrame(
            [
                {"model": model, "split": split, "metric": metric, "value": score.value}
                | {"ci_low": score.ci_low, "ci_high": score.ci_high, "n": score.n, "unscored": score.unscored}
                | {"good": better}
                for model, split, metric, score, better in rows
            ]
        )

    def documents(self, metrics: Iterable[str] | None = None) -> DataFrame:
        """The documents of all models as a data frame: prompt, reference and generation, and the metrics of each.

        Args:
            metrics: those wanted; by default the ones that were scored.

        Returns:
            A row for each document of each model, with the columns model, split, id (the row in the data, from 0),
            cluster (documents with the same number are resampled together), question, prompt, reference, generation,
            and one for each metric. NaN: the document has no such value.

        Raises:
            InputError: an unknown metric, or what `observations` raises.
        """
        from pandas import DataFrame

        wanted = None if metrics is None else [*metrics]
        for name in wanted or ():
            if name not in METRICS and name not in self.record.ability:
                raise InputError(f"unknown metric '{name}'; {did_you_mean(name, [*METRICS, *self.record.ability])}")
        rows = []
        for model, splits in self.observations.items():
            for split, documents in splits.items():
                scored = self.record.scores.get(model, {}).get(split, available(documents))
                found = values(list(scored) if wanted is None else wanted, documents)
                for i, document in enumerate(documents):
                    row = {"model": model, "split": split, "id": document["id"], "cluster": document["cluster"]}
                    row |= {name: document.get(name) for name in TEXTS}
                    rows.append(row | {name: column[i] for name, column in found.items()})
        return DataFrame(rows)

    def examples(self, split: str = "forget", count: int = 5, metric: str | None = None) -> DataFrame:
        """What the models said, side by side: the worst and the best documents of a split for unlearning.

        Args:
            split: on the forget set, worst is what the model under control remembers most (without control, the
                unlearned one); on others, what was lost most.
            count: of the worst, and of the best.
            metric: which orders them; by default the benchmark's primary one.

        Returns:
            A row for each document: place ("worst 1", ..., "best 1", ...), id, question, reference, and for each model
            what it said (its name as column) and its value ("unlearned extraction_strength", ...; NaN: it has none).

        Raises:
            InputError: a split or metric that the run does not have, or no texts.
        """
        from pandas import DataFrame

        by, found = showing.examples(self.record, self.observations, split, count, metric)
        rows = [
            {"place": one.place, "id": one.id, "question": one.question, "reference": one.reference}
            | one.said
            | {f"{model} {by}": math.nan if value is None else value for model, value in one.scored.items()}
            for one in found
        ]
        return DataFrame(rows)

    def report(self, path: str | Path, split: str = "forget", count: int = 5, metric: str | None = None) -> Path:
        """Write the run as one HTML page that needs no network: verdict, plots, texts side by side, all scores.

        Of a run that holds no texts, the rest.

        Args:
            path: the file; one that this wrote before is replaced.
            split, count, metric: of the texts, as in `examples`.

        Returns:
            The path.

        Raises:
            InputError: what `examples` raises, and a file of others.
        """
        from unlearn_metrics.reports.showing import page

        page.save(Path(path), self._page(split, count, metric))
        return Path(path)

    def _page(self, split: str = "forget", count: int = 5, metric: str | None = None) -> str:
        from unlearn_metrics.reports.showing import page

        try:
            by, found = showing.examples(self.record, self.observations, split, count, metric)
        except showing.NoTexts:
            by, found = "", []
        return page.as_html(self.record, self.observations, by, found)

    def figures(self, folder: str | Path) -> list[Path]:
        """Write the run's plots for a paper, each as SVG, PDF and PNG: its path, and how its documents differ.

        Args:
            folder: where to; it is made.

        Returns:
            The files.

        Raises:
            InputError: a folder that cannot be written to, and files of others in it that have the plots' names.
        """
        from unlearn_metrics.reports.showing import plots

        return plots.save(Path(folder), self.record, self.observations)

    def to_latex(self) -> str:
        """The table and the residuals in LaTeX; they need the package booktabs.

        Returns:
            LaTeX.
        """
        return paper.as_latex(self.record)

    def save(self, out: str | Path, overwrite: bool = False) -> Run:
        """Write the run to a folder: record.json and two Parquet tables.

        Args:
            out: the folder; it must not hold anything else.
            overwrite: replace the run that the folder holds.

        Returns:
            The run in that folder.

        Raises:
            InputError: the folder holds a run already, or other files.
        """
        store.save(Path(out), self.record, self.observations, overwrite)
        figures.put(Path(out), self.record)
        return Run(self.record, Path(out), self.everything, self._observations)

    def __repr__(self) -> str:
        said = [f"control {self.control.method}"]
        if self.control.method != "none":
            said[0] += f", alpha {self.control.alpha:.3g}"
        for model in ("unlearned", "controlled"):
            score = self.scores.get((model, "forget", "extraction_strength"))
            if score is not None and score.value is not None:
                said.append(f"{model} forget extraction_strength {table.number(score.value)}")
        for metric, residual in list(self.residual.items())[:1]:
            if residual.value.value is not None:
                said.append(
                    f"residual {metric} {table.number(residual.value.value)} at {residual.retention:.0%} retention"
                )
        return plain(" ".join(f"<Run {self.name} on {self.record.benchmark}: {'; '.join(said)}>".split()))

    def _repr_html_(self) -> str:
        """For a notebook: the table, how the model was controlled, the verdict, and, folded, the report."""
        notes = [*table.composite_notes(self.record), *table.residual_notes(self.record)]
        lines = [Text(note, style="dim") for note in notes]
        lines += [Text(f"unknown: {line}", style="dim") for line in table.undefined(self.record)]
        lines += [Text(describe(self.control)), Text(self.verdict, style="bold")]
        lines += [Text(self.attacks.sentence, style="bold")] if self.attacks is not None else []
        tables = [table.table(self.record, self.everything), table.residual_table(self.record)]
        tables += attacked.tables(self.record, self.everything)
        lines = [Text(in_python(line.plain), line.style) for line in lines]
        try:
            folded = FOLDED.format(escape(self._page()))
        except InputError as error:  # the record is there, but the documents are not
            folded = f"<p>no report: {escape(plain(in_python(str(error))))}</p>"
        return html(*(shown for shown in tables if shown is not None), *lines) + folded
