package dev.pocketvlm.runtime.sampler

import com.google.gson.JsonObject
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.Fixtures
import dev.pocketvlm.runtime.UsageException
import dev.pocketvlm.runtime.ints
import dev.pocketvlm.runtime.objects
import org.junit.jupiter.api.assertThrows
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue

class SamplerTest {
    private val fixture = Fixtures.json("sampler.json")
    private val context = fixture.getAsJsonArray("context").ints().toList()

    private fun options(entry: JsonObject): SamplingOptions {
        val given = entry.getAsJsonObject("options")
        fun number(name: String, default: Double) = given[name]?.asDouble ?: default
        return SamplingOptions(
            number("temperature", 0.0), given["top_k"]?.asInt ?: 0, number("top_p", 1.0), number("min_p", 0.0),
            number("repetition_penalty", 1.0), entry["seed"].asLong,
        )
    }

    private fun direct(values: FloatArray): FloatBuffer {
        val buffer = ByteBuffer.allocateDirect(values.size * 4 + 8).order(ByteOrder.nativeOrder()).asFloatBuffer()
        buffer.position(1)
        buffer.put(values)
        buffer.limit(values.size + 1)
        return buffer.apply { position(1) }
    }

    @Test
    fun `tokens are those that the Python runtime draws`() {
        val entries = fixture.objects("sequences")
        assertTrue(entries.size > 50)
        for (entry in entries) {
            val sampler = Sampler(options(entry), context)
            val expected = entry.getAsJsonArray("tokens").ints()
            val drawn = IntArray(expected.size) { step ->
                val logits = SharedLogits.of(entry["kind"].asString, step, entry["size"].asInt)
                if (step % 2 == 0) sampler.sample(logits) else sampler.sample(direct(logits))
            }
            assertContentEquals(expected, drawn, "${entry["kind"]} ${entry["size"]} ${options(entry)}")
        }
    }

    @Test
    fun `top-k, top-p and min-p keep as many tokens as in Python, to the last bit of a border`() {
        for (entry in fixture.objects("sequences")) {
            val options = options(entry)
            val seen = context.toHashSet()
            val tokens = entry.getAsJsonArray("tokens").ints()
            // Steps of a large vocabulary are slow to repeat, and each has many borders.
            val most = if (entry["size"].asInt > 10_000) 15 else Int.MAX_VALUE
            val expected = entry.getAsJsonArray("kept").ints().let { it.copyOf(minOf(it.size, most)) }
            val kept = IntArray(expected.size) { step ->
                val scores = SharedLogits.of(entry["kind"].asString, step, entry["size"].asInt)
                penalizeRepetition(scores, seen, options.repetitionPenalty.toFloat())
                for (index in scores.indices) scores[index] /= options.temperature.toFloat()
                keepProbable(scores, options)
                seen.add(tokens[step])
                candidates(scores).size
            }
            assertContentEquals(expected, kept, "${entry["kind"]} ${entry["size"]} $options")
        }
    }

    @Test
    fun `random numbers are numpy's`() {
        for (entry in fixture.objects("random")) {
            val generator = Pcg64(entry["seed"].asLong)
            for (bits in entry.getAsJsonArray("bits")) {
                assertEquals(bits.asString, "%016x".format(generator.nextDouble().toRawBits()), "seed ${entry["seed"]}")
            }
        }
    }

    @Test
    fun `float32 exponentials are numpy's`() {
        val entry = fixture.getAsJsonObject("exponentials")
        val arguments = entry.getAsJsonArray("arguments").map { it.asString }
        val results = entry.getAsJsonArray("results").map { it.asString }
        assertEquals(arguments.size, results.size)
        for ((argument, expected) in arguments zip results) {
            val x = Float.fromBits(argument.toLong(16).toInt())
            assertEquals(expected, "%08x".format(expf(x).toRawBits()), "exp($x)")
        }
        assertEquals(0f, expf(Float.NEGATIVE_INFINITY))
    }

    @Test
    fun `a fused product and sum is rounded once`() {
        // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24, a tie of two floats that the last summand breaks either way.
        val factor = 1f + 1f / 4096
        assertEquals(1f + 1f / 2048, fma(factor, factor, -1e-30f))
        assertEquals(Math.nextUp(1f + 1f / 2048), fma(factor, factor, 1e-30f))
        assertEquals(-Math.nextUp(1f + 1f / 2048), fma(-factor, factor, -1e-30f))
        assertEquals(7f, fma(2f, 3f, 1f))
    }

