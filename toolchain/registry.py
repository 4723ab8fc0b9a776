"""Tables of names that are imported on first use, so that listing them costs nothing."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import PocketVLMError, UsageError


class Registry:
    """A table of names, each with "module" or "module:attribute".

    Args:
        kind: what the names stand for, for messages ("connector").
        entries: name -> where to find it.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> tuple[str, ...]:
        """All names, in the table's order."""
        return tuple(self._entries)

    def require(self, name: str, error: type[PocketVLMError] = UsageError) -> None:
        """Refuse a name that the table lacks, without importing anything.

        Raises:
            error: `name` is unknown; the hint gives the nearest names, or all of them.
        """
        if name in self._entries:
            return
        near = difflib.get_close_matches(name, self._entries, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self._entries)}"
        raise error(f"unknown {self.kind} {name!r}", hint)

    def load(self, name: str, error: type[PocketVLMError] = UsageError) -> Any:
        """The module or attribute that `name` stands for.

        Raises:
            error: `name` is unknown.
        """
        self.require(name, error)
        module, _, attribute = self._entries[name].partition(":")
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
