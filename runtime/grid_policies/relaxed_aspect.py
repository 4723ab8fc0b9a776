"""BlueLM-V-3B's relaxed aspect ratio matching (arXiv 2411.10640, section 3.2)."""

from __future__ import annotations

from pocketvlm.runtime.grid_policies.geometry import Grid, effective_pixels, tile_count
from pocketvlm.runtime.manifest import TilingSpec


def choose(width: int, height: int, tiling: TilingSpec) -> Grid:
    """Relaxed aspect ratio matching, BlueLM-V-3B (arXiv 2411.10640), section 3.2 and appendix.

    From the largest grid down, a grid replaces the one held so far when it keeps clearly more effective pixels (more
    than alpha, relatively), or nearly as many with less waste. Its waste then becomes the one to beat, and the most
    effective pixels of any grid taken so far stay the measure of "nearly as many". Where no grid keeps any, the
    smallest does.
    """
    chosen = min(tiling.grids, key=tile_count)
    most_effective = 0
    least_waste = 0
    for grid in sorted(tiling.grids, key=tile_count, reverse=True):
        effective = effective_pixels(width, height, grid, tiling.tile_size)
        waste = tile_count(grid) * tiling.tile_size**2 - effective
        tolerance = tiling.alpha * most_effective
        clearly_better = effective - most_effective > tolerance
        as_good_and_smaller = most_effective - effective < tolerance and waste < least_waste
        if clearly_better or as_good_and_smaller:
            chosen, most_effective, least_waste = grid, max(effective, most_effective), waste
    return chosen
