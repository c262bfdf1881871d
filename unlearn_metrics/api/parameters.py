"""What the functions of the Python API do with their arguments and errors alike."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeAlias, TypeVar

from unlearn_metrics.errors import InputError
from unlearn_metrics.reports.console import plain
from unlearn_metrics.settings import in_python

P = ParamSpec("P")
R = TypeVar("R")
Place: TypeAlias = str | os.PathLike[str]


def python_names(fn: Callable[P, R]) -> Callable[P, R]:
    """InputErrors of the function speak of parameters (retention_metric) instead of options (--retention-metric)."""

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except InputError as error:
            raise InputError(plain(in_python(str(error)))) from error.__cause__

    return wrapped


def listed(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def text(place: Place | None) -> str | None:
    return None if place is None else os.fspath(place)
