package dev.pocketvlm.demo.device

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import android.os.Debug
import android.os.PowerManager

/** The device that the app runs on. */
class SystemDevice(context: Context) : Device {
    private val activities = context.getSystemService(ActivityManager::class.java)
    private val power = context.getSystemService(PowerManager::class.java)

    override fun pssMb(): Double = Debug.getPss() / KIBI

    override fun thermal(): Thermal? =
        if (Build.VERSION.SDK_INT >= 29) Thermal.entries.getOrNull(power.currentThermalStatus) else null

    override val lowRam: Boolean get() = activities.isLowRamDevice

    override fun facts(): Map<String, Any?> = linkedMapOf(
        "manufacturer" to Build.MANUFACTURER,
        "model" to Build.MODEL,
        "soc" to if (Build.VERSION.SDK_INT >= 31) Build.SOC_MODEL else null,
        "android" to Build.VERSION.RELEASE,
        "api_level" to Build.VERSION.SDK_INT,
        "abi" to Build.SUPPORTED_ABIS.firstOrNull(),
        "processors" to Runtime.getRuntime().availableProcessors(),
        "memory_mb" to totalMemoryMb(),
        "pss_mb" to pssMb(),
        "thermal_status" to thermal()?.name?.lowercase(),
    )

    private fun totalMemoryMb(): Double {
        val memory = ActivityManager.MemoryInfo()
        activities.getMemoryInfo(memory)
        return memory.totalMem / KIBI / KIBI
    }

    private companion object {
        const val KIBI = 1024.0
    }
}
