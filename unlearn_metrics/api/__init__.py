"""The public Python API: `import unlearn_metrics as um`. It gives what the command line gives, as objects.

Everything here is in the package's top level, which imports it when it is first used.
"""

from unlearn_metrics.api.extending import register_attack, register_control, register_metric
from unlearn_metrics.api.models import attack, calibrate, list_benchmarks, mix, score, token_scores
from unlearn_metrics.api.records import compare, load, meta, rescore, robustness
from unlearn_metrics.documents import TokenScores
from unlearn_metrics.errors import InputError
from unlearn_metrics.metrics import Metric
from unlearn_metrics.record import Control, Score
from unlearn_metrics.reports.compare import Comparison
from unlearn_metrics.reports.meta.judged import MetaEvaluation
from unlearn_metrics.reports.meta.lasting import RobustnessReport
from unlearn_metrics.run import Run
from unlearn_metrics.settings import OwnData

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
    "list_benchmarks",
    "load",
    "meta",
    "mix",
    "register_attack",
    "register_control",
    "register_metric",
    "rescore",
    "robustness",
    "score",
    "token_scores",
]
