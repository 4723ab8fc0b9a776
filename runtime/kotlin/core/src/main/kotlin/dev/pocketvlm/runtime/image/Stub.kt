package dev.pocketvlm.runtime.image
import java.io.File
public sealed interface ImageSource {
  public class Path(public val file: File) : ImageSource
  public class Bytes(public val bytes: ByteArray) : ImageSource
  public class Pixels(public val image: RgbImage) : ImageSource
}
public interface ImageDecoder { public fun decode(source: ImageSource, maxPixels: Long): RgbImage }
public interface ImageCodec : ImageDecoder { public fun encode(width: Int, height: Int, pixels: ByteArray, jpeg: Boolean): ByteArray }
