package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec

/**
 * Relaxed aspect ratio matching, BlueLM-V-3B (arXiv 2411.10640), section 3.2 and appendix.
 *
 * From the largest grid down, a grid replaces the one held so far when it keeps clearly more effective pixels (more than
 * alpha, relatively), or nearly as many with less waste. Its waste then becomes the one to beat, and the most effective
 * pixels of any grid taken so far stay the measure of "nearly as many". Where no grid keeps any, the smallest does.
 */
internal object RelaxedAspect : GridPolicy {
    override fun choose(width: Int, height: Int, tiling: TilingSpec): Grid {
        var chosen = tiling.grids.minBy { it.tiles }
        var mostEffective = 0L
        var leastWaste = 0L
        for (grid in tiling.grids.sortedByDescending { it.tiles }) {
            val effective = effectivePixels(width, height, grid, tiling.tileSize)
            val waste = tiling.area(grid) - effective
            val tolerance = tiling.alpha * mostEffective
            val clearlyBetter = effective - mostEffective > tolerance
            val asGoodAndSmaller = mostEffective - effective < tolerance && waste < leastWaste
            if (clearlyBetter || asGoodAndSmaller) {
                chosen = grid
                mostEffective = maxOf(effective, mostEffective)
                leastWaste = waste
            }
        }
        return chosen
    }
}
