"""LLaVA-NeXT's rule: the grid that keeps most of the image, then the one that wastes least."""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.manifest import Thumbnail, TilingSpec
from pocketvlm.toolchain.tiling.grids import checked


def tiling(tile_size: int, pinpoints: Sequence[Sequence[int]], *, thumbnail: Thumbnail = "always") -> TilingSpec:
    """The policy over a checkpoint's `image_grid_pinpoints`.

    Args:
        tile_size: side of a tile in pixels.
        pinpoints: resolutions as (height, width) in pixels, multiples of the tile size: with tiles of 336 pixels
            [[336, 672], [672, 336]] become the grids (2, 1) and (1, 2).

    Raises:
        CheckpointError: a resolution that is no multiple of the tile size, none at all, or a number out of range.
    """
    grids = []
    for pinpoint in pinpoints:
        if tile_size < 1 or len(pinpoint) != 2 or pinpoint[0] % tile_size or pinpoint[1] % tile_size:
            raise CheckpointError(
                f"image_grid_pinpoints: {list(pinpoint)} is no multiple of the tile size {tile_size}",
                "the image processor does not belong to this vision tower",
            )
        grids.append((pinpoint[1] // tile_size, pinpoint[0] // tile_size))
    return checked(TilingSpec("llava_next", tile_size, tuple(grids), thumbnail, fit="pad"))
