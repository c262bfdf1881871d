"""Comparisons of an unlearned model with one that never saw the forget set. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping


def ks_forget_quality(unlearned: Mapping[str, float], retain: Mapping[str, float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test on the truth ratios of two models, question -> R or log R.

    The test sees only the order of the values, so R and log R give the same p. High p: the unlearned model can't be
    told from the retain-only one by this test. It assumes independent samples, but both models answer the same
    questions, several about each author: what they have in common hides a small difference, so a high p shows no
    equivalence. Raises ValueError unless both answered the same questions, at least one.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), section 2.2.3, forget quality.
    """
    return _ks(unlearned, retain)[1]


def ks_distance(unlearned: Mapping[str, float], retain: Mapping[str, float]) -> float:
    """The largest distance between the distribution functions of truth ratios, the statistic of `ks_forget_quality`.

    0 = one distribution, 1 = no value of one model within the range of the other's. Raises as that does.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121), whose code has it as "KS Test Forget".
    """
    return _ks(unlearned, retain)[0]


def _ks(unlearned: Mapping[str, float], retain: Mapping[str, float]) -> tuple[float, float]:
    if not unlearned:
        raise ValueError("forget quality needs at least one question")
    if unlearned.keys() != retain.keys():
        differing = sorted(unlearned.keys() ^ retain.keys())
        raise ValueError(f"forget quality compares the same questions; {len(differing)} differ: {differing[0]!r}")
    from scipy.stats import ks_2samp  # half a second, which records alone need not wait

    found = ks_2samp(list(unlearned.values()), list(retain.values()))
    return float(found.statistic), float(found.pvalue)
