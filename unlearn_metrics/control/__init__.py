"""The companion: control of unlearned checkpoints, before they are scored.

`CONTROLS` is the one list of their names; a control is loaded when it is used, and torch with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearn_metrics.registry import Registry

if TYPE_CHECKING:
    from unlearn_metrics.control.controls import Method

OWN = ("mix", "trim", "layers", "temperature", "select")
CONTROLS: Registry[Method] = Registry(
    "control", "unlearn_metrics.controls", {name: f"{__name__}.controls:{name.upper()}" for name in OWN}
)
