"""One tile for every image, as in LLaVA 1.5."""

from __future__ import annotations

from pocketvlm.runtime.grid_policies.geometry import Grid
from pocketvlm.runtime.manifest import TilingSpec


def choose(width: int, height: int, tiling: TilingSpec) -> Grid:
    """The grid 1x1."""
    return (1, 1)
