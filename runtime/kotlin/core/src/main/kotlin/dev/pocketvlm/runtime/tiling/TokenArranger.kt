package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.Arrangement
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.ImageTokensSpec
import java.nio.Buffer
import java.nio.FloatBuffer

/** Puts the tiles' visual tokens into the order in which the prompt holds them. */
public object TokenArranger {
    /**
     * @param features what the connector gave: from its position to its limit, which stay where they are, the values of a
     *   tensor of [shape] (plan.encodedTiles, tokens.rows * tokens.cols, H); tiles row by row, the thumbnail before or
     *   after them as `tokens.thumbnailFirst` says.
     * @param newline H values, given exactly when `tokens.newline` names a file.
     * @return plan.imageTokens * H values, newly allocated.
     * @throws BundleException the arrays do not fit the plan and the manifest.
     */
    public fun arrange(
        features: FloatBuffer,
        shape: LongArray,
        plan: TilePlan,
        tokens: ImageTokensSpec,
        newline: FloatArray?,
    ): FloatArray {
        val perTile = tokens.rows * tokens.cols
        val fits = shape.size == 3 && shape[0] == plan.encodedTiles.toLong() && shape[1] == perTile.toLong() &&
            features.remaining().toLong() == shape[0] * shape[1] * shape[2]
        if (!fits) {
            throw BundleException(
                "the connector gave features of shape ${shape.joinToString(prefix = "(", postfix = ")")} " +
                    "(${features.remaining()} values), expected (${plan.encodedTiles}, $perTile, H)",
                "image_tokens in manifest.json and the connector disagree; export the checkpoint again",
            )
        }
        val size = shape[2].toInt()
        if ((newline == null) != tokens.newline.isEmpty() || (newline != null && newline.size != size)) {
            throw BundleException(
                "newline embedding of ${newline?.size} values does not fit newline file '${tokens.newline}' " +
                    "and hidden size $size",
                "export the checkpoint again",
            )
        }
        val source = features.slice()
        if (tokens.arrangement == Arrangement.TILE_BY_TILE) return FloatArray(source.remaining()).also { source.get(it) }
        return pictureRows(source, size, plan, tokens, newline)
    }

    private fun pictureRows(
        source: FloatBuffer,
        size: Int,
        plan: TilePlan,
        tokens: ImageTokensSpec,
        newline: FloatArray?,
    ): FloatArray {
        val perTile = tokens.rows * tokens.cols
        val line = lineTokens(plan.grid, tokens)
        val sequence = FloatArray(Math.multiplyExact(plan.imageTokens, size))
        // By its supertype: FloatBuffer.position itself is newer than Android 8.
        val cursor: Buffer = source
        fun copy(fromToken: Int, toToken: Int, count: Int) {
            cursor.position(fromToken * size)
            source.get(sequence, toToken * size, count * size)
        }
        val before = plan.thumbnail && tokens.thumbnailFirst
        val start = if (before) perTile else 0
        if (before) copy(0, 0, perTile)
        if (plan.thumbnail && !before) copy(plan.tiles * perTile, plan.imageTokens - perTile, perTile)
        for (tile in 0 until plan.tiles) {
            val (tileRow, tileCol) = tile / plan.grid.cols to tile % plan.grid.cols
            for (row in 0 until tokens.rows) {
                val target = start + (tileRow * tokens.rows + row) * line + tileCol * tokens.cols
                copy(start + tile * perTile + row * tokens.cols, target, tokens.cols)
            }
        }
        if (newline != null) {
            for (row in 1..plan.grid.rows * tokens.rows) {
                newline.copyInto(sequence, (start + row * line - 1) * size)
            }
        }
        return sequence
    }
}
