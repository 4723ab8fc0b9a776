package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec

/** LLaVA-NeXT: the most effective pixels, then the least waste, then the first (`select_best_resolution` of transformers). */
internal object LlavaNext : GridPolicy {
    override fun choose(width: Int, height: Int, tiling: TilingSpec): Grid {
        fun effective(grid: Grid) = effectivePixels(width, height, grid, tiling.tileSize)
        return tiling.grids.maxWith(compareBy({ effective(it) }, { effective(it) - tiling.area(it) }))
    }
}
