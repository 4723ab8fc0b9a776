"""InternVL 1.5's rule: the grid with the closest aspect ratio (arXiv 2404.16821, section 3.2)."""

from __future__ import annotations

import math

from pocketvlm.runtime.grid_policies.geometry import Grid, tile_count
from pocketvlm.runtime.manifest import TilingSpec


def choose(width: int, height: int, tiling: TilingSpec) -> Grid:
    """InternVL 1.5: the closest aspect ratio (`get_optimal_tiled_canvas` of transformers' GOT-OCR2 processor).

    Of grids equally close, the last and largest one whose area is less than twice the image's.
    """
    chosen = tiling.grids[0]
    closest = math.inf
    for grid in sorted(tiling.grids, key=tile_count):
        distance = abs(width / height - grid[0] / grid[1])
        worth_it = width * height > 0.5 * tiling.tile_size**2 * tile_count(grid)
        if distance < closest or (distance == closest and worth_it):
            chosen, closest = grid, distance
    return chosen
