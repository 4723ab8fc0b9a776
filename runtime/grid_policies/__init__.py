"""Rules that pick one of the candidate grids for an image. One file each: `choose(width, height, tiling) -> (cols, rows)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm.runtime.manifest import TilingSpec

GRID_POLICIES = {
    "relaxed_aspect": "pocketvlm.runtime.grid_policies.relaxed_aspect:choose",
    "llava_next": "pocketvlm.runtime.grid_policies.llava_next:choose",
    "internvl": "pocketvlm.runtime.grid_policies.internvl:choose",
    "single": "pocketvlm.runtime.grid_policies.single:choose",
}


def load_policy(name: str) -> Callable[[int, int, TilingSpec], tuple[int, int]]:
    """The rule called `name`, one of GRID_POLICIES (`parse_manifest` refuses others)."""
    module, attribute = GRID_POLICIES[name].split(":")
    policy: Callable[[int, int, TilingSpec], tuple[int, int]] = getattr(importlib.import_module(module), attribute)
    return policy
