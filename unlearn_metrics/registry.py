"""Names and what goes by them: the package's own, and what other packages add by an entry point or a call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from unlearn_metrics.errors import InputError, first_line

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)  # of a metric or a control, here and in anyone's record


class Registry(MutableMapping[str, T]):
    """Name -> what goes by it: own ones, those registered by assignment, and the entry points of a group.

    An entry point ("module:attribute") is loaded when it is first used; to list names loads nothing. Where two
    have one name, it is the package's own.

    Args:
        kind: what they are called in messages, such as "metric".
        group: the entry points' group, such as "unlearn_metrics.metrics".
        own: name -> the thing itself, or "module:attribute" of this package, so that listing needs no import.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, T | str]) -> None:
        self.kind, self.group = kind, group
        self._registered: set[str] = set()
        self._own = {n: EntryPoint(n, it, group) if isinstance(it, str) else it for n, it in own.items()}

    @cached_property
    def _all(self) -> dict[str, T | EntryPoint]:
        brought = {e.name: e for e in entry_points(group=self.group) if NAME.fullmatch(e.name)}
        return self._own | {name: entry for name, entry in brought.items() if name not in self._own}

    def __getitem__(self, name: str) -> T:
        found = self._all[name]
        if not isinstance(found, EntryPoint):
            return found
        try:
            loaded = self._all[name] = cast(T, found.load())
        except Exception as error:  # another package's module may raise anything
            raise InputError(
                f"the {self.kind} '{name}' of {found.value} cannot be loaded: {first_line(error)}; "
                "repair or uninstall the package that brings it"
            ) from error
        return loaded

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __setitem__(self, name: str, thing: T) -> None:
        self._all[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def register(self, name: str, thing: T) -> None:
        """Add one, or replace one that was registered before, as a notebook's cell does that is run again.

        InputError for a name that is none, or is taken: a name means one thing in every record.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"'{name}' cannot name a {self.kind}: a letter, then at most 63 letters, digits and _")
        if name in self._all and name not in self._registered:
            raise InputError(f"there is a {self.kind} '{name}' already; choose another name")
        self._registered.add(name)
        self._all[name] = thing
