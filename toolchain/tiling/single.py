"""One tile for every image, as in LLaVA 1.5."""

from __future__ import annotations

from pocketvlm.runtime.manifest import Fit, TilingSpec
from pocketvlm.toolchain.tiling.grids import checked


def tiling(tile_size: int, *, fit: Fit) -> TilingSpec:
    """One tile of `tile_size` pixels. `fit` is "crop" for CLIP's processor, "stretch" for SigLIP's.

    Raises:
        CheckpointError: the tile size is out of range.
    """
    return checked(TilingSpec("single", tile_size, ((1, 1),), "never", fit=fit))
