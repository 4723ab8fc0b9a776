"""Tiling policies. One file each: `tiling(tile_size, ...) -> TilingSpec`, the candidates of a policy as data.

The rule that picks a grid at run time stands in `pocketvlm.runtime.grid_policies`, under the same name.
"""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

TILINGS = Registry(
    "tiling policy",
    {
        "relaxed_aspect": "pocketvlm.toolchain.tiling.relaxed_aspect:tiling",
        "llava_next": "pocketvlm.toolchain.tiling.llava_next:tiling",
        "internvl": "pocketvlm.toolchain.tiling.internvl:tiling",
        "single": "pocketvlm.toolchain.tiling.single:tiling",
    },
)
