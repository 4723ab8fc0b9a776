package dev.pocketvlm.demo.ui

import android.content.Context
import android.content.res.Configuration
import android.graphics.Color
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.R
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** What stands on what, in light and in dark: WCAG asks for 4.5 : 1 for text, and for 3 : 1 for symbols. */
class ContrastTest : AppTest() {
    private val texts = listOf(
        R.color.text to R.color.background,
        R.color.text to R.color.surface,
        R.color.text to R.color.surface_raised,
        R.color.text_quiet to R.color.background,
        R.color.text_quiet to R.color.surface,
        R.color.text_quiet to R.color.surface_raised,
        R.color.accent to R.color.background,
        R.color.accent to R.color.surface,
        R.color.accent to R.color.surface_raised,
        R.color.on_accent to R.color.accent,
        R.color.on_question to R.color.question,
        R.color.on_error_surface to R.color.error_surface,
        R.color.good to R.color.surface,
    )
    private val symbols = listOf(R.color.accent to R.color.question, R.color.accent to R.color.outline)

    @Test
    fun `the formula is that of WCAG`() {
        assertEquals(21.0, contrast(Color.BLACK, Color.WHITE), 1e-9)
        assertEquals(4.48, contrast(Color.rgb(119, 119, 119), Color.WHITE), 0.01)
    }

    @Test
    fun `in light`() = check(Configuration.UI_MODE_NIGHT_NO)

    @Test
    fun `in dark`() = check(Configuration.UI_MODE_NIGHT_YES)

    private fun check(night: Int) {
        val context = app.createConfigurationContext(Configuration(app.resources.configuration).apply { uiMode = night })
        for ((pairs, least) in listOf(texts to 4.5, symbols to 3.0)) {
            for ((front, back) in pairs) {
                val found = contrast(context.getColor(front), context.getColor(back))
                assertTrue("${context.name(front)} on ${context.name(back)}: $found", found >= least)
            }
        }
    }

    private fun Context.name(id: Int): String = resources.getResourceEntryName(id)

    private fun contrast(one: Int, other: Int): Double {
        val (dark, light) = listOf(Color.luminance(one), Color.luminance(other)).sorted()
        return (light + 0.05) / (dark + 0.05)
    }
}
