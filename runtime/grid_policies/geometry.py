"""What the policies measure grids by."""

from __future__ import annotations

Grid = tuple[int, int]


def tile_count(grid: Grid) -> int:
    """Tiles of a grid (columns, rows)."""
    return grid[0] * grid[1]


def effective_pixels(width: int, height: int, grid: Grid, tile_size: int) -> int:
    """Pixels of the image that survive when it is scaled, its ratio kept, to fit the grid: never more than it has.

    The sides are truncated, as LLaVA-NeXT does: a line of 3000 x 1 pixels has none in any grid that scales it down.
    """
    full_width, full_height = grid[0] * tile_size, grid[1] * tile_size
    scale = min(full_width / width, full_height / height)
    return min(int(width * scale) * int(height * scale), width * height)
