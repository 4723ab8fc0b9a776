package dev.pocketvlm.runtime.tokenizer

import kotlin.random.Random

/** Texts by chance, with a seed: pieces of the fixtures' texts, single characters of them, and any characters. */
class RandomTexts(seed: Int) {
    private val random = Random(seed)
    private val characters: List<String> = Fixtures.texts.flatMap { text -> text.codePoints().toArray().map { String(Character.toChars(it)) } }.distinct()

    fun next(): String = buildString {
        repeat(random.nextInt(1, 12)) {
            when (random.nextInt(8)) {
                0 -> append(piece())
                1 -> append(anything())
                2 -> append(" \n\t\r\u00a0\u3000 "[random.nextInt(7)].toString().repeat(random.nextInt(1, 4)))
                3 -> append(characters.random(random).repeat(random.nextInt(1, 5)))
                else -> repeat(random.nextInt(1, 6)) { append(characters.random(random)) }
            }
        }
    }

    private fun piece(): String {
        val points = Fixtures.texts.random(random).codePoints().toArray()
        val begin = if (points.isEmpty()) 0 else random.nextInt(points.size)
        return String(points, begin, minOf(points.size - begin, random.nextInt(1, 12)))
    }

    private fun anything(): String {
        while (true) {
            val codePoint = if (random.nextBoolean()) random.nextInt(0x3000) else random.nextInt(0x1FFFF)
            // Characters of later versions of Unicode have other normal forms on other platforms.
            if (codePoint !in 0xD800..0xDFFF && codePoint in AGREED) return String(Character.toChars(codePoint))
        }
    }

    private companion object {
        val AGREED = CodePointSet.of(0..0x2FFF) or CodePointSet.of(0x4E00..0x9FA5) or CodePointSet.of(0xAC00..0xD7A3) or
            CodePointSet.of(0xF900..0xFFFD) or CodePointSet.of(0x1D400..0x1D7FF) or CodePointSet.of(0x1F300..0x1F64F)
    }
}
