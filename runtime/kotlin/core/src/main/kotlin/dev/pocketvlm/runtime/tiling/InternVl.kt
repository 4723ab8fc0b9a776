package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec
import kotlin.math.abs

/**
 * InternVL 1.5 (arXiv 2404.16821, section 3.2): the closest aspect ratio (`get_optimal_tiled_canvas` of transformers'
 * GOT-OCR2 processor). Of grids equally close, the last and largest one whose area is less than twice the image's.
 */
internal object InternVl : GridPolicy {
    override fun choose(width: Int, height: Int, tiling: TilingSpec): Grid {
        var chosen = tiling.grids.first()
        var closest = Double.POSITIVE_INFINITY
        for (grid in tiling.grids.sortedBy { it.tiles }) {
            val distance = abs(width.toDouble() / height - grid.cols.toDouble() / grid.rows)
            val worthIt = 2 * (width.toLong() * height) > tiling.area(grid)
            if (distance < closest || (distance == closest && worthIt)) {
                chosen = grid
                closest = distance
            }
        }
        return chosen
    }
}
