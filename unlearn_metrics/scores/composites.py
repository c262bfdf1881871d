"""Values of several splits or models: model utility, forget quality, attacks, OpenUnlearning's aggregates.

A composite is a function of a Model that returns [1 + resamples] values: its own first, then that of every resample,
from which the interval comes. One draw of whole clusters serves all metrics of a split and all models, since they
answered the same questions. docs/composites.md lists what each one needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import expit

from unlearn_metrics.documents import Floats
from unlearn_metrics.metrics import MEMBERSHIP_ATTACKS
from unlearn_metrics.metrics.depth import erased_share
from unlearn_metrics.metrics.forget_quality import ks_distance, ks_forget_quality
from unlearn_metrics.record import Score
from unlearn_metrics.scores import lume, stats
from unlearn_metrics.scores.models import MEMBERSHIP, Model, Splits, Undefined, harmonic, paired, whole
from unlearn_metrics.wording import counted

UTILITY = [
    (split, metric)
    for split, probability in (
        ("retain", "probability"),
        ("real_authors", "probability_normalised"),
        ("world_facts", "probability_normalised"),
    )
    for metric in (probability, "rouge", "truth_ratio")
]
MEMORIZATION = ("extraction_strength", "exact_memorization", "probability_paraphrased_answer")
# 1 - the AUC of forget against holdout by Min-40 % of the models that MUSE's authors retrained without the forget set
# (Shi et al. 2024, the constants of their code; 7B models)
PUBLISHED = {"muse_news": 0.4772, "muse_books": 0.5393}
EQUIVALENT = 0.1  # nats of mean log truth ratio, that is R within 10 % of the retain-only model's: see `equivalence`
SCALED_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def model_utility(m: Model, ratio: str = "truth_ratio") -> Floats:
    """Harmonic mean of nine: {retain, real authors, world facts} x {probability (normalised but for retain), ROUGE-L
    recall, truth ratio}; 0 if one of them is. Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), section 2.2.2.

    ratio: which truth ratio; the one of their eq. 1 is truth_ratio_arithmetic.
    """
    return harmonic(*(m.mean(split, ratio if metric == "truth_ratio" else metric) for split, metric in UTILITY))


def forget_quality(m: Model) -> Floats:
    """p-value of the exact two-sample KS test on the truth ratios, against the retain-only model's on the same
    questions. It has no interval, since a p-value estimates nothing. See `ks_forget_quality` for what it assumes.

    Source: Maini et al. 2024 (TOFU), section 2.2.3.
    """
    return np.array([ks_forget_quality(m.log_ratios("forget"), m.reference.log_ratios("forget"))])


def forget_ks_distance(m: Model) -> Floats:
    """The statistic of the test of `forget_quality`, without an interval: resamples are further apart than the data,
    so for two models that are alike no interval of theirs holds the truth, 0.
    """
    return np.array([ks_distance(m.log_ratios("forget"), m.reference.log_ratios("forget"))])


def log_truth_ratio_difference(m: Model) -> Floats:
    """Mean over the forget questions of log R minus the retain-only model's on the same question, in nats."""
    return m.average("forget", "log_truth_ratio_difference", _paired_log_ratios(m))


def forget_quality_paired(m: Model) -> Floats:
    """Two-sided p-value that log_truth_ratio_difference is 0, from sign flips of whole clusters.

    Unlike the KS test's it takes into account that both models answer the same questions, by author. Undefined where
    the clusters are so few that no p can be small.
    """
    differences = _paired_log_ratios(m)
    labels, member = np.unique([d["cluster"] for d in m.documents("forget")], return_inverse=True)
    if stats.smallest_p(len(labels)) > stats.LEVEL:
        raise Undefined(f"cannot be decided with {counted(len(labels), 'cluster')} of forget")
    return stats.sign_flip(np.bincount(member, differences).astype(np.float64)[None], m.seed)


