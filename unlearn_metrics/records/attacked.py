"""What attacks bring back, in a record: computed from its documents, and said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unlearn_metrics.documents import Observations
from unlearn_metrics.record import AttackInfo, Attacks, Estimate, Recovery, RunRecord, Worst
from unlearn_metrics.records.verdict import interval
from unlearn_metrics.scores import recovery, stats
from unlearn_metrics.wording import counted

SAMPLED = "sampled_extraction_strength_1000"  # what an attacker gets who asks a thousand times
VIEWS = {"unlearned": "As published", "controlled": "Under control"}
NAMED = 3  # attacks that a sentence names


def with_recovery(
    record: RunRecord, observations: Observations, made: Mapping[str, AttackInfo], seed: int
) -> RunRecord:
    """The record with its block on attacks, computed from the documents.

    Args:
        record: whose headline says by which metrics.
        observations: documents of its models as they are and under attacks.
        made: the attacks.
        seed: of the draws.
    """
    found, worst = recovery.recoveries(observations, record.headline.forget, seed)
    before = {model: _before(record, model, metrics) for model, metrics in found.items()}
    words = " ".join(
        sentence(VIEWS[model], metric, before[model].get(metric), metrics[metric], worst[model][metric])
        for model, metrics in found.items()
        for metric in list(metrics)[:1]
    )
    return replace(record, attacks=Attacks(dict(made), found, worst, words))


def _before(record: RunRecord, model: str, metrics: Mapping[str, object]) -> dict[str, Estimate]:
    scores = record.scores.get(model, {}).get(recovery.SPLIT, {})
    return {
        name: Estimate(scores[name].value, scores[name].ci_low, scores[name].ci_high)
        for name in metrics
        if name in scores
    }


def sentence(view: str, metric: str, before: Estimate | None, found: Mapping[str, Recovery], worst: Worst) -> str:
    """What attacks bring back of one metric of one model, for a person."""
    text = f"{view} its {metric} on the forget set is {interval(before or Estimate(None))}"
    if all(it.value.value is not None and it.value.value <= 0 for it in found.values()):
        alone = len(found) == 1
        none = f"the attack {worst.attack} brings nothing" if alone else f"none of {len(found)} attacks brings anything"
        return f"{text}; {none} back."
    # where nothing is established, which one is the worst tells nothing
    which = f" ({worst.attack})" if any(map(_established, found.values())) else ""
    many = f"the worst of {len(found)} attacks{which}" if len(found) > 1 else f"the attack {worst.attack}"
    text += f", under {many} {interval(worst.value)}"
    net = {name: it for name, it in found.items() if it.net is not None and it.net.value is not None}
    if not net:
        unknown = "without a retain-only model under the same attack, what attacks bring back"
        return f"{text}; {unknown} may be what they themselves teach."
    sure = {name: it for name, it in net.items() if _established(it)}
    more = sorted(sure, key=lambda n: -_net(sure[n]))
    if not more:
        return f"{text}; it is not established that any gives more back than it gives a model that never saw the data."
    named = ", ".join(f"{name} ({100 * _net(sure[name]):+.1f} points)" for name in more[:NAMED])
    others = f" and {counted(len(more) - NAMED, 'other')}" if len(more) > NAMED else ""
    verb = "gives" if len(more) == 1 else "give"
    return f"{text}; {named}{others} {verb} more back than to a model that never saw the data."


def _established(found: Recovery) -> bool:
    """Whether the attack brings more back than it teaches; where that is not known, whether it brings anything back.

    An attack that only harms the retain-only model has a net recovery, and brings nothing back.
    """
    least = min((found.value.value or 0, _net(found) if found.net and found.net.value is not None else 1))
    return found.p_corrected is not None and found.p_corrected <= stats.LEVEL and least > 0


def _net(found: Recovery) -> float:
    assert found.net is not None
    assert found.net.value is not None
    return found.net.value
