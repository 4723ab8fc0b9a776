"""What `pocketvlm doctor` finds out for a target. Apart from `base`, which needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """Something that a target needs, beside packages.

    Attributes:
        hint: what to do when it is not there.
    """

    name: str
    found: str
    needed: str
    ok: bool
    hint: str = ""
