"""Metrics, controls and attacks of one's own, for this session; a package brings them by entry points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from unlearn_metrics.api.parameters import listed, python_names
from unlearn_metrics.attacks import ATTACKS
from unlearn_metrics.attacks.attack import Attack
from unlearn_metrics.control import CONTROLS
from unlearn_metrics.errors import InputError, did_you_mean
from unlearn_metrics.metrics import METRICS, Metric
from unlearn_metrics.settings import RELEARN

if TYPE_CHECKING:
    from unlearn_metrics.checkpoints.files import Checkpoint


@python_names
def register_metric(
    name: str,
    fn: Callable[..., Any],
    needs: str | Sequence[str],
    facet: Literal["memorization", "retention", "fluency", "privacy"],
    better: Literal["higher", "lower", "neither"] = "higher",
    *,
    geometric: bool = False,
) -> Metric:
    """Add a metric of your own, to be used by name in `score`, `rescore`, `compare` and in task YAML.

    A package brings one by an entry point of the group "unlearn_metrics.metrics", whose object is a `Metric`.

    Args:
        name: a letter, then at most 63 letters, digits and underscores.
        fn: a function of the fields of one document that `needs` names, in that order, to a
            number; NaN: no such value.
        needs: fields of a document: "answer" (`TokenScores`), "generation", "reference", "question" (text), and
            others that docs/api.md lists.
        facet: which part of the table it belongs to.
        better: which way is better for a model that should know the text; on the forget split that of memorization
            and retention is turned round.
        geometric: aggregate over documents by the geometric mean.

    Returns:
        The metric, a function of a document.

    Raises:
        InputError: a name that is taken or none, or a field that no document has.

    >>> import unlearn_metrics as um
    >>> words = um.register_metric("words", lambda text: len(text.split()), "generation", "fluency")
    >>> words({"generation": "three short words"})
    3.0
    >>> del um.metrics.METRICS["words"]
    """
    metric = Metric(fn, listed(needs), facet, better, geometric)
    known = {need for own in METRICS.values() for need in own.needs} | {"question", "prompt"}
    for need in metric.needs:
        if need not in known:
            raise InputError(f"metric {name} needs '{need}', which no document has; {did_you_mean(need, known)}")
    METRICS.register(name, metric)
    return metric


@python_names
def register_control(
    name: str,
    fn: Callable[[Checkpoint, Checkpoint, float], Checkpoint],
    help: str = "",
    what: str = "",
) -> None:
    """Add a control of your own, to be chosen by name in `score`, `mix` and `calibrate`.

    A package brings one by an entry point of the group "unlearn_metrics.controls", whose object is a
    `unlearn_metrics.control.controls.Method`.

    Args:
        name: a letter, then at most 63 letters, digits and underscores.
        fn: (original, unlearned, strength) -> checkpoint; strength 0 must give the original, 1 the unlearned one.
            `unlearn_metrics.control.mixing.blended` makes one from a function of two tensors (see docs/api.md).
        help: what it does, in a line.
        what: the parameters that it gives, for the README of a written checkpoint; {alpha} stands for the strength.

    Raises:
        InputError: a name that is taken or none.
    """
    from unlearn_metrics.control.controls import Method

    if name == "none":
        raise InputError("'none' is the name for no control; choose another name")
    CONTROLS.register(name, Method(fn, help, what or f"what the control {name} gives at {{alpha}}"))


@python_names
def register_attack(name: str, fn: Callable[..., Any], on: Literal["weights", "prompts"], what: str = "") -> None:
    """Add an attack of your own, to be used by name in `score` and `attack`.

    A package brings one by an entry point of the group "unlearn_metrics.attacks", whose object is a
    `unlearn_metrics.attacks.attack.Attack`.

    Args:
        name: a letter, then at most 63 letters, digits and underscores.
        fn: on weights, checkpoint -> checkpoint (`unlearn_metrics.attacks.weights.attacked` makes one of a function
            of a matrix); on prompts, (document, around) -> document (see docs/api.md).
        on: which of the two.
        what: it does, in a line.

    Raises:
        InputError: a name that is taken or none.

    >>> import unlearn_metrics as um
    >>> um.register_attack("loud", lambda doc, around: doc | {"question": doc["question"].upper()}, on="prompts")
    >>> del ATTACKS["loud"]
    """
    if name in (*RELEARN, "all"):
        raise InputError(f"'{name}' has a meaning of its own among attacks; choose another name")
    ATTACKS.register(name, Attack(fn, on, what or f"what the attack {name} does"))
