"""How far the work is: one bar, in a terminal and in a notebook.

A job reports each of its steps to a function of one message. What counts its work (the backends, lm-eval) opens a
`Bar`. While `shown` runs, all of them move its one bar; elsewhere each is a bar of its own, on a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tqdm import tqdm

Say: TypeAlias = Callable[[str], None]
_shown: _OneBar | None = None
FORMAT = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left"


class Bar(tqdm):
    """tqdm's, which moves the bar that is shown, if one is, and draws nothing itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.one = _shown
        super().__init__(*args, **kwargs | ({} if self.one is None else {"disable": True}))
        if self.one is not None:
            self.one.begin(self.total)

    def __iter__(self) -> Iterator[Any]:
        if self.one is None:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.one.update(1)

    def update(self, n: float | None = 1) -> bool | None:
        if self.one is None:
            return super().update(n)
        self.one.update(n or 0)
        return None


class _OneBar:
    """The bar that is shown: the step, how much of its present part is done, and the time left for that."""

    def __init__(self, visible: bool) -> None:
        self.bar: Any = None
        if visible:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that ipywidgets is not there: then the bar is text
                from tqdm.auto import tqdm as kind
            self.bar = kind(total=0, bar_format=FORMAT, leave=False, disable=False, file=sys.stderr)

    def say(self, message: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(message[:60], refresh=False)
            self.bar.reset(0)

    def begin(self, total: float | None) -> None:
        if self.bar is not None and total:
            self.bar.reset(total)

    def update(self, n: float) -> None:
        if self.bar is not None:
            self.bar.update(n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def can_be_seen() -> bool:
    """Whether somebody looks: stderr is a terminal, or this is a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


@contextlib.contextmanager
def shown(visible: bool | None = None, line: Say | None = None) -> Iterator[Say]:
    """Show one bar while the block runs; gives the function to which a job reports its steps.

    Args:
        visible: whether there is a bar at all; None: if it can be seen.
        line: is given each step as well, above the bar: to print or to log it.
    """
    global _shown
    before, one = _shown, _OneBar(can_be_seen() if visible is None else visible)

    def say(message: str) -> None:
        one.say(message)
        if line is not None:
            with tqdm.external_write_mode(file=sys.stderr):
                line(message)

    _shown = one
    try:
        with hushed():
            yield say
    finally:
        _shown = before
        one.close()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """No warnings, messages and bars of the libraries beneath, those that are loaded; afterwards all is as before."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logger = logging.getLogger("lm_eval")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        for name, module in list(sys.modules.items()):
            if name.startswith("lm_eval.") and getattr(module, "tqdm", None) is tqdm:
                stack.callback(setattr, module, "tqdm", tqdm)
                module.tqdm = Bar  # type: ignore[attr-defined]
        for library in ("transformers", "datasets"):
            talk = getattr(getattr(sys.modules.get(library), "utils", None), "logging", None)
            if talk is not None:
                stack.callback(talk.set_verbosity, talk.get_verbosity())
                talk.set_verbosity_error()
        _bars_off(stack)
        yield


def _bars_off(stack: contextlib.ExitStack) -> None:
    if (transformers := sys.modules.get("transformers")) is not None:
        talk = transformers.utils.logging
        if talk.is_progress_bar_enabled():
            stack.callback(talk.enable_progress_bar)
            talk.disable_progress_bar()
    if (datasets := sys.modules.get("datasets")) is not None and not datasets.are_progress_bars_disabled():
        stack.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
