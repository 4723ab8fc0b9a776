package dev.pocketvlm.runtime.tokenizer

import com.google.gson.Strictness
import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken
import dev.pocketvlm.runtime.BundleException
import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.io.InputStreamReader
import java.nio.charset.CodingErrorAction

/** Reads a tokenizer.json as a stream: the vocabulary goes where it belongs, and only the small components are kept as JSON. */
internal class TokenizerFile(private val file: File, private val name: String) {
    private val components = mutableMapOf<String, Any?>()
    private var model: Model? = null
    private var added = emptyList<AddedToken>()

    fun read(): Pipeline {
        val size = file.length()
        if (size > Tokenizer.MAX_BYTES) fail("$name holds $size bytes; at most ${Tokenizer.MAX_BYTES} are read")
        val stream = try {
            FileInputStream(file)
        } catch (error: IOException) {
            fail("cannot read $name: ${oneLine(error)}", error)
        }
        return stream.use { parse(it) }
    }

    private fun parse(stream: FileInputStream): Pipeline {
        val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
        try {
            val reader = JsonReader(InputStreamReader(stream, decoder))
            reader.strictness = Strictness.STRICT
            readTop(reader)
            return build()
        } catch (error: MalformedTokenizer) {
            fail("$name is no valid tokenizer.json: ${oneLine(error)}", error)
        } catch (error: TokenizerFailure) {
            fail("$name is no valid tokenizer.json: ${oneLine(error)}", error)
        } catch (error: IOException) {
            fail("$name is no valid tokenizer.json: ${oneLine(error)}", error)
        } catch (error: IllegalStateException) {
            // JsonReader says so of a value of another kind than the one that is asked for.
            fail("$name is no valid tokenizer.json: ${oneLine(error)}", error)
        } catch (error: NumberFormatException) {
            fail("$name is no valid tokenizer.json: ${oneLine(error)}", error)
        } catch (error: OutOfMemoryError) {
            fail("$name needs more memory than there is", error)
        }
    }

    private fun readTop(reader: JsonReader) {
        if (reader.peek() != JsonToken.BEGIN_OBJECT) throw MalformedTokenizer("it is not an object")
        reader.beginObject()
        while (reader.hasNext()) {
            when (val field = reader.nextName()) {
                "version" -> if (reader.nextWellFormed() != VERSION) throw MalformedTokenizer("its version is not $VERSION")
                "added_tokens" -> added = readAdded(reader)
                "model" -> model = ModelReader(reader).read()
                in COMPONENTS -> components[field] = JsonTree(reader).read()
                else -> reader.skipValue()
            }
        }
        reader.endObject()
        if (reader.peek() != JsonToken.END_DOCUMENT) throw MalformedTokenizer("something follows its end")
    }

    private fun readAdded(reader: JsonReader): List<AddedToken> = buildList {
        if (reader.peek() != JsonToken.BEGIN_ARRAY) throw MalformedTokenizer("added_tokens is not a list")
        reader.beginArray()
        while (reader.hasNext()) {
            val fields = Fields.toFields(JsonTree(reader).read(), "added_tokens[$size]")
            fields.integer("id")
            add(
                AddedToken(
                    content = fields.string("content"),
                    singleWord = fields.boolean("single_word"),
                    stripLeft = fields.boolean("lstrip"),
                    stripRight = fields.boolean("rstrip"),
                    normalized = fields.boolean("normalized"),
                    special = fields.boolean("special"),
                ),
            )
        }
        reader.endArray()
    }

    private fun build(): Pipeline {
        val model = model ?: throw MalformedTokenizer("it has no model")
        val normalizer = component("normalizer")?.let(NormalizerReader::read)
        return Pipeline(
            normalizer,
            component("pre_tokenizer")?.let(PreTokenizerReader::read),
            model,
            component("post_processor")?.let(PostProcessorReader::read),
            component("decoder")?.let(DecoderReader::read),
            AddedVocabulary.empty(model.vocabulary, normalizer).plus(added),
        )
    }

    private fun component(name: String): Fields? = components[name]?.let { Fields.toFields(it, name) }

    private fun oneLine(error: Throwable): String =
        (error.message ?: error.javaClass.simpleName).lineSequence().first().trim().take(MOST_SHOWN)

    private fun fail(problem: String, cause: Throwable? = null): Nothing =
        throw BundleException(problem, "copy the bundle again or export it again", cause)

    private companion object {
        const val VERSION = "1.0"
        const val MOST_SHOWN = 200
        val COMPONENTS = setOf("normalizer", "pre_tokenizer", "post_processor", "decoder")
    }
}
