package dev.pocketvlm.runtime.engine

import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.CancelledException
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.Fixtures
import dev.pocketvlm.runtime.TensorType
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertTrue
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir

@Timeout(60)
class OrtEngineTest {
    @TempDir
    lateinit var folder: File

    private val engine = OrtEngine()

    @Test
    fun `every type goes through unchanged`() {
        for (type in TensorType.entries) {
            val input = Tensor.zeros(type, listOf(3, 2))
            // Of a boolean, ONNX Runtime knows 0 and 1 alone.
            for (index in 0 until input.data.limit()) input.data.put(index, if (type == TensorType.BOOL) 1 else (index + 1).toByte())
            val output = Tensor.zeros(type, listOf(3, 2))
            open("identity_${type.name.lowercase()}").use { it.run(mapOf("x" to input), mapOf("y" to output)) }
            assertEquals(input.data, output.data, type.name)
        }
    }

    @Test
    fun `a bound graph reads and writes its tensors at every run`() {
        val (left, right, sum) = List(3) { floats(1f, 2f, 3f) }
        open("add").use { session ->
            val run = session.bind(mapOf("left" to left, "right" to right), mapOf("sum" to sum))
            assertTrue(run.run() > 0)
            assertEquals(listOf(2f, 4f, 6f), sum.list())
            right.floats().put(1, 10f)
            run.run()
            assertEquals(listOf(2f, 12f, 6f), sum.list())
        }
    }

    @Test
    fun `a tensor may be input and output`() {
        val (left, right) = List(2) { floats(1f, 2f) }
        open("add").use { session ->
            val run = session.bind(mapOf("left" to left, "right" to right), mapOf("sum" to left))
            repeat(3) { run.run() }
        }
        assertEquals(listOf(4f, 8f), left.list())
    }

    @Test
    fun `a part of a tensor can be bound`() {
        val all = floats(1f, 2f, 3f, 4f)
        val middle = all.view(1, listOf(2))
        open("add").use { it.run(mapOf("left" to middle, "right" to middle), mapOf("sum" to middle)) }
        assertEquals(listOf(1f, 4f, 6f, 4f), all.list())
    }

    @Test
    fun `a run is cancelled from another thread, and the next one is not`() {
        val (x, y) = List(2) { floats(0f) }
        open("endless").use { session ->
            val run = session.bind(mapOf("x" to x), mapOf("y" to y))
            repeat(2) {
                val ended = CountDownLatch(1)
                var failure: Throwable? = null
                Thread {
                    failure = runCatching { run.run() }.exceptionOrNull()
                    ended.countDown()
                }.start()
                while (!ended.await(1, TimeUnit.MILLISECONDS)) session.cancel()
                assertIs<CancelledException>(failure)
            }
        }
        open("add").use { session ->
            session.cancel()
            val one = floats(1f)
            session.run(mapOf("left" to one, "right" to one), mapOf("sum" to one))
            assertEquals(listOf(2f), one.list())
        }
    }

    @Test
    fun `who cancels before the engine has begun is not too early`() {
        val (x, y) = List(2) { floats(0f) }
        open("endless").use { session ->
            val run = session.bind(mapOf("x" to x), mapOf("y" to y))
            assertFailsWith<CancelledException> { run.run { true } }
            // Asked, the canceller makes it true and cancels: the run, about to begin, ends.
            assertFailsWith<CancelledException> { run.run { session.cancel().let { false } } }
        }
    }

    @Test
    fun `names, shapes and types that the graph does not have`() {
        val one = floats(1f)
        open("add").use { session ->
            fun refused(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>): String =
                assertFailsWith<BundleException> { session.run(inputs, outputs) }.problem
            assertContains(refused(mapOf("left" to one), emptyMap()), "differ in right")
            assertContains(refused(mapOf("left" to one, "right" to one, "x" to one), emptyMap()), "differ in x")
            assertContains(refused(mapOf("left" to one, "right" to one), mapOf("product" to one)), "differ in product")
            val wide = Tensor.zeros(TensorType.FLOAT32, listOf(1, 1))
            assertContains(refused(mapOf("left" to wide, "right" to wide), mapOf("sum" to wide)), "refuses its inputs")
            val whole = Tensor.zeros(TensorType.INT64, listOf(1))
            assertContains(refused(mapOf("left" to whole, "right" to whole), mapOf("sum" to one)), "refuses its inputs")
        }
    }

