package dev.pocketvlm.runtime.engine

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.util.Base64

/** Whether this processor adds up products of bytes exactly. */
internal object Int8Products {
    // An ONNX graph: MatMulInteger of a uint8 [n, 4] and four int8 weights of 127, giving int32 [n, 1].
    private const val PROBE = "CAU6XgoYCgFhCgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgVwcm9iZSoPCAQIARADQgF3SgR/f39/WhQKAWESDwoNCAISCQoDEgFuCgII" +
        "BGIUCgF5Eg8KDQgGEgkKAxIBbgoCCAFCBAoAEAo="

    /**
     * Whether ONNX Runtime's products of unsigned and signed bytes saturate here.
     *
     * On x86 processors without VNNI, its kernels add pairs of products up in 16 bits, which two large ones exceed. Asked of
     * the kernels themselves, in a few milliseconds once per process: what a processor can do is told in as many ways as there
     * are systems, and which kernel is taken is the library's affair.
     */
    val saturating: Boolean by lazy {
        val environment = ortEnvironment()
        OrtSession.SessionOptions().use { options ->
            options.setIntraOpNumThreads(1)
            environment.createSession(Base64.getDecoder().decode(PROBE), options).use { session ->
                // One row and several are computed by different kernels.
                listOf(1, 2).any { rows -> sums(session, rows).any { it != 4 * 255 * 127 } }
            }
        }
    }

    private fun sums(session: OrtSession, rows: Int): IntArray {
        val ones = ByteBuffer.allocateDirect(rows * 4)
        for (index in 0 until ones.capacity()) ones.put(index, 255.toByte())
        OnnxTensor.createTensor(ortEnvironment(), ones, longArrayOf(rows.toLong(), 4), OnnxJavaType.UINT8).use { input ->
            session.run(mapOf("a" to input)).use { result ->
                val found = (result[0] as OnnxTensor).intBuffer
                return IntArray(found.remaining()).also(found::get)
            }
        }
    }
}
