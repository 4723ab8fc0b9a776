"""Sets of candidate grids, each grid as (columns, rows), and the limits that every TilingSpec keeps."""

from __future__ import annotations

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.grid_policies import GRID_POLICIES
from pocketvlm.runtime.manifest import MAX_GRID_PIXELS, MAX_GRID_SIDE, MAX_GRIDS, MAX_TILE_SIZE, TilingSpec

_CONFIG = "correct config.json, or the recipe where it sets the tiling"


def rectangle(max_cols: int, max_rows: int) -> tuple[tuple[int, int], ...]:
    """Every grid from 1x1 to `max_cols` x `max_rows`: rectangle(3, 3) are the nine of BlueLM-V-3B's examples."""
    return tuple((cols, rows) for cols in range(1, max_cols + 1) for rows in range(1, max_rows + 1))


def up_to(max_tiles: int, min_tiles: int = 1) -> tuple[tuple[int, int], ...]:
    """Every grid of `min_tiles` to `max_tiles` tiles, fewest tiles first: up_to(12) are InternVL 1.5's 35."""
    grids = [grid for grid in rectangle(max_tiles, max_tiles) if min_tiles <= grid[0] * grid[1] <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def checked(spec: TilingSpec) -> TilingSpec:
    """`spec` itself, if a runtime can use it.

    Raises:
        CheckpointError: an unknown policy, no candidate, a candidate twice, or a number out of range.
    """
    if not 1 <= spec.tile_size <= MAX_TILE_SIZE:
        raise CheckpointError(f"tiling: tile size {spec.tile_size} is not between 1 and {MAX_TILE_SIZE}", _CONFIG)
    if not 1 <= len(spec.grids) <= MAX_GRIDS:
        raise CheckpointError(f"tiling: {len(spec.grids)} candidate grids", f"give 1 to {MAX_GRIDS}")
    for cols, rows in spec.grids:
        if not (1 <= cols <= MAX_GRID_SIDE and 1 <= rows <= MAX_GRID_SIDE):
            raise CheckpointError(f"tiling: grid {cols}x{rows} is not between 1x1 and {MAX_GRID_SIDE}x{MAX_GRID_SIDE}", _CONFIG)
        if cols * rows * spec.tile_size**2 > MAX_GRID_PIXELS:
            raise CheckpointError(
                f"tiling: grid {cols}x{rows} of tiles of {spec.tile_size} pixels has more than {MAX_GRID_PIXELS} pixels",
                _CONFIG,
            )
    if len(set(spec.grids)) != len(spec.grids):
        raise CheckpointError("tiling: a candidate grid is listed twice", _CONFIG)
    if spec.policy not in GRID_POLICIES:
        raise CheckpointError(f"tiling: unknown policy {spec.policy!r}", f"there are {', '.join(GRID_POLICIES)}")
    if not 0 <= spec.alpha <= 1:
        raise CheckpointError(f"tiling: alpha {spec.alpha} is not between 0 and 1", "BlueLM-V-3B uses 0.1")
    return spec
