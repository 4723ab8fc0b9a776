package dev.pocketvlm.runtime.tokenizer

import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken

/** Reads the model of a tokenizer.json, whose vocabulary and merges are most of the file. */
internal class ModelReader(private val reader: JsonReader) {
    private val settings = mutableMapOf<String, Any?>()
    private var vocabulary: Vocabulary? = null
    private var scores: DoubleArray? = null
    private var merges: MergeList? = null

    fun read(): Model {
        if (reader.peek() != JsonToken.BEGIN_OBJECT) throw MalformedTokenizer("model is not an object")
        reader.beginObject()
        while (reader.hasNext()) {
            when (val name = reader.nextName()) {
                "vocab" -> readVocabulary()
                "merges" -> merges = MergeList.read(reader, vocabulary)
                in SETTINGS -> settings[name] = JsonTree(reader).read()
                else -> reader.skipValue()
            }
        }
        reader.endObject()
        return build(Fields("model", settings))
    }

    private fun readVocabulary() {
        if (vocabulary != null) throw MalformedTokenizer("model.vocab is there twice")
        when (reader.peek()) {
            JsonToken.BEGIN_OBJECT -> vocabulary = readIds()
            JsonToken.BEGIN_ARRAY -> readScores()
            else -> throw MalformedTokenizer("model.vocab is neither an object nor a list")
        }
    }

    private fun readIds(): Vocabulary {
        val builder = Vocabulary.Builder()
        reader.beginObject()
        while (reader.hasNext()) {
            val token = reader.nextName()
            if (reader.peek() != JsonToken.NUMBER) throw MalformedTokenizer("the id of the token '${token.take(MOST_SHOWN)}' is no number")
            builder.add(token, reader.nextInt())
        }
        reader.endObject()
        return builder.build()
    }

    private fun readScores() {
        val builder = Vocabulary.Builder(lastWins = true)
        var found = DoubleArray(1 shl 10)
        var size = 0
        reader.beginArray()
        while (reader.hasNext()) {
            reader.beginArray()
            builder.add(reader.nextWellFormed(), size)
            if (reader.peek() != JsonToken.NUMBER) throw MalformedTokenizer("the score of token $size is no number")
            if (size == found.size) found = found.copyOf(size * 2)
            found[size++] = reader.nextDouble()
            reader.endArray()
        }
        reader.endArray()
        vocabulary = builder.build()
        scores = found.copyOf(size)
    }

    private fun build(fields: Fields): Model {
        val vocabulary = vocabulary ?: throw MalformedTokenizer("model.vocab is missing")
        val type = if ("type" in fields) fields.string("type") else guessType(fields)
        if ((type == "Unigram") != (scores != null)) throw MalformedTokenizer("model.vocab is not that of a $type model")
        return when (type) {
            "BPE" -> bpe(vocabulary, fields)
            "Unigram" -> unigram(vocabulary, fields)
            "WordPiece" -> WordPiece(
                vocabulary,
                fields.string("unk_token"),
                fields.string("continuing_subword_prefix"),
                fields.integer("max_input_chars_per_word"),
            )
            "WordLevel" -> WordLevel(vocabulary, fields.string("unk_token"))
            else -> throw MalformedTokenizer("the model '${type.take(MOST_SHOWN)}' is not supported")
        }
    }

    /** The first files named no type. */
    private fun guessType(fields: Fields): String = when {
        merges != null -> "BPE"
        scores != null -> "Unigram"
        "max_input_chars_per_word" in fields -> "WordPiece"
        else -> "WordLevel"
    }

    private fun bpe(vocabulary: Vocabulary, fields: Fields): Model {
        val merges = merges ?: throw MalformedTokenizer("model.merges is missing")
        val dropout = settings["dropout"]
        if (dropout != null && (dropout as? JsonNumber)?.text?.toDoubleOrNull() != 0.0) {
            throw MalformedTokenizer("model.dropout is not supported")
        }
        val prefix = text("continuing_subword_prefix") ?: ""
        return Bpe(
            vocabulary,
            merges.table(vocabulary, prefix),
            text("unk_token"),
            fields.boolean("fuse_unk", false),
            fields.boolean("byte_fallback", false),
            fields.boolean("ignore_merges", false),
            prefix,
            text("end_of_word_suffix") ?: "",
        )
    }

