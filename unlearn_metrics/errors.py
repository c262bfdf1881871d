"""The one error that a user sees, and the words for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # names and library errors may bring lines of their own


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """For an InputError about an unknown name: those near it, or else what to do, by default all that there are."""
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"there are {', '.join(names)}"


def first_line(error: Exception) -> str:
    """The message of a library's error, for an InputError that names the file itself; its type if it is empty."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
