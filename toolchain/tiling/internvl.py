"""InternVL 1.5's rule: the grid with the closest aspect ratio (arXiv 2404.16821, section 3.2)."""

from __future__ import annotations

from pocketvlm.runtime.manifest import Thumbnail, TilingSpec
from pocketvlm.toolchain.tiling.grids import checked, up_to


def tiling(tile_size: int, *, min_tiles: int = 1, max_tiles: int = 12, thumbnail: Thumbnail = "several_tiles") -> TilingSpec:
    """The policy over all grids of `min_tiles` to `max_tiles` tiles of `tile_size` pixels; images are stretched.

    Raises:
        CheckpointError: no grid has so many tiles, or a number is out of range.
    """
    return checked(TilingSpec("internvl", tile_size, up_to(max_tiles, min_tiles), thumbnail, fit="stretch"))