    @Test
    fun `sums are in numpy's order`() {
        for (entry in fixture.objects("sums")) {
            val values = FloatArray(entry["size"].asInt) { 1f / (it.toFloat() + 3f) }
            assertEquals(entry["float"].asString, "%08x".format(pairwiseSum(values).toRawBits()), "$entry")
            val doubles = DoubleArray(values.size) { values[it].toDouble() }
            assertEquals(entry["double"].asString, "%016x".format(pairwiseSum(doubles).toRawBits()), "$entry")
        }
    }

    @Test
    fun `greedy takes the highest and the first of equals`() {
        assertEquals(1, Sampler(SamplingOptions()).sample(floatArrayOf(1f, 5f, 5f, 2f)))
        assertEquals(1, Sampler(SamplingOptions()).sample(direct(floatArrayOf(Float.NEGATIVE_INFINITY, -5f, -5f, -6f))))
    }

    @Test
    fun `greedy avoids what the penalty pushes down, and leaves the logits alone`() {
        val sampler = Sampler(SamplingOptions(repetitionPenalty = 2.0), listOf(1, -1, 4))
        val logits = floatArrayOf(3f, 5f, 4f, -1f)
        assertEquals(listOf(2, 0, 1), List(3) { sampler.sample(logits) })
        assertContentEquals(floatArrayOf(3f, 5f, 4f, -1f), logits)
    }

    @Test
    fun `without a seed every sampler draws its own tokens`() {
        fun draw(seed: Long?) = Sampler(SamplingOptions(temperature = 1.0, seed = seed)).let { sampler ->
            List(40) { sampler.sample(SharedLogits.of("flat", it, 4097)) }
        }
        assertEquals(draw(7), draw(7))
        assertNotEquals(draw(7), draw(8))
        assertNotEquals(draw(null), draw(null))
    }

    @Test
    fun `logits that are not numbers are refused`() {
        for (temperature in listOf(0.0, 1.0)) {
            for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
                val sampler = Sampler(SamplingOptions(temperature))
                val error = assertThrows<EnvironmentException> { sampler.sample(floatArrayOf(1f, bad, 2f)) }
                assertEquals("the decoder's logits are not finite numbers", error.problem)
            }
            val impossible = FloatArray(3) { Float.NEGATIVE_INFINITY }
            assertThrows<EnvironmentException> { Sampler(SamplingOptions(temperature)).sample(impossible) }
        }
    }

    @Test
    fun `options outside their range are named`() {
        val wrong: Map<String, List<() -> SamplingOptions>> = mapOf(
            "temperature" to listOf(-1.0, 1e-300, Double.POSITIVE_INFINITY, Double.NaN).map { { SamplingOptions(it) } },
            "top_k" to listOf({ SamplingOptions(topK = -1) }),
            "top_p" to listOf(0.0, 1.1, Double.NaN).map { { SamplingOptions(topP = it) } },
            "min_p" to listOf(-0.1, 1.5, Double.NaN).map { { SamplingOptions(minP = it) } },
            "repetition_penalty" to listOf(0.0, Double.NaN).map { { SamplingOptions(repetitionPenalty = it) } },
            "seed" to listOf({ SamplingOptions(seed = -1) }),
        )
        for ((name, cases) in wrong) {
            for (case in cases) {
                val error = assertThrows<UsageException> { case() }
                assertTrue(error.problem.startsWith("$name is ") && error.hint.startsWith("it must be "), error.message)
            }
        }
    }
}

/** The logits of tests/fixtures/make_sampler.py, which says why they look as they do. */
private object SharedLogits {
    private fun mixed(number: Int): Int {
        var value = number xor (number ushr 16)
        value *= 0x21F0AAAD
        value = value xor (value ushr 15)
        value *= 0x735A2D97
        return value xor (value ushr 15)
    }

    fun of(kind: String, step: Int, size: Int): FloatArray = FloatArray(size) { token ->
        val hash = mixed(token * 2654435761L.toInt() + step * 97 + 1)
        val first = hash and 1023
        val second = (hash ushr 10) and 1023
        when (kind) {
            "flat" -> (first * 1024 + second) / 131072f - 4f
            "coarse" -> (first / 128 - 3).toFloat()
            "holes" -> if (token % 3 == 0) Float.NEGATIVE_INFINITY else first * second / 32768f
            else -> first * second / 32768f
        }
    }
}
