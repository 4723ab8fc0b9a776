package dev.pocketvlm.runtime.image

/** Turns rows of one kind of pixels into RGB, with white behind what is transparent. */
internal fun interface PngPixels {
    /** [count] pixels of [row] to [out], the first at [offset], each [step] bytes after the one before. */
    fun convert(row: ByteArray, count: Int, out: ByteArray, offset: Int, step: Int)
}

/** Greyscale and palettes of at most 8 bits: what each value looks like is known beforehand. */
internal class TablePixels(private val bits: Int, private val table: ByteArray) : PngPixels {
    override fun convert(row: ByteArray, count: Int, out: ByteArray, offset: Int, step: Int) {
        val mask = (1 shl bits) - 1
        var target = offset
        for (index in 0 until count) {
            val bit = index * bits
            val entry = ((row[bit shr 3].toInt() and 0xff) shr (8 - bits - (bit and 7)) and mask) * 3
            for (channel in 0 until 3) out[target + channel] = table[entry + channel]
            target += step
        }
    }
}

/** RGB of each of up to 256 values. */
internal fun greyTable(bits: Int, transparent: ByteArray?): ByteArray {
    val table = ByteArray(256 * 3)
    // Pillow compares the scaled grey with the transparent value as the file has it; for 1 bit it scales both.
    val hidden = transparent?.let { u16(it, 0) }?.let { if (bits == 1) (if (it != 0) 255 else 0) else it and 0xff }
    for (value in 0 until (1 shl bits)) {
        val grey = value * 255 / ((1 shl bits) - 1)
        table.fill((if (grey == hidden) 255 else grey).toByte(), value * 3, value * 3 + 3)
    }
    return table
}

internal fun paletteTable(palette: ByteArray?, alphas: ByteArray?): ByteArray {
    if (palette == null) throw DamagedImageException("there is no palette in it")
    return ByteArray(256 * 3) { index ->
        val value = if (index < palette.size) palette[index].toInt() and 0xff else 0
        val alpha = if (alphas != null && index / 3 < alphas.size) alphas[index / 3].toInt() and 0xff else 255
        overWhite(value, alpha).toByte()
    }
}

internal class WideGrey(transparent: ByteArray?) : PngPixels {
    private val hidden = transparent?.let { u16(it, 0) }

    override fun convert(row: ByteArray, count: Int, out: ByteArray, offset: Int, step: Int) {
        var target = offset
        for (index in 0 until count) {
            val value = u16(row, index * 2)
            out.fill((if (value == hidden) 255 else grey8(value)).toByte(), target, target + 3)
            target += step
        }
    }
}

/** RGB of 8 or 16 bits. Of 16, Pillow keeps the upper 8, and compares them with the lower 8 of the transparent colour. */
internal class ColourPixels(private val bytes: Int, transparent: ByteArray?) : PngPixels {
    private val hidden = transparent?.let { packed(u16(it, 0), u16(it, 2), u16(it, 4)) } ?: -1

    override fun convert(row: ByteArray, count: Int, out: ByteArray, offset: Int, step: Int) {
        var target = offset
        var position = 0
        for (index in 0 until count) {
            out[target] = row[position]
            out[target + 1] = row[position + bytes]
            out[target + 2] = row[position + 2 * bytes]
            position += 3 * bytes
            if (hidden >= 0 && packed(out[target].toInt(), out[target + 1].toInt(), out[target + 2].toInt()) == hidden) {
                out.fill(-1, target, target + 3)
            }
            target += step
        }
    }

    private fun packed(red: Int, green: Int, blue: Int) = (red and 255 shl 16) or (green and 255 shl 8) or (blue and 255)
}

/** Grey or RGB with alpha, of 8 bits or the upper 8 of 16. */
internal class AlphaPixels(private val bytes: Int, private val grey: Boolean) : PngPixels {
    override fun convert(row: ByteArray, count: Int, out: ByteArray, offset: Int, step: Int) {
        val next = if (grey) 0 else bytes
        val size = if (grey) 2 * bytes else 4 * bytes
        var target = offset
        var position = 0
        for (index in 0 until count) {
            val alpha = row[position + size - bytes].toInt() and 0xff
            for (channel in 0 until 3) {
                out[target + channel] = overWhite(row[position + channel * next].toInt() and 0xff, alpha).toByte()
            }
            position += size
            target += step
        }
    }
}

private fun u16(bytes: ByteArray, index: Int): Int {
    if (index + 2 > bytes.size) throw DamagedImageException("a colour is cut off")
    return (bytes[index].toInt() and 0xff) shl 8 or (bytes[index + 1].toInt() and 0xff)
}
