"""An unlearned model under control, as an lm-eval model for any task: --model unlearn-mix."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from unlearn_metrics import attacks
from unlearn_metrics.checkpoints.files import precision
from unlearn_metrics.control.mixing import FINER, mix_into
from unlearn_metrics.errors import InputError
from unlearn_metrics.jobs.opening import family_of, open_pair
from unlearn_metrics.jobs.score import calibrate_only
from unlearn_metrics.settings import Settings

log = logging.getLogger(__name__)


@register_model("unlearn-mix")
class ControlledLM(HFLM):
    """lm-eval's Hugging Face model with the parameters that a control gives, as `control NAME` would write them.

    original, unlearned: checkpoints; control: see CONTROLS. alpha: its strength; or keep [0.95] with benchmark and
    data, to calibrate it first, on `limit` documents. attack: on weights, see ATTACKS, of what the control gives.
    Anything else is HFLM's. Raises InputError as `score` does.
    """

    def __init__(
        self,
        original: str,
        unlearned: str,
        control: str = "mix",
        alpha: float | None = None,
        keep: float | None = None,
        benchmark: str | None = None,
        data: str | None = None,
        limit: int | None = None,
        layers: str | None = None,
        trajectory: str | None = None,
        attack: str | None = None,
        **kwargs: Any,
    ) -> None:
        if (alpha is None) == (benchmark is None) or (keep is not None and alpha is not None):
            raise InputError("unlearn-mix needs alpha, or benchmark (with keep and data) to calibrate it, not both")
        for name, share in (("alpha", alpha), ("keep", keep)):
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"unlearn-mix: {name}={share} is not between 0 and 1")
        settings = Settings(
            keep=None if alpha is not None else 0.95 if keep is None else keep,
            alpha=alpha,
            control=control,
            layers=None if layers is None else str(layers),  # lm-eval reads layers=3 as a number
            trajectory=None if trajectory is None else Path(trajectory),
            limit=limit,
        )
        done = None if attack is None else attacks.known(attack, on=("weights",)).fn
        o, u = open_pair(original, unlearned)
        models = family_of(settings, o, u)
        if (note := models.rounding(alpha)) is not None:
            log.warning("unlearn-mix: %s; %s", note, FINER)
        kwargs.setdefault("dtype", precision(u))  # as a written checkpoint would be loaded
        super().__init__(pretrained=str(o.folder), **kwargs)
        if benchmark is not None:
            source = None if data is None else Path(data)
            found = [calibrate_only(self, models, benchmark, source, settings, log.info).alpha]
            if dist.is_initialized():  # rounding may have led the processes of a launcher apart
                dist.broadcast_object_list(found, src=0)
            (alpha,) = found
            log.warning("unlearn-mix: %s calibrated on %s, alpha %.6g", control, benchmark, alpha)
        assert alpha is not None
        mix_into(self.model, o, u, alpha, models.fn, done)
