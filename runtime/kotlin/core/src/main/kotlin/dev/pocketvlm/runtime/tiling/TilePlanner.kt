package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Arrangement
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.ImageTokensSpec
import dev.pocketvlm.runtime.Thumbnail
import dev.pocketvlm.runtime.TilingSpec

/**
 * How one image is cut up.
 *
 * @property grid columns and rows of tiles.
 * @property tiles columns * rows; the thumbnail is not counted.
 * @property thumbnail whether the whole picture is encoded as one more tile.
 * @property imageTokens positions that the image takes in the prompt.
 */
public data class TilePlan(val grid: Grid, val tiles: Int, val thumbnail: Boolean, val imageTokens: Int) {
    /** Tiles that go through the vision encoder, the thumbnail included. */
    val encodedTiles: Int get() = if (thumbnail) tiles + 1 else tiles

    /** The plan by the names that Python's `--json` gives it. */
    public fun toMap(): Map<String, Any> = linkedMapOf(
        "grid" to listOf(grid.cols, grid.rows),
        "tiles" to tiles,
        "thumbnail" to thumbnail,
        "image_tokens" to imageTokens,
    )
}

/** Picks grids and counts tokens: the same plans as `runtime/tiling.py`, for every size. */
public object TilePlanner {
    /**
     * Pick the grid for an image of [width] x [height] pixels and count its tokens.
     *
     * BlueLM-V-3B's 768 x 1536 phone screen, tiles of 384 pixels with 14 x 14 tokens, one after the other: grid 2x4,
     * 8 tiles and a thumbnail, 9 * 196 = 1,764 tokens.
     *
     * @throws ImageException a side below one pixel.
     * @throws BundleException more tokens than an Int counts.
     */
    public fun plan(width: Int, height: Int, tiling: TilingSpec, tokens: ImageTokensSpec): TilePlan {
        if (width < 1 || height < 1) {
            throw ImageException(
                "an image of ${width}x$height pixels cannot be tiled", "both sides must be at least one pixel"
            )
        }
        val grid = gridPolicy(tiling.policy).choose(width, height, tiling)
        val thumbnail = when (tiling.thumbnail) {
            Thumbnail.NEVER -> false
            Thumbnail.SEVERAL_TILES -> grid.tiles > 1
            Thumbnail.ALWAYS -> true
        }
        val count = countTokens(grid, thumbnail, tokens)
        if (count > Int.MAX_VALUE) throw BundleException("an image of $count tokens fits no context", "export a smaller tiling")
        return TilePlan(grid, grid.tiles, thumbnail, count.toInt())
    }

    private fun countTokens(grid: Grid, thumbnail: Boolean, tokens: ImageTokensSpec): Long {
        val perTile = tokens.rows.toLong() * tokens.cols
        val thumbnailTokens = if (thumbnail) perTile else 0
        return thumbnailTokens + when (tokens.arrangement) {
            Arrangement.TILE_BY_TILE -> grid.tiles * perTile
            Arrangement.PICTURE_ROWS -> grid.rows.toLong() * tokens.rows * lineTokens(grid, tokens)
        }
    }
}

/** Tokens of one row of tokens across the whole picture, its newline included. */
internal fun lineTokens(grid: Grid, tokens: ImageTokensSpec): Int =
    grid.cols * tokens.cols + if (tokens.newline.isEmpty()) 0 else 1
