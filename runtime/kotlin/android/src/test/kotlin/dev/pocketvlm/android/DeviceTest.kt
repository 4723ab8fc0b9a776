package dev.pocketvlm.android

import android.content.Intent
import android.os.BatteryManager
import android.system.ErrnoException
import android.system.OsConstants
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.TensorType
import dev.pocketvlm.runtime.engine.Tensor
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowBuild
import org.robolectric.shadows.ShadowSharedMemory

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class DeviceTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val context = RuntimeEnvironment.getApplication()

    @Test
    fun `a tensor lies in shared memory, in zeros and native order`() {
        val tensor = Tensor.zeros(TensorType.INT8, listOf(1, 2, 64, 3), SharedMemoryBuffers)
        assertEquals(384, tensor.data.limit())
        assertTrue((0 until 384).all { tensor.data[it] == 0.toByte() })
        tensor.data.put(383, 7)
        assertEquals(7, tensor.view(320, listOf(64)).data[63])
        assertEquals(0, Tensor.zeros(TensorType.FLOAT32, listOf(0), SharedMemoryBuffers).count)
    }

    @Test
    fun `where there is no room, it says so as other memory does`() {
        ShadowSharedMemory.setCreateShouldThrow(ErrnoException("ashmem_create_region", OsConstants.ENOMEM))
        try {
            val error = assertFailsWith<EnvironmentException> { Tensor.zeros(TensorType.INT8, listOf(4096), SharedMemoryBuffers) }
            assertTrue("4096 bytes" in error.problem, error.problem)
        } finally {
            ShadowSharedMemory.setCreateShouldThrow(null)
        }
    }

    @Test
    fun `what the phone is`() {
        ShadowBuild.setModel("Trial")
        ShadowBuild.setManufacturer("Nobody")
        val facts = DeviceFacts.read()
        assertEquals("Trial", facts.model)
        assertEquals("Nobody", facts.manufacturer)
        assertEquals(35, facts.apiLevel)
        assertTrue(facts.processors > 0 && facts.abis.isNotEmpty())
        assertEquals(facts.toMap()["soc"], facts.soc)
        // Robolectric's says "unknown", as a phone without the property does.
        assertNull(facts.soc)
    }

    @Test
    fun `memory is read from meminfo`() {
        val file = folder.newFile()
        file.writeText("MemFree: 12 kB\nMemTotal:        7862272 kB\n")
        assertEquals(7678.0, DeviceFacts.totalMemoryMb(file))
        file.writeText("nothing of use\n")
        assertNull(DeviceFacts.totalMemoryMb(file))
        assertNull(DeviceFacts.totalMemoryMb(File(folder.root, "missing")))
    }

    @Test
    fun `how the phone feels`() {
        @Suppress("DEPRECATION")
        context.sendStickyBroadcast(
            Intent(Intent.ACTION_BATTERY_CHANGED)
                .putExtra(BatteryManager.EXTRA_LEVEL, 41)
                .putExtra(BatteryManager.EXTRA_SCALE, 50)
                .putExtra(BatteryManager.EXTRA_TEMPERATURE, 345)
                .putExtra(BatteryManager.EXTRA_PLUGGED, BatteryManager.BATTERY_PLUGGED_USB),
        )
        val state = DeviceState.read(context)
        assertEquals(82, state.batteryPercent)
        assertEquals(34.5, state.batteryCelsius)
        assertEquals(true, state.charging)
        assertEquals(ThermalStatus.NONE, assertNotNull(state.thermal))
        assertEquals("none", state.toMap()["thermal_status"])
    }

    @Test
    fun `a phone that tells nothing about its battery`() {
        val state = DeviceState.read(context)
        assertNull(state.batteryPercent)
        assertNull(state.charging)
    }
}