    @Test
    fun `a run that fails says where`() {
        val x = Tensor.zeros(TensorType.INT64, listOf(1)).also { it.longs().put(0, -1) }
        open("sized").use { session ->
            val error = assertFailsWith<EnvironmentException> { session.run(mapOf("x" to x), emptyMap()) }
            assertContains(error.problem, "graphs/sized.onnx: ONNX Runtime failed")
        }
    }

    @Test
    fun `a closed session does not run`() {
        val one = floats(1f)
        val session = open("add")
        val run = session.bind(mapOf("left" to one, "right" to one), mapOf("sum" to one))
        session.close()
        session.close()
        assertFailsWith<EnvironmentException> { run.run() }
        assertFailsWith<EnvironmentException> { session.run(mapOf("left" to one, "right" to one), emptyMap()) }
    }

    @Test
    fun `files that are no graphs`() {
        for ((name, content) in mapOf("empty" to ByteArray(0), "text" to "not a graph".toByteArray())) {
            val file = folder.resolve("$name.onnx").apply { writeBytes(content) }
            val error = assertFailsWith<BundleException>(name) { engine.open(file, emptyMap(), 1) }
            assertContains(error.problem, "${folder.name}/$name.onnx: ONNX Runtime 1.29.0 cannot load it")
        }
        assertFailsWith<BundleException> { engine.open(folder.resolve("nothing.onnx"), emptyMap(), 1) }
    }

    @Test
    fun `options that are known, and others`() {
        val file = Fixtures.file("graphs/add.onnx")
        val known = mapOf("graph_optimization" to "basic", "session.intra_op.allow_spinning" to "0", "mlas.disable_kleidiai" to "1")
        engine.open(file, known, 2).close()
        engine.open(file, mapOf("graph_optimization" to "extended", "int8_products" to "exact"), null).close()
        fun refused(vararg options: Pair<String, String>): String =
            assertFailsWith<BundleException> { engine.open(file, mapOf(*options), 1) }.problem
        assertContains(refused("graph_optimization" to "most"), "graph_optimization='most' is not known to onnxruntime")
        assertContains(refused("session.load_model_format" to "ORT"), "is not known to onnxruntime")
        assertContains(refused("int8_products" to "fast"), "is not known to onnxruntime")
        engine.open(file, mapOf("arm_kernels" to "fastest", "mlas.disable_kleidiai" to "0"), 1).close()
        assertContains(refused("arm_kernels" to "quick"), "arm_kernels='quick' is not known")
        assertContains(refused("arm_kernels" to "faithful", "mlas.disable_kleidiai" to "0"), "contradict each other")
        assertContains(refused("int8_products" to "exact", "graph_optimization" to "basic"), "takes more than basic")
    }

    @Test
    fun `the probe tells what the kernels do, not which processor it is`() {
        val flags = File("/proc/cpuinfo").takeIf { it.isFile }?.useLines { lines ->
            lines.firstOrNull { it.startsWith("flags") || it.startsWith("Features") }
        }.orEmpty()
        val exact = "vnni" in flags || System.getProperty("os.arch") == "aarch64"
        assertEquals(!exact, Int8Products.saturating)
    }

    @Test
    fun `tensors hold what they say`() {
        assertFailsWith<IllegalArgumentException> { Tensor(TensorType.INT8, listOf(2), java.nio.ByteBuffer.allocate(2)) }
        assertFailsWith<IllegalArgumentException> { Tensor(TensorType.INT8, listOf(3), java.nio.ByteBuffer.allocateDirect(2)) }
        val error = assertFailsWith<EnvironmentException> { Tensor.zeros(TensorType.FLOAT32, listOf(1 shl 16, 1 shl 15)) }
        assertContains(error.problem, "a buffer holds at most")
        assertFalse(Tensor.zeros(TensorType.INT8, listOf(2, 3)).data.isReadOnly)
    }

    private fun open(name: String): EngineSession = engine.open(Fixtures.file("graphs/$name.onnx"), emptyMap(), 1)

    private fun EngineSession.run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        bind(inputs, outputs).use { it.run() }
    }

    private fun floats(vararg values: Float): Tensor =
        Tensor.zeros(TensorType.FLOAT32, listOf(values.size)).also { it.floats().put(values) }

    private fun Tensor.list(): List<Float> = List(count) { floats()[it] }
}
