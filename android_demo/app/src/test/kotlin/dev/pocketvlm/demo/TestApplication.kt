package dev.pocketvlm.demo

import dev.pocketvlm.android.BitmapCodec
import dev.pocketvlm.android.ThermalStatus
import dev.pocketvlm.demo.device.Device
import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.Memory

/** The app with the platform's pieces that a test decides on. */
class TestApplication : DemoApplication() {
    val testDevice = FakeDevice()

    /** Room that an import finds. */
    var free = Long.MAX_VALUE

    override fun createPlatform(): Platform =
        Platform(BitmapCodec(), Memory.DIRECT, Engines.standard(), testDevice, freeBytes = { free })
}

class FakeDevice : Device {
    var hot: ThermalStatus? = ThermalStatus.NONE

    override fun pssMb(): Double = 123.4

    override fun thermal(): ThermalStatus? = hot

    override val lowRam: Boolean = false

    override fun facts(): Map<String, Any?> = linkedMapOf(
        "manufacturer" to "Example",
        "model" to "Phone 1",
        "soc" to "SM8750",
        "android" to "15",
        "api_level" to 35,
        "memory_mb" to 11_430.0,
    )
}
