"""The retain-only reference through the command line: scored in the same run, or taken from an earlier one."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from tests import CHECKPOINTS
from tests.command import refused, run
from unlearn_metrics.records import store

GIVEN = ("--original", CHECKPOINTS / "original", "--benchmark", "demo_privacy", "--control", "none", "--limit", 30)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    models = ("--unlearned", CHECKPOINTS / "moderate", "--retain-model", CHECKPOINTS / "retain")
    done = run("score", *GIVEN, *models, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


def losses(documents, role):
    found = [d[role] if isinstance(d[role], list) else [d[role]] for d in documents]
    return [sum(-s.logprob.mean(dtype=float) for s in scores) / len(scores) for scores in found]


def test_figures_against_the_retain_only_model(scored):
    """Forget quality and privleak from the stored token scores alone, by scipy."""
    out, done = scored
    record, documents = store.load_record(out), store.load_documents(out)
    assert {"original", "unlearned", "retain_only"} == record.scores.keys()
    assert record.checkpoints["retain_only"].weights_sha256 not in (
        record.checkpoints["original"].weights_sha256,
        record.checkpoints["unlearned"].weights_sha256,
    )
    log_ratios = [
        [t - w for t, w in zip(losses(d, "true_answer"), losses(d, "wrong_answers"), strict=True)]
        for d in (documents[model]["forget"] for model in ("unlearned", "retain_only"))
    ]
    mine = record.composites["unlearned"]
    assert mine["forget_quality"].value == pytest.approx(ks_2samp(*log_ratios).pvalue)

    def area(model):  # how often a holdout document has the higher Min-40 % score
        scores = []
        for split in ("holdout", "forget"):
            lowest = [
                sorted(d["answer"].logprob[:-1])[: max(1, int(0.4 * len(d["answer"])))] for d in documents[model][split]
            ]
            scores.append([-sum(map(float, part)) / len(part) for part in lowest])
        return mannwhitneyu(*scores).statistic / math.prod(map(len, scores))

    assert mine["auc_min_k"].value == pytest.approx(area("unlearned"))
    expected = 100 * ((1 - area("unlearned")) / (1 - area("retain_only")) - 1)
    assert mine["privleak"].value == pytest.approx(expected)
    for text in ("Composites", "forget_quality", "privleak", "retain-only"):
        assert text in done.stdout


def test_an_earlier_run_gives_the_same(scored, tmp_path):
    out, _ = scored
    models = ("--unlearned", CHECKPOINTS / "moderate", "--reference-record", out)
    done = run("score", *GIVEN, *models, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    first, again = store.load_record(out), store.load_record(tmp_path / "run")
    assert again.composites == first.composites
    assert again.checkpoints["retain_only"] == first.checkpoints["retain_only"]
    assert run("rescore", tmp_path / "run").returncode == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--limit", 5), "is a run of 30 documents of each split, this one is of 5"),
        (("--limit", 30, "--sample", 5), "exclude each other: the first documents, or some of all"),
        (("--benchmark", "demo"), "is a run of demo_privacy, not of demo"),
        (("--retain-model", CHECKPOINTS / "retain"), "exclude each other"),
    ],
)
def test_a_run_that_asked_something_else_is_refused(scored, tmp_path, more, says):
    models = ("--unlearned", CHECKPOINTS / "moderate", "--reference-record", scored[0])
    refused(run("score", *GIVEN, *models, *more, "--out", tmp_path / "out"), says, tmp_path / "out")
