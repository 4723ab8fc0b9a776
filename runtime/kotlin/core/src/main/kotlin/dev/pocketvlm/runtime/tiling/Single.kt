package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec

/** One tile for every image, as in LLaVA 1.5. */
internal object Single : GridPolicy {
    override fun choose(width: Int, height: Int, tiling: TilingSpec): Grid = Grid(1, 1)
}
