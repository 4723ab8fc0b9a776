package dev.pocketvlm.runtime.tiling

import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.TilingSpec

/** A rule that picks one of the candidate grids for an image of [choose]'s width and height, both at least one pixel. */
public fun interface GridPolicy {
    public fun choose(width: Int, height: Int, tiling: TilingSpec): Grid
}

/** The rules by the names that a manifest gives them (`tiling.policy`); docs/tiling.md compares them. */
public val GRID_POLICIES: Map<String, GridPolicy> = mapOf(
    "relaxed_aspect" to RelaxedAspect,
    "llava_next" to LlavaNext,
    "internvl" to InternVl,
    "single" to Single,
)

internal fun gridPolicy(name: String): GridPolicy = GRID_POLICIES[name]
    ?: throw BundleException("tiling policy '$name' is none of ${GRID_POLICIES.keys.joinToString()}", "update PocketVLM")
