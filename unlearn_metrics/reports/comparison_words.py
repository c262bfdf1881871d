"""What paired tests establish and what they leave open: sentences, and a table for each pair of runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from unlearn_metrics.reports import table
from unlearn_metrics.reports.grid import Grid
from unlearn_metrics.reports.paired_tests import RESIDUAL, Curves, Test
from unlearn_metrics.scores import curve, stats
from unlearn_metrics.wording import counted


def sentences(tests: Sequence[Test], curves: Curves) -> list[str]:
    """What the tests of one pair of runs say: the primary one first, then a sentence for each facet."""
    primary = next((t for t in tests if t.primary), None)
    facets = [
        (facet, [t for t in tests if t.facet == facet and not t.primary and (t.p is not None or facet != RESIDUAL)])
        for facet in (RESIDUAL, *table.HEADLINE)
    ]
    if primary is None:
        return [sentence(facet, found) for facet, found in facets if found]
    average = next((t for t in tests if t.metric == primary.metric and t.facet == RESIDUAL and t is not primary), None)
    said = [_of_primary(primary, average, curves)]
    if not primary.decided:
        others = any(found for _, found in facets)
        return [*said, "The other metrics are not tested, since the first establishes no difference."][: 1 + others]
    names = {RESIDUAL: f"{RESIDUAL} by other metrics"}
    return said + [sentence(names.get(facet, facet), found) for facet, found in facets if found]


def _of_primary(test: Test, average: Test | None, curves: Curves) -> str:
    a, b = test.baseline, test.run
    what = f"residual {test.metric} at {test.retention} retention"
    if test.difference is None:
        text = f"{RESIDUAL}: {what} cannot be compared, since it is not known of both {a} and {b}"
    elif test.clusters < curve.RANKED:
        few = counted(test.clusters, "cluster")
        text = f"{RESIDUAL}: whether {b} and {a} differ by {what} cannot be decided with {few}"
    elif test.p_corrected is None:
        text = f"{RESIDUAL}: whether {b} and {a} differ by {what} cannot be decided, since there is no interval"
    elif test.decided:
        way = "better" if test.better else "worse"
        text = f"{RESIDUAL}: {b} is {way} than {a} by {what}: {_cell(test)} (p {_p(test.p_corrected)})"
    else:
        text = f"{RESIDUAL}: no difference between {b} and {a} by {what} is established (p {_p(test.p_corrected)})"
        text += _may_differ(test)
    if average is not None and average.difference is not None:
        text += f"; on average over {average.retention} retention {_cell(average)}"
    if curves.crossings:
        where = ", ".join(f"{rho:.1%}" for rho in curves.crossings)
        sure = "" if curves.crossed else ", though it is not established that they do"
        text += f"; their curves cross at {where} retention{sure}"
    return text + "."


def sentence(facet: str, tests: Sequence[Test]) -> str:
    """What the tests of one facet, of one pair of runs, establish, and what they leave open."""
    a, b = tests[0].baseline, tests[0].run
    known = [t for t in tests if t.p_corrected is not None]
    if not known:
        return f"{facet}: unknown; no document has a value in both {a} and {b}."
    if all(t.difference == 0 and t.value_baseline == t.value_run for t in known):
        return f"{facet}: {b} is as good as {a}, by the same {_names(known)}."
    decided = [t for t in known if t.decided]
    undecidable = [t for t in known if t.undecidable and not t.decided]
    open_ = [t for t in known if not t.decided and not t.undecidable]
    parts = []
    if decided:
        said = [
            f"{way} than {a} by {_names(which)}"
            for way, which in (
                ("better", [t for t in decided if t.better]),
                ("worse", [t for t in decided if not t.better]),
            )
            if which
        ]
        largest = max(t.p_corrected for t in decided if t.p_corrected is not None)
        parts.append(f"{b} is {' and '.join(said)} (p ≤ {_p(largest)})")
        if open_:
            parts.append(f"no difference is established by {_names(open_)}")
    elif open_:
        smallest = min(t.p_corrected for t in open_ if t.p_corrected is not None)
        text = f"no difference between {b} and {a} is established (smallest p {_p(smallest)})"
        parts.append(text + next(filter(None, map(_may_differ, open_)), ""))
    if undecidable:
        *fewer, most = sorted({t.clusters for t in undecidable})
        clusters = " or ".join([*map(str, fewer), counted(most, "cluster")])
        by = f" by {_names(undecidable)}" if decided or open_ else f" between {b} and {a}"
        many = "" if all(stats.smallest_p(t.clusters) > stats.LEVEL for t in undecidable) else " and so many tests"
        parts.append(f"a difference{by} cannot be decided with {clusters}{many}")
    return f"{facet}: {'; '.join(parts)}."


def _may_differ(test: Test) -> str:
    """How far two models that are not shown to differ may do so; "" where the interval, not corrected, leaves 0 out."""
    if test.ci_low is None or test.ci_high is None or not test.ci_low <= 0 <= test.ci_high:
        return ""
    at = f", {test.retention} retention" if test.retention else ""
    return f"; that does not make them alike: {test.metric} on {test.split}{at} may differ by {_span(test)}"


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


def comparison_table(tests: Sequence[Test]) -> Grid:
    """The tests of one pair of runs."""
    a, b = tests[0].baseline, tests[0].run
    heads = ["facet, metric (arrow: good)", "on", a, b, "difference [95\u00a0%]", "effect", "p", "p, corrected"]
    result = Grid(f"{b} compared with {a}", [*heads, "n (clusters)"], spare=["effect", "p", "n (clusters)"])
    for facet, rows in itertools.groupby(tests, lambda t: t.facet):
        result.add("Residual, at equal retention" if facet == RESIDUAL else facet)
        for t in rows:
            unscored = f", {t.unscored} unscored" if t.unscored else ""
            result.add(
                f"  {t.metric} {table.ARROW[t.good]}",
                f"{t.split} at {t.retention}" if t.retention else t.split,
                *("—" if v is None else table.number(v) for v in (t.value_baseline, t.value_run)),
                _cell(t),
                "—" if t.effect_size is None else f"{t.effect_size:.2f}",
                *("—" if p is None else _p(p) for p in (t.p, t.p_corrected)),
                f"{t.n} ({t.clusters}{unscored})",
                style="bold" if t.decided else None,
            )
    return result
