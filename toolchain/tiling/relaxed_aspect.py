"""BlueLM-V-3B's relaxed aspect ratio matching (arXiv 2411.10640, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.runtime.manifest import Fit, Thumbnail, TilingSpec
from pocketvlm.toolchain.tiling.grids import checked


def tiling(
    tile_size: int,
    grids: Sequence[tuple[int, int]],
    *,
    alpha: float = 0.1,
    thumbnail: Thumbnail = "several_tiles",
    fit: Fit = "pad",
) -> TilingSpec:
    """The policy over `grids`, as (columns, rows); `grids.rectangle(3, 3)` gives 1x1 to 3x3.

    Args:
        tile_size: side of a tile in pixels.
        alpha: share of effective pixels that a smaller grid may lose.

    Raises:
        CheckpointError: no grid, or a number out of range.
    """
    return checked(TilingSpec("relaxed_aspect", tile_size, tuple(grids), thumbnail, alpha, fit))
