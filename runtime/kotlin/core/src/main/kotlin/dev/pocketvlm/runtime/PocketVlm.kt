package dev.pocketvlm.runtime

/** Version of this runtime; it equals that of the Python package. */
public const val POCKETVLM_VERSION: String = "0.1.0"
