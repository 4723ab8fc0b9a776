package dev.pocketvlm.demo

import com.google.gson.JsonParser
import java.io.File

/** The bundle that `make demo` exports, and the screenshots and questions that its model was trained for. */
object DemoBundle {
    val directory: File by lazy {
        File(System.getProperty("pocketvlm.demo.bundle")).also {
            check(it.isDirectory) { "$it: no demo bundle; run `make demo`, or name one with -Dpocketvlm.demo.bundle=DIRECTORY" }
        }
    }

    fun screen(name: String): ByteArray = TestPictures.file("demo/screens/$name").readBytes()

    /** Questions and right answers, by the screenshot's name. */
    val questions: Map<String, List<Pair<String, String>>> by lazy {
        val root = JsonParser.parseString(TestPictures.file("demo/screens/questions.json").readText()).asJsonObject
        root.entrySet().associate { (name, pairs) ->
            name to pairs.asJsonArray.map { it.asJsonArray }.map { it[0].asString to it[1].asString }
        }
    }
}
