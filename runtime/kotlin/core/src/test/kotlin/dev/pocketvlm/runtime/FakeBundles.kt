package dev.pocketvlm.runtime

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File

/** Copies of the bundles in tests/fixtures that a test may change. */
internal object FakeBundles {
    fun pristine(name: String): File = Fixtures.file("bundles/$name")

    fun copy(name: String, to: File): File = to.resolve(name).also { pristine(name).copyRecursively(it) }

    /** Changes the manifest of a bundle, and lists its files anew unless [list] is false. */
    fun reseal(bundle: File, list: Boolean = true, change: (JsonObject) -> Unit = {}) {
        val file = bundle.resolve(Manifest.NAME)
        val manifest = JsonParser.parseString(file.readText()).asJsonObject
        if (list) {
            for (item in manifest.objects("files")) {
                val content = bundle.resolve(item["path"].asString).readBytes()
                item.addProperty("bytes", content.size)
                item.addProperty("sha256", sha256(content))
            }
        }
        change(manifest)
        writeManifest(bundle, manifest.toString())
    }

    fun writeManifest(bundle: File, text: String) {
        bundle.resolve(Manifest.NAME).writeText(text)
        bundle.resolve(Manifest.HASH_NAME).writeText(manifestHash(text.toByteArray()))
    }
}
