"""How the readers of this package complain."""

from __future__ import annotations


class DamagedError(Exception):
    """A file is not what its name says; the message tells what is wrong with it."""
