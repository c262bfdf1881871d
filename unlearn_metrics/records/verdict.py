"""The numbers of a record in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

from unlearn_metrics.metrics import good
from unlearn_metrics.record import Control, Estimate, Headline, Imported, Residual, RunRecord, Scores
from unlearn_metrics.splits import kept_on


def _named(metric: str | None) -> str:
    """A retention metric and, where its name does not tell, its split or task."""
    return f"{metric} on retain" if kept_on(str(metric)) == "retain" else str(metric)


def describe(control: Control) -> str:
    """The control in words."""
    if control.method == "none":
        return "control: none"
    given = "".join(f", {name} {value}" for name, value in control.parameters.items())
    text = f"control: {control.method}{given}, alpha = {control.alpha:.4g} (0 = original, 1 = unlearned)"
    if control.target is not None and control.achieved is not None and control.keep is not None:
        text += f"; {_named(control.metric)}: {control.achieved:.3f} on the calibration split (target "
        text += f"{control.target:.3f} = {control.keep:g} of the original's)"
        if control.achieved_held_out is not None and control.original_held_out:
            text += f", {control.achieved_held_out:.3f} on the evaluation split"
            text += f" ({control.achieved_held_out / control.original_held_out:.1%} of the original's)"
    return f"{text}; {control.rounding}" if control.rounding else text


def verdict(
    scores: Scores,
    control: Control,
    headline: Headline | None = None,
    residual: Mapping[str, Residual] | None = None,
    imported: Imported | None = None,
) -> str:
    """One plain sentence: what the numbers of the model as published hide, and what is still there under control."""
    if imported is not None:
        return _imported(scores, headline or Headline(), imported)
    headline = headline or Headline()
    keeps = control.metric or headline.retain

    def share(model: str, split: str, metric: str) -> str | None:
        mine, base = (_value(scores, of, split, metric) for of in (model, "original"))
        return None if mine is None or not base else f"{mine / base:.0%}"

    def retained(model: str) -> str | None:
        found = share(model, kept_on(keeps), keeps)
        split = "the retain set" if control.keep is None else "the evaluation split of the retain set"
        where = f"on {split}" if keeps == headline.forget[0] else f"of the original's {_named(keeps)}"
        return None if found is None else f"{found} {where}"

    metric = headline.forget[0]
    if headline.chance:  # accuracies: what a model without knowledge gets says more than a share of the original's
        unlearned, original, left = (accuracies(scores, m, headline) for m in ("unlearned", "original", "controlled"))
        retain = retained("unlearned")
        if unlearned is None:
            return "The accuracies on what should be forgotten were not measured, so forgetting is unknown."
        text = f"As published, the unlearned model answers {unlearned} right (the original {original}; "
        text += f"chance: {headline.chance:.0%})" + ("" if retain is None else f" and keeps {retain}")
    else:
        forget, retain = share("unlearned", "forget", metric), retained("unlearned")
        if forget is None or retain is None:
            which = metric if forget is None else keeps
            return f"The {which} of the original is 0, or that of one of the models unknown, so forgetting is unknown."
        text = f"As published, the unlearned model keeps {forget} of the original's {metric} on the forget set"
        text += f" and {retain}"
        left = share("controlled", "forget", metric)
    if residual and headline.forget[0] in residual:
        return f"{text}; {equal_retention(residual, headline, control)}."
    kept = retained("controlled")
    given = control.target is None  # nothing was calibrated: the alpha tells nothing about what is kept
    if left is None or kept is None or (given and control.alpha == 1):
        return text + "; without a control, forgetting and damage cannot be distinguished."
    if control.alpha == 0 and given:
        return text + "; at the given alpha 0 it is the original."
    if control.alpha == 0:
        what = "mixture with the original" if control.method == "mix" else f"model that {control.method} gives"
        return f"{text}; no {what} above alpha 0 keeps enough, so under control nothing is forgotten."
    if control.alpha == 1:
        return text + "; it needs no control."
    how = "mixed back to" if control.method == "mix" else f"controlled by {control.method} at"
    text += f"; {how} alpha {control.alpha:.2g} it keeps {kept}, and "
    return text + (f"answers {left} right." if headline.chance else f"{left} on the forget set is still there.")


def _imported(scores: Scores, headline: Headline, imported: Imported) -> str:
    """What an imported record says: shares of the original's, by the first metric that both have on both sets."""
    begin = f"Imported from a log of {imported.format}"
    mine, start = scores.get("unlearned", {}), scores.get("original", {})
    for metric in dict.fromkeys((*headline.forget, *mine.get("forget", {}))):
        if (good(metric, "forget"), good(metric, "retain")) != ("lower", "higher"):
            continue
        forget, retain = (_share(scores, split, metric) for split in ("forget", "retain"))
        if forget is not None and retain is not None:
            return (
                f"{begin}: as published, the unlearned model keeps {forget:.0%} of the original's {metric} on the "
                f"forget set and {retain:.0%} on the retain set; without a control, forgetting and damage cannot be "
                "distinguished."
            )
    beside = "with the original beside it, but" if start else "without the original beside it and"
    return (
        f"{begin}: scores of one checkpoint as published, {beside} without a control, so they do not show what "
        "unlearning cost."
    )


