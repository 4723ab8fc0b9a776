package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec

/** Pixels of a whole grid. */
internal fun TilingSpec.area(grid: Grid): Long = grid.tiles.toLong() * tileSize * tileSize

/**
 * Pixels of the image that survive when it is scaled, its ratio kept, to fit the grid: never more than it has.
 *
 * The sides are truncated, as LLaVA-NeXT does: a line of 3000 x 1 pixels has none in any grid that scales it down.
 */
internal fun effectivePixels(width: Int, height: Int, grid: Grid, tileSize: Int): Long {
    val scale = minOf((grid.cols * tileSize).toDouble() / width, (grid.rows * tileSize).toDouble() / height)
    return minOf((width * scale).toLong() * (height * scale).toLong(), width.toLong() * height)
}
