package dev.pocketvlm.demo.ui

import android.content.res.Resources
import dev.pocketvlm.demo.R
import java.text.NumberFormat
import kotlin.math.abs

/** Numbers as people of the phone's language write them. */
class Figures(private val resources: Resources) {
    private val locale = resources.configuration.locales[0]

    fun count(value: Number): String = NumberFormat.getIntegerInstance(locale).format(value)

    /** Three digits are enough to compare by. */
    fun number(value: Double): String {
        val format = NumberFormat.getInstance(locale)
        format.maximumFractionDigits = if (abs(value) >= 100) 0 else if (abs(value) >= 10) 1 else 2
        return format.format(value)
    }

    fun duration(milliseconds: Double): String =
        if (milliseconds < 1000) resources.getString(R.string.unit_ms, count(milliseconds))
        else resources.getString(R.string.unit_s, number(milliseconds / 1000))

    fun speed(tokensPerSecond: Double): String = resources.getString(R.string.unit_tok_s, number(tokensPerSecond))

    fun megabytes(value: Double): String = resources.getString(R.string.unit_mb, number(value))

    fun tiles(count: Int): String = resources.getQuantityString(R.plurals.tiles, count, count(count))

    fun tokens(count: Int): String = resources.getQuantityString(R.plurals.tokens, count, count(count))

    /** "3.9M", "1.2B". */
    fun parameters(count: Long): String {
        val (divisor, unit) = when {
            count >= 1_000_000_000 -> 1e9 to "B"
            count >= 1_000_000 -> 1e6 to "M"
            else -> return count(count)
        }
        val format = NumberFormat.getInstance(locale)
        format.maximumFractionDigits = 1
        return format.format(count / divisor) + unit
    }
}
