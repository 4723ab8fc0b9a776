package dev.pocketvlm.runtime.tiling

internal val GRID_POLICIES: Map<String, Unit> = listOf("relaxed_aspect", "llava_next", "internvl", "single").associateWith { }
