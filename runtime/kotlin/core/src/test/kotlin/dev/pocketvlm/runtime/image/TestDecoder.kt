package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Fixtures

/** A platform that reads nothing by itself: what it was asked for, and grey pixels of the right size. */
internal class TestDecoder : CheckedImageDecoder() {
    var asked: ImageFile? = null

    override fun decodePixels(image: ImageFile): RgbImage {
        asked = image
        return RgbImage(image.width, image.height, ByteArray(image.width * image.height * 3) { 127 })
    }
}

internal fun fixtureImage(name: String) = Fixtures.file("images/$name")

internal fun TestDecoder.decode(name: String): RgbImage =
    decode(ImageSource.File(fixtureImage(name)), maxPixels = 1_000_000)
