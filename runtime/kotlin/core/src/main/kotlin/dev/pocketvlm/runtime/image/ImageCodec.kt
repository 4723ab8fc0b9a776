package dev.pocketvlm.runtime.image

/** A decoder that can write image files, too; benchmarks need that to show a fresh picture each time. */
public interface ImageCodec : ImageDecoder {
    /**
     * The bytes of an image file.
     *
     * @param jpeg JPEG of quality 95; else PNG.
     */
    public fun encode(image: RgbImage, jpeg: Boolean): ByteArray
}