    private fun unigram(vocabulary: Vocabulary, fields: Fields): Model {
        val unknown = if ("unk_id" in fields) fields.integer("unk_id") else null
        val scores = scores!!
        if (unknown != null && unknown >= scores.size) throw MalformedTokenizer("model.unk_id is larger than the vocabulary")
        return Unigram(vocabulary, scores, unknown, fields.boolean("byte_fallback", false))
    }

    private fun text(name: String): String? = settings[name]?.let { it as? String ?: throw MalformedTokenizer("model.$name is not a text") }

    private companion object {
        const val MOST_SHOWN = 40
        val SETTINGS = setOf(
            "type", "dropout", "unk_token", "unk_id", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
            "ignore_merges", "max_input_chars_per_word",
        )
    }
}

/** The merges of a BPE model in their order, as pairs of ids, or of texts where the vocabulary comes later in the file. */
internal class MergeList private constructor(private val vocabulary: Vocabulary?) {
    private var pairs = IntArray(1 shl 10)
    private var size = 0
    private val texts = ArrayList<String>()

    fun table(vocabulary: Vocabulary, prefix: String): MergeTable {
        val builder = MergeTable.Builder()
        val count = if (this.vocabulary === vocabulary) size else texts.size
        for (index in 0 until count step 2) {
            val left = if (this.vocabulary === vocabulary) pairs[index] else id(vocabulary, texts[index])
            val right = if (this.vocabulary === vocabulary) pairs[index + 1] else id(vocabulary, texts[index + 1])
            builder.add(left, right, index / 2, joined(vocabulary, left, right, prefix))
        }
        return builder.build()
    }

    private fun joined(vocabulary: Vocabulary, left: Int, right: Int, prefix: String): Int {
        val begin = vocabulary.token(left)!!
        val end = vocabulary.token(right)!!
        if (prefix.isNotEmpty() && !end.startsWith(prefix)) {
            throw MalformedTokenizer("the merge of '${begin.take(MOST_SHOWN)}' and '${end.take(MOST_SHOWN)}' lacks the prefix '$prefix'")
        }
        val result = vocabulary.findJoined(begin, end, prefix.length)
        if (result < 0) {
            throw MalformedTokenizer("'${begin.take(MOST_SHOWN)}' and '${end.take(MOST_SHOWN)}' merge into what is no token")
        }
        return result
    }

    private fun add(left: String, right: String) {
        if (vocabulary == null) {
            texts += left
            texts += right
        } else {
            add(id(vocabulary, left), id(vocabulary, right))
        }
    }

    private fun add(left: Int, right: Int) {
        if (size + 2 > pairs.size) pairs = pairs.copyOf(size * 2)
        pairs[size++] = left
        pairs[size++] = right
    }

    /** A merge as "a b". */
    private fun addLine(line: String) {
        val space = line.indexOf(' ')
        if (space < 0 || line.indexOf(' ', space + 1) >= 0) throw MalformedTokenizer("the merge '${line.take(MOST_SHOWN)}' is not two tokens")
        if (vocabulary == null) return add(line.substring(0, space), line.substring(space + 1))
        val left = vocabulary.find(line, 0, space)
        val right = vocabulary.find(line, space + 1, line.length)
        if (left < 0 || right < 0) throw MalformedTokenizer("the merge '${line.take(MOST_SHOWN)}' names a token that there is not")
        add(left, right)
    }

    private fun id(vocabulary: Vocabulary, token: String): Int =
        vocabulary.id(token) ?: throw MalformedTokenizer("a merge names the token '${token.take(MOST_SHOWN)}', which there is not")

    companion object {
        private const val MOST_SHOWN = 40

        fun read(reader: JsonReader, vocabulary: Vocabulary?): MergeList {
            val list = MergeList(vocabulary)
            var form: JsonToken? = null
            if (reader.peek() != JsonToken.BEGIN_ARRAY) throw MalformedTokenizer("model.merges is not a list")
            reader.beginArray()
            while (reader.hasNext()) {
                val next = reader.peek()
                if (form != null && next != form) throw MalformedTokenizer("model.merges has merges of two forms")
                form = next
                if (next == JsonToken.BEGIN_ARRAY) {
                    reader.beginArray()
                    list.add(reader.nextWellFormed(), reader.nextWellFormed())
                    reader.endArray()
                } else {
                    val line = reader.nextWellFormed()
                    if (!line.startsWith("#version")) list.addLine(line)
                }
            }
            reader.endArray()
            return list
        }
    }
}