def _share(scores: Scores, split: str, metric: str) -> float | None:
    """What the unlearned model has of the original's value."""
    mine, start = (_value(scores, model, split, metric) for model in ("unlearned", "original"))
    return None if mine is None or not start else mine / start


def equal_retention(residual: Mapping[str, Residual], headline: Headline, control: Control) -> str:
    """What is still there at the retention that the models are compared at, in words."""
    first = residual[headline.forget[0]]
    if first.alpha is None or first.value.value is None:
        why = first.value.why or "retention does not fall so far on the measured path"
        return f"at {first.retention:.0%} of the original's retention its residual is unknown: {why}"
    how = f"{control.method}, alpha {first.alpha:.2g}" + (", extrapolated" if first.alpha > 1 else "")
    metrics = headline.forget if headline.chance else headline.forget[:1]
    values = [f"{m} is {interval(residual[m].value)}" for m in metrics if m in residual]
    text = f"held to {first.retention:.0%} of the original's retention ({how}), its residual {', '.join(values)}"
    if first.above_floor is not None and first.above_floor.value is not None:
        share = f"{first.above_floor.value:.0%}"
        text += f", {share} of the way from a model that never saw the forget set to the original"
    return text


def interval(estimate: Estimate) -> str:
    """'0.59 [0.46, 0.71]', or a dash where nothing is known."""
    if estimate.value is None:
        return "—"
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}"


def _value(scores: Scores, model: str, split: str, metric: str) -> float | None:
    score = scores.get(model, {}).get(split, {}).get(metric)
    return None if score is None else score.value


def accuracies(scores: Scores, model: str, headline: Headline) -> str | None:
    """What a model answers right of what is to be forgotten, in words: 31% (wmdp_bio.acc), 28% (wmdp_cyber.acc)."""
    known = {name: score.value for splits in scores.get(model, {}).values() for name, score in splits.items()}
    return ", ".join(f"{known[name]:.0%} ({name})" for name in headline.forget if known.get(name) is not None) or None


def moral(records: Mapping[str, RunRecord]) -> str:
    """How a ranking by residual extraction strength changes at equal retention. From the records' numbers alone."""
    metric = "extraction_strength"
    published = {name: _value(record.scores, "unlearned", "forget", metric) for name, record in records.items()}
    residual = {name: record.residual[metric] for name, record in records.items() if metric in record.residual}
    known = {n: (p, residual[n].value.value) for n, p in published.items() if n in residual}
    pairs = {name: (before, held) for name, (before, held) in known.items() if before is not None and held is not None}
    if not pairs or len(pairs) < len(records):
        return "The residual extraction strength at equal retention is not known for all of them."
    best_published, best_held = (min(pairs, key=lambda name, i=i: pairs[name][i]) for i in (0, 1))  # type: ignore[misc]
    values = "; ".join(f"{name} {before:.3f} and {held:.3f}" for name, (before, held) in pairs.items())
    retention = f"{next(iter(residual.values())).retention:.0%} of the original's retention"
    same = "so does it" if best_held == best_published else f"{best_held} does"
    return (
        f"Residual {metric}, as published and at {retention}: {values}.\n"
        f"As published {best_published} has the least; at equal retention {same}."
    )