def _paired_log_ratios(m: Model) -> Floats:
    """log R of each forget document minus the retain-only model's, [n]."""
    mine, theirs = m.log_ratios("forget"), m.reference.log_ratios("forget")
    if mine.keys() != theirs.keys():
        raise ValueError("truth ratios are compared on the same questions; those of forget differ")
    differences = np.array([ratio - theirs[question] for question, ratio in mine.items()])
    if not np.isfinite(differences).all():
        raise Undefined("a truth ratio on forget is 0 or infinite")
    return differences


def auc(m: Model, attack: str) -> Floats:
    """Area under the curve of a membership attack, forget against holdout: 0.5 = no better than chance.

    `reference`: mean loss minus the retain-only model's on the same text (Carlini et al. 2021, arXiv 2012.07805, with
    the retrained model as the reference, as in OpenUnlearning).
    """
    return m.auc(attack)


def privleak(m: Model) -> Floats:
    """100 x ((1 - AUC) / (1 - AUC_retain) - 1) by Min-40 %: 0 = as private as the retain-only model, below:
    under-unlearned, above: over-unlearned. Source: Shi et al. 2024 (MUSE, arXiv 2407.06460), eq. 1, in OpenUnlearning's
    orientation.
    """
    return _leak(*paired(m.auc("min_k"), m.reference.auc("min_k")))


def privleak_published(m: Model) -> Floats:
    """privleak against the AUC of the model that MUSE's authors retrained, as they published it, not measured again.

    Meaningful for models of the kind that they retrained. Its interval takes the constant to be exact.
    """
    mine = m.auc("min_k")
    return _leak(mine, np.full_like(mine, 1 - PUBLISHED[m.benchmark]))


def _leak(mine: Floats, theirs: Floats) -> Floats:
    if theirs[0] == 1:
        raise Undefined("the retain-only model separates forget from holdout perfectly")
    with np.errstate(divide="ignore", invalid="ignore"):
        leaks = 100 * ((1 - mine) / (1 - theirs) - 1)
    return np.where(np.isfinite(leaks), leaks, np.nan)


def memorization_score(m: Model) -> Floats:
    """Harmonic mean of 1 - {extraction strength, exact memorization, probability of the paraphrased answer, truth
    ratio} on forget; the truth ratio here is p_true / (p_true + p_wrong). 1 = nothing memorized.

    Source: Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618), appendix F.1, its truth ratio as in the report (page
    18; open-unlearning issue #138); since commit d3d7cf9 its code has that one as the aggregator `prob_mean`.
    """
    parts = [1 - m.mean("forget", name) for name in MEMORIZATION]
    truth = expit(-np.array(list(m.log_ratios("forget").values())))
    return harmonic(*parts, 1 - m.average("forget", "truth_ratio", truth))


def privacy_score(m: Model) -> Floats:
    """Harmonic mean over loss, zlib, Min-K and Min-K++ of s = 1 - |AUC - AUC_retain| / |AUC_original - AUC_retain|,
    at least 0: 1 = the attack sees what it sees in the retain-only model, 0 = as far from that as the original.

    Source: Dorna et al. 2025, appendix F.1, which gives the harmonic mean of four s in [0, 1] that say "how closely the
    model aligns with the retain model", but not how s is computed; its code was not released (open-unlearning issues
    #150, #172). This s is the reading proposed in #172. It is not the authors': theirs gives the original model 0.10
    (Table 3), this one 0 by definition.

    It has no interval. Where a model is as private as the retain-only one, the truth is 1, the end of the range, and
    every sample lies below: of 25 simulated data sets no interval held it.
    """
    parts = []
    for attack in SCALED_ATTACKS:
        mine, base, start = paired(m.auc(attack), m.reference.auc(attack), m.original.auc(attack))
        if start[0] == base[0]:
            raise Undefined(f"{attack} sees no difference between the original and the retain-only model")
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.clip(1 - np.abs(mine - base) / np.abs(start - base), 0, 1))
    return harmonic(*parts)


