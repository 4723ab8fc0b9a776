package dev.pocketvlm.runtime.image

/**
 * A colour of 0 to 255, [alpha] / 255 opaque, with white behind it: Pillow's `alpha_composite`, which rounds in steps.
 */
public fun overWhite(value: Int, alpha: Int): Int {
    if (alpha == 0) return 255
    val sum = (value * alpha + 255 * (255 - alpha) + 128) shl 7
    return ((sum shr 8) + sum) shr 8 shr 7
}

/** A 16-bit grey as 8 bits: 65535 = 255 * 257, halves upwards. */
public fun grey8(value: Int): Int = (value + 128) / 257
