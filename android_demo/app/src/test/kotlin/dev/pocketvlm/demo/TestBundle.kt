package dev.pocketvlm.demo

import com.google.gson.Gson
import com.google.gson.JsonArray
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.ByteArrayOutputStream
import java.io.File
import java.security.MessageDigest
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

/**
 * A bundle for the scripted engine, from tests/fixtures/bundles, with another script or manifest.
 *
 * Its words are w5 to w95; the token after the prompt is that of `<bot>`, 4.
 *
 * @param chain next token by token; nothing makes it a checksum of the context.
 * @param stallOn means of a stage's input at which a run waits until it is cancelled, by the stage's file.
 * @param change is made to the manifest.
 */
class TestBundle(
    private val chain: Map<Int, Int> = mapOf(4 to 10, 10 to 11, 11 to 2),
    private val stallOn: Map<String, List<Double>> = emptyMap(),
    private val change: (JsonObject) -> Unit = {},
) {
    private val source = TestPictures.file("tests/fixtures/bundles/plain")
    private val gson = Gson()

    /** Its files, by their paths. */
    fun files(): Map<String, ByteArray> {
        val files = source.walk().filter(File::isFile).associateTo(sortedMapOf()) { it.relativeTo(source).path to it.readBytes() }
        edit(files, "v/decoder.onnx") { script -> script.add("chain", gson.toJsonTree(chain.mapKeys { "${it.key}" })) }
        for ((file, values) in stallOn) edit(files, file) { it.add("stall_on", gson.toJsonTree(values)) }
        edit(files, "manifest.json") { manifest ->
            for (item in manifest.getAsJsonArray("files").map { it.asJsonObject }) {
                val content = files.getValue(item["path"].asString)
                item.addProperty("bytes", content.size)
                item.addProperty("sha256", sha256(content))
            }
            change(manifest)
        }
        files["manifest.json.sha256"] = "${sha256(files.getValue("manifest.json"))}  manifest.json\n".toByteArray()
        return files
    }

    fun writeTo(directory: File) {
        for ((path, content) in files()) File(directory, path).apply { parentFile?.mkdirs() }.writeBytes(content)
    }

    fun zip(): ByteArray = zip(files())

    private fun edit(files: MutableMap<String, ByteArray>, path: String, change: (JsonObject) -> Unit) {
        val root = JsonParser.parseString(String(files.getValue(path))).asJsonObject
        change(root)
        files[path] = gson.toJson(root).toByteArray()
    }

    companion object {
        /** Answers w10w11, but never reaches the end of the answer. */
        fun stallingInTheAnswer() = TestBundle(stallOn = mapOf("v/decoder.onnx" to listOf(11.0)))

        /** Never ends to encode a white picture. */
        fun stallingOnWhite() = TestBundle(stallOn = mapOf("v/vision.onnx" to listOf(2.0)))

        /** One that the app is too old for. */
        fun ofNewerSchema() = TestBundle { it.getAsJsonObject("schema").addProperty("major", 2) }

        /** One whose first variant is for a phone's NPU. */
        fun withNpuVariant() = TestBundle { manifest ->
            val variants = manifest.getAsJsonArray("variants")
            val npu = variants[0].deepCopy().asJsonObject
            npu.addProperty("name", "npu")
            npu.addProperty("target", "qnn:SM8750")
            npu.addProperty("engine", "onnxruntime-qnn")
            val options = JsonObject()
            options.addProperty("soc_model", "69")
            options.addProperty("htp_arch", "79")
            npu.add("engine_options", options)
            val device = JsonObject()
            device.addProperty("soc", "SM8750")
            device.addProperty("soc_model", 69)
            device.addProperty("architecture", 79)
            device.addProperty("qairt", "2.50.40")
            npu.add("device", device)
            manifest.add("variants", JsonArray().apply { add(npu); addAll(variants) })
        }

        /** Without compression, as `pocketvlm export` writes it. */
        fun zip(files: Map<String, ByteArray>, method: Int = ZipEntry.STORED): ByteArray {
            val bytes = ByteArrayOutputStream()
            ZipOutputStream(bytes).use { zip ->
                for ((path, content) in files) {
                    val entry = ZipEntry(path)
                    entry.method = method
                    if (method == ZipEntry.STORED) {
                        entry.size = content.size.toLong()
                        entry.crc = CRC32().apply { update(content) }.value
                    }
                    zip.putNextEntry(entry)
                    zip.write(content)
                }
            }
            return bytes.toByteArray()
        }

        private fun sha256(content: ByteArray): String =
            MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }
    }
}