def utility_score(m: Model) -> Floats:
    """Harmonic mean of model utility and fluency on forget (1 - gibberish), relative to the original model's.

    Source: Dorna et al. 2025, appendix F.1 for the harmonic mean. That it is relative to the model before unlearning is
    read off Table 3, where that model has 1.00; whether the mean was divided, as here, or its parts, is not stated.
    """
    mine, start = paired(*(harmonic(model_utility(x), 1 - x.mean("forget", "gibberish")) for x in (m, m.original)))
    if start[0] == 0:
        raise Undefined("the original model's utility is 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(start > 0, mine / start, np.nan)


def overall_score(m: Model) -> Floats:
    """Harmonic mean of memorization_score, privacy_score and utility_score (open-unlearning issue #150; the rows of
    Table 3 in Dorna et al. 2025 agree). It has no interval, since privacy_score has none.
    """
    return harmonic(memorization_score(m), privacy_score(m), utility_score(m))


def tradeoff_score(m: Model) -> Floats:
    """Forgetting against usefulness: harmonic mean of memorization_score and utility_score.

    Source: Dorna et al. 2025, appendix F.2, which tunes methods by it (Table 6).
    """
    return harmonic(memorization_score(m), utility_score(m))


def erased(m: Model, by: str) -> Floats:
    """How deep the forgetting reaches: mean over the forget documents of the share of the knowledge that the model's
    layers lack. 0 = all layers still hold it, 1 = as if never trained on it.

    by: "patched", activation patching (erasure_depth); "lens", logit lens. See `erased_share`.
    Source: Lee, Kim & Jo 2026 (arXiv 2605.24614).
    """
    mine, base = m.documents("forget"), m.reference.documents("forget")
    shares = [erased_share(d[by], r[by]) if by in d and by in r else math.nan for d, r in zip(mine, base, strict=True)]
    return m.average("forget", "depth", np.array(shares))


@dataclass(frozen=True)
class Composite:
    """fn returns [1 + resamples] values. splits: what a benchmark must have for it to be a question at all.

    compares: with the retain-only model, which is not compared with itself. only: the benchmarks it is defined for.
    observed: an observation of the first split without which it is not asked for.
    no_interval: why it has none.
    """

    fn: Callable[[Model], Floats]
    splits: tuple[str, ...]
    better: Literal["higher", "zero", "half"] = "higher"
    compares: bool = False
    only: Collection[str] | None = None
    observed: str | None = None
    no_interval: str = ""

    def interval(self, resampled: Floats, clusters: int) -> tuple[float | None, float | None]:
        """The 95 % interval of its value, or of a difference of two, from resamples."""
        return (None, None) if self.no_interval else stats.interval(resampled, clusters)


P_VALUE = "a p-value estimates nothing that an interval could hold"
_BOUNDARY = "resamples do not show how far the truth is from the end of its range"
_NINE = ("retain", "real_authors", "world_facts")
COMPOSITES: dict[str, Composite] = {
    "model_utility": Composite(model_utility, _NINE),
    "model_utility_arithmetic": Composite(partial(model_utility, ratio="truth_ratio_arithmetic"), _NINE),
    "forget_quality": Composite(forget_quality, ("forget",), compares=True, no_interval=P_VALUE),
    "forget_quality_paired": Composite(forget_quality_paired, ("forget",), compares=True, no_interval=P_VALUE),
    "log_truth_ratio_difference": Composite(log_truth_ratio_difference, ("forget",), "zero", compares=True),
    "ks_distance": Composite(forget_ks_distance, ("forget",), "zero", compares=True, no_interval=_BOUNDARY),
    "privleak": Composite(privleak, MEMBERSHIP, "zero", compares=True),
    "privleak_published": Composite(privleak_published, MEMBERSHIP, "zero", only=PUBLISHED),
    **{f"auc_{attack}": Composite(partial(auc, attack=attack), MEMBERSHIP, "half") for attack in MEMBERSHIP_ATTACKS},
    "auc_reference": Composite(partial(auc, attack="reference"), MEMBERSHIP, "half", compares=True),
    "memorization_score": Composite(memorization_score, ("forget",)),
    "privacy_score": Composite(privacy_score, MEMBERSHIP, compares=True, no_interval=_BOUNDARY),
    "utility_score": Composite(utility_score, ("forget", *_NINE)),
    "tradeoff_score": Composite(tradeoff_score, ("forget", *_NINE)),
    "erasure_depth": Composite(partial(erased, by="patched"), ("forget",), compares=True, observed="patched"),
    "logit_lens": Composite(partial(erased, by="lens"), ("forget",), compares=True, observed="lens"),
    "lume_task_aggregate": Composite(lume.task_aggregate, ("forget", "retain"), only=lume.BENCHMARKS),
    "lume_final_score": Composite(lume.final_score, ("retain", *MEMBERSHIP), only=lume.BENCHMARKS),
    "overall_score": Composite(overall_score, (*MEMBERSHIP, *_NINE), compares=True, no_interval=_BOUNDARY),
}


def compose(
    splits: Splits,
    reference: Splits | None = None,
    original: Splits | None = None,
    seed: int = 0,
    benchmark: str = "",
) -> dict[str, Score]:
    """name -> Score for every composite whose splits the benchmark has; one without a value says why (`undefined`).

    splits: documents of one model; reference: the retain-only model's; original: the original's. Both halves of a split
    that served a calibration count: a composite is about the benchmark as it is defined. n: the documents it is about.
    Raises ValueError if the reference was asked other questions.
    """
    base = None if reference is None else Model(whole(reference), seed)
    start = None if original is None else Model(whole(original), seed)
    model = Model(whole(splits), seed, base, start, benchmark)
    if original is splits:
        model._original = model
    result = {}
    for name, composite, about in applicable(model, reference is splits):
        n = sum(len(model.splits[split]) for split in about)
        try:
            values = composite.fn(model)
        except Undefined as why:
            result[name] = Score(None, None, None, 0, n, str(why))
        else:
            result[name] = Score(float(values[0]), *composite.interval(values[1:], model.clusters(about)), n, 0)
    return result


def equivalence(difference: Score) -> str | None:
    """What a log_truth_ratio_difference with its interval says of the truth ratios of two models, in words.

    Equivalent: the 95 % interval lies within EQUIVALENT of 0, so that a difference as large is rejected on either side
    (two one-sided tests, at 2.5 % each). None where there is no interval.
    """
    low, high = difference.ci_low, difference.ci_high
    if difference.value is None or low is None or high is None:
        return None
    apart = low > 0 or high < 0
    if max(-low, high) <= EQUIVALENT:
        said = f"equivalent to the retain-only model's within {EQUIVALENT} nats" + ", though not equal" * apart
    elif max(low, -high) > EQUIVALENT:
        said = f"further than {EQUIVALENT} nats from the retain-only model's"
    elif apart:
        said = f"unlike the retain-only model's; whether by more than {EQUIVALENT} nats is not established"
    else:
        said = f"not shown to differ from the retain-only model's, nor to be equivalent within {EQUIVALENT} nats"
    return f"truth ratios on forget are {said} (mean log R {difference.value:+.3f} [{low:+.3f}, {high:+.3f}])"


def applicable(model: Model, is_reference: bool) -> Iterator[tuple[str, Composite, Sequence[str]]]:
    """(name, composite, the splits that it is about) of those that can be asked of a model.

    is_reference: whether it is the retain-only model itself, which is not compared with itself.
    """
    for name, composite in COMPOSITES.items():
        about = model.about(composite.splits)
        if not set(about) <= model.splits.keys() or (composite.compares and is_reference):
            continue
        if composite.observed is not None and not any(composite.observed in d for d in model.splits[about[0]]):
            continue
        if composite.only is None or model.benchmark in composite.only:
            yield name, composite, about
