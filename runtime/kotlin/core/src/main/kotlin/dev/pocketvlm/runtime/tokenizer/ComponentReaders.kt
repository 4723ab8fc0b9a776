package dev.pocketvlm.runtime.tokenizer

import java.text.Normalizer.Form

/** The type of a component, and what is said if there is no such component. */
private fun Fields.type(): String = string("type")

private fun Fields.unsupported(kind: String): Nothing = throw MalformedTokenizer("the $kind '${type().take(40)}' is not supported")

/** {"String": ...} or {"Regex": ...}. */
private fun Fields.pattern(): TextPattern {
    val (kind, value) = fields("pattern").only()
    val text = value as? String ?: fail("pattern.$kind", "a text")
    return when (kind) {
        "String" -> TextPattern.literal(text)
        "Regex" -> TextPattern.Expression(text)
        else -> fail("pattern", "a String or a Regex")
    }
}

private fun Fields.behavior(): SplitBehavior = when (string("behavior")) {
    "Removed" -> SplitBehavior.REMOVED
    "Isolated" -> SplitBehavior.ISOLATED
    "MergedWithPrevious" -> SplitBehavior.MERGED_WITH_PREVIOUS
    "MergedWithNext" -> SplitBehavior.MERGED_WITH_NEXT
    "Contiguous" -> SplitBehavior.CONTIGUOUS
    else -> fail("behavior", "one of the ways to split")
}

/** How a Metaspace puts a space before the text; older files say it with `add_prefix_space`. */
private fun Fields.prependScheme(): PrependScheme {
    val scheme = when (if ("prepend_scheme" in this) string("prepend_scheme") else "always") {
        "always" -> PrependScheme.ALWAYS
        "first" -> PrependScheme.FIRST
        "never" -> PrependScheme.NEVER
        else -> fail("prepend_scheme", "always, first or never")
    }
    if (boolean("add_prefix_space", true)) return scheme
    if ("prepend_scheme" in this && scheme != PrependScheme.NEVER) fail("add_prefix_space", "what prepend_scheme says")
    return PrependScheme.NEVER
}

internal object NormalizerReader {
    fun read(fields: Fields): Normalizer = when (fields.type()) {
        "Sequence" -> NormalizerSequence(fields.fieldsList("normalizers").map(::read))
        "NFC" -> NormalForm(Form.NFC)
        "NFD" -> NormalForm(Form.NFD)
        "NFKC" -> NormalForm(Form.NFKC)
        "NFKD" -> NormalForm(Form.NFKD)
        "Lowercase" -> LowercaseNormalizer
        "Strip" -> StripNormalizer(fields.boolean("strip_left"), fields.boolean("strip_right"))
        "StripAccents" -> RemovingNormalizer(Unicode.quirk("mark"))
        "Replace" -> ReplaceNormalizer(fields.pattern(), fields.string("content"))
        "Prepend" -> PrependNormalizer(fields.string("prepend"))
        "BertNormalizer" -> bert(fields)
        "Nmt" -> NmtNormalizer
        "Precompiled" -> PrecompiledNormalizer(fields.string("precompiled_charsmap"))
        "ByteLevel" -> ByteLevelNormalizer
        else -> fields.unsupported("normalizer")
    }

    private fun bert(fields: Fields): Normalizer {
        val lowercase = fields.boolean("lowercase")
        return BertNormalizer(
            fields.boolean("clean_text"),
            fields.boolean("handle_chinese_chars"),
            fields.boolean("strip_accents", lowercase),
            lowercase,
        )
    }
}

