"""Evaluation of unlearned language models, under control.

    import unlearn_metrics as um

What is in `__all__` is imported when it is first used, so that `import unlearn_metrics` itself is quick.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn_metrics import metrics as metrics
    from unlearn_metrics.api import (
        Comparison,
        Control,
        InputError,
        MetaEvaluation,
        Metric,
        OwnData,
        RobustnessReport,
        Run,
        Score,
        TokenScores,
        attack,
        calibrate,
        compare,
        list_benchmarks,
        load,
        meta,
        mix,
        register_attack,
        register_control,
        register_metric,
        rescore,
        robustness,
        score,
        token_scores,
    )

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Control",
    "InputError",
    "MetaEvaluation",
    "Metric",
    "OwnData",
    "RobustnessReport",
    "Run",
    "Score",
    "TokenScores",
    "attack",
    "calibrate",
    "compare",
    "demo_path",
    "list_benchmarks",
    "load",
    "meta",
    "metrics",
    "mix",
    "register_attack",
    "register_control",
    "register_metric",
    "rescore",
    "robustness",
    "score",
    "tasks_path",
    "token_scores",
]

if not TYPE_CHECKING:  # so that a type checker reports what is not there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'unlearn_metrics' has no attribute '{name}'")
        if name == "metrics":
            return import_module("unlearn_metrics.metrics")
        return getattr(import_module("unlearn_metrics.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def tasks_path() -> Path:
    """The folder with the task YAML: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    return next(p for p in (package / "tasks", package.parent / "tasks") if p.is_dir())


def demo_path() -> Path:
    """The folder of the packaged demo: four checkpoints of 0.8 MB in checkpoints/, and their benchmark in data/."""
    return Path(__file__).parent / "demo"
