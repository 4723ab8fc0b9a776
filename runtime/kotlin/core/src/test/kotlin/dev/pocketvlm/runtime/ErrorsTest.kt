package dev.pocketvlm.runtime

import kotlin.test.Test
import kotlin.test.assertEquals

class ErrorsTest {
    @Test
    fun `a message says what to do`() {
        val error = BundleException("x.onnx: missing from the bundle", "copy it again")
        assertEquals("x.onnx: missing from the bundle (copy it again)", error.message)
        assertEquals("bad_bundle" to 3, error.code to error.exitCode)
    }
}