internal object PreTokenizerReader {
    fun read(fields: Fields): PreTokenizer = when (fields.type()) {
        "Sequence" -> PreTokenizerSequence(fields.fieldsList("pretokenizers").map(::read))
        "ByteLevel" -> ByteLevelPreTokenizer(fields.boolean("add_prefix_space"), fields.boolean("use_regex", true))
        "Split" -> SplitPreTokenizer(fields.pattern(), fields.behavior(), fields.boolean("invert"))
        "Metaspace" -> MetaspacePreTokenizer(fields.character("replacement"), fields.prependScheme(), fields.boolean("split", true))
        "Digits" -> CharacterSplit(
            Unicode.quirk("numeric"),
            if (fields.boolean("individual_digits")) SplitBehavior.ISOLATED else SplitBehavior.CONTIGUOUS,
        )
        "Punctuation" -> CharacterSplit(
            Unicode.quirk("punctuation"),
            if ("behavior" in fields) fields.behavior() else SplitBehavior.ISOLATED,
        )
        "Whitespace" -> WhitespacePreTokenizer
        "WhitespaceSplit" -> CharacterSplit(Unicode.WHITE_SPACE, SplitBehavior.REMOVED)
        "BertPreTokenizer" -> BertPreTokenizer
        "CharDelimiterSplit" -> CharacterSplit(CodePointSet.of(fields.character("delimiter").codePointAt(0)), SplitBehavior.REMOVED)
        "UnicodeScripts" -> UnicodeScriptsPreTokenizer
        "FixedLength" -> FixedLengthPreTokenizer(
            if ("length" in fields) fields.integer("length").also { if (it == 0) fields.fail("length", "positive") } else DEFAULT_LENGTH,
        )
        else -> fields.unsupported("pre-tokenizer")
    }

    private const val DEFAULT_LENGTH = 5
}

internal object PostProcessorReader {
    fun read(fields: Fields): PostProcessor = when (fields.type()) {
        "Sequence" -> PostProcessorSequence(fields.fieldsList("processors").map(::read))
        "TemplateProcessing" -> template(fields)
        "BertProcessing" -> bert(fields)
        "RobertaProcessing" -> PostProcessorSequence(listOfNotNull(trimmer(fields), bert(fields)))
        "ByteLevel" -> PostProcessorSequence(listOfNotNull(trimmer(fields)))
        else -> fields.unsupported("post-processor")
    }

    private fun trimmer(fields: Fields): PostProcessor? {
        val addPrefixSpace = fields.boolean("add_prefix_space")
        return if (fields.boolean("trim_offsets")) OffsetTrimmer(addPrefixSpace) else null
    }

    private fun bert(fields: Fields): PostProcessor = BertPostProcessor(named(fields, "sep"), named(fields, "cls"))

    /** ["[SEP]", 102]. */
    private fun named(fields: Fields, name: String): NamedToken {
        val pair = fields.list(name)
        val token = pair.getOrNull(0) as? String
        val id = (pair.getOrNull(1) as? JsonNumber)?.text?.toIntOrNull()
        if (pair.size != 2 || token == null || id == null || id < 0) fields.fail(name, "a token and its id")
        return NamedToken(token, id)
    }

    private fun template(fields: Fields): PostProcessor {
        val special = fields.fields("special_tokens")
        return TemplatePostProcessor(template(fields, "single", special), template(fields, "pair", special))
    }

    private fun template(fields: Fields, name: String, special: Fields): List<TemplatePart> =
        fields.fieldsList(name).map { templatePart(it, special) }

    private fun templatePart(part: Fields, special: Fields): TemplatePart {
        val (kind, _) = part.only()
        val id = part.fields(kind).string("id")
        return when {
            kind == "Sequence" && id == "A" -> TemplatePart.Text(0)
            kind == "Sequence" && id == "B" -> TemplatePart.Text(1)
            kind == "SpecialToken" -> special.fields(id).let { token ->
                val ids = token.integers("ids")
                val tokens = token.strings("tokens")
                if (ids.size != tokens.size) token.fail("ids", "as long as its tokens")
                TemplatePart.Special(ids, tokens)
            }
            else -> part.fail(kind, "a part of a template")
        }
    }
}

internal object DecoderReader {
    fun read(fields: Fields): Decoder = when (fields.type()) {
        "Sequence" -> DecoderSequence(fields.fieldsList("decoders").map(::read))
        "ByteLevel" -> ByteLevelDecoder
        "ByteFallback" -> ByteFallbackDecoder
        "Fuse" -> FuseDecoder
        "Strip" -> Decoders.strip(fields.character("content").codePointAt(0), fields.integer("start"), fields.integer("stop"))
        "Replace" -> Decoders.replace(fields.pattern(), fields.string("content"))
        "Metaspace" -> Decoders.metaspace(fields.character("replacement"), fields.prependScheme())
        "WordPiece" -> Decoders.wordPiece(fields.string("prefix"), fields.boolean("cleanup"))
        "BPEDecoder" -> Decoders.bpe(fields.string("suffix"))
        else -> fields.unsupported("decoder")
    }
}
