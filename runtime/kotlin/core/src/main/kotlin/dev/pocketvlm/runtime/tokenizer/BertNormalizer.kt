package dev.pocketvlm.runtime.tokenizer

internal class BertNormalizer(cleanText: Boolean, handleChinese: Boolean, stripAccents: Boolean, lowercase: Boolean) : Normalizer {
    private val steps = NormalizerSequence(
        buildList {
            if (cleanText) add(Cleaner)
            if (handleChinese) add(ChineseSpacer)
            if (stripAccents) {
                add(NormalForm(java.text.Normalizer.Form.NFD))
                add(RemovingNormalizer(Unicode.quirk("bert_mark")))
            }
            if (lowercase) add(LowercaseNormalizer)
        },
    )

    override fun normalize(piece: Piece): Piece = steps.normalize(piece)

    /** Removes control characters, and makes a space of all white space. */
    private object Cleaner : Normalizer {
        private val removed = Unicode.quirk("bert_control")

        override fun normalize(piece: Piece): Piece {
            val editor = piece.edit()
            piece.text.forEachCodePoint { index, codePoint ->
                if (codePoint in Unicode.WHITE_SPACE && codePoint !in removed) {
                    editor.append(" ", index)
                } else if (codePoint !in removed) {
                    editor.keep(index)
                }
            }
            return editor.finish()
        }
    }

    /** Puts spaces around CJK ideographs. */
    private object ChineseSpacer : Normalizer {
        private val ideographs = listOf(
            0x4E00..0x9FFF, 0x3400..0x4DBF, 0x20000..0x2A6DF, 0x2A700..0x2B73F, 0x2B740..0x2B81F, 0x2B920..0x2CEAF, 0xF900..0xFAFF,
            0x2F800..0x2FA1F,
        ).fold(CodePointSet.EMPTY) { set, range -> set or CodePointSet.of(range) }

        override fun normalize(piece: Piece): Piece {
            val editor = piece.edit()
            piece.text.forEachCodePoint { index, codePoint ->
                if (codePoint in ideographs) editor.append(" ", index)
                editor.keep(index)
                if (codePoint in ideographs) editor.append(" ", index)
            }
            return editor.finish()
        }
    }
}
