package dev.pocketvlm.runtime.image

private const val WIDTH = 256
private const val HEIGHT = 257
private const val ORIENTATION = 274

internal fun readTiffHeader(file: ByteSource): Header {
    val little = file.matches(0, "II")
    val offset = file.u32(4, little)
    val tags = directory(file, offset, little)
    val width = tags[WIDTH]
    val height = tags[HEIGHT]
    if (width == null || height == null) throw DamagedImageException("it does not say how large the picture is")
    val next = offset + 2 + file.u16(offset, little) * 12L
    val several = next + 4 <= file.length && file.u32(next, little) != 0L
    return Header(width, height, tags[ORIENTATION]?.toInt() ?: 1, several)
}
