"""LLaVA-NeXT's rule: the grid that keeps most of the image, then the one that wastes least."""

from __future__ import annotations

from pocketvlm.runtime.grid_policies.geometry import Grid, effective_pixels, tile_count
from pocketvlm.runtime.manifest import TilingSpec


def choose(width: int, height: int, tiling: TilingSpec) -> Grid:
    """LLaVA-NeXT: the most effective pixels, then the least waste (`select_best_resolution` of transformers)."""

    def merit(grid: Grid) -> tuple[int, int]:
        effective = effective_pixels(width, height, grid, tiling.tile_size)
        return effective, effective - tile_count(grid) * tiling.tile_size**2

    return max(tiling.grids, key=merit)
