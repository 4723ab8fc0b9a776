package dev.pocketvlm.android

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.Debug
import android.os.PowerManager
import java.io.File
import java.io.IOException

/**
 * What a phone is. Needs no Context, so that a program under `app_process` can ask, too.
 *
 * @property soc name of the SoC, such as "SM8750"; null where nothing tells.
 * @property android version, such as "15".
 * @property abis instruction sets, the best first.
 * @property memoryMb all memory, in MiB; null where nothing tells.
 */
public data class DeviceFacts(
    val manufacturer: String,
    val model: String,
    val soc: String?,
    val android: String,
    val apiLevel: Int,
    val abis: List<String>,
    val processors: Int,
    val memoryMb: Double?,
) {
    /** For reports: names and values. */
    public fun toMap(): Map<String, Any?> = linkedMapOf(
        "manufacturer" to manufacturer,
        "model" to model,
        "soc" to soc,
        "android" to android,
        "api_level" to apiLevel,
        "abis" to abis,
        "processors" to processors,
        "memory_mb" to memoryMb,
    )

    public companion object {
        /** Those of the phone that this runs on. */
        public fun read(): DeviceFacts = DeviceFacts(
            manufacturer = Build.MANUFACTURER,
            model = Build.MODEL,
            soc = soc(),
            android = Build.VERSION.RELEASE,
            apiLevel = Build.VERSION.SDK_INT,
            abis = Build.SUPPORTED_ABIS.toList(),
            processors = Runtime.getRuntime().availableProcessors(),
            memoryMb = totalMemoryMb(File("/proc/meminfo")),
        )

        /** Memory of this process in MiB, its share of what it shares included. Takes some milliseconds. */
        public fun pssMb(): Double = Debug.getPss() / KIBI

        private fun soc(): String? {
            val told = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.S) Build.SOC_MODEL else property("ro.soc.model")
            return told?.takeUnless { it.isEmpty() || it == Build.UNKNOWN }
        }

        private fun property(name: String): String? = try {
            val process = ProcessBuilder("getprop", name).redirectErrorStream(true).start()
            process.outputStream.close()
            process.inputStream.bufferedReader().use { it.readText().trim() }
        } catch (_: IOException) {
            null
        }

        internal fun totalMemoryMb(file: File): Double? = try {
            file.useLines { lines -> lines.firstNotNullOfOrNull { TOTAL.matchEntire(it)?.groupValues?.get(1)?.toDouble() } }
        } catch (_: IOException) {
            null
        }?.let { it / KIBI }

        private val TOTAL = Regex("""MemTotal:\s+(\d+) kB""")
        private const val KIBI = 1024.0
    }
}

/** How hot a phone is, in Android's words and order. */
public enum class ThermalStatus { NONE, LIGHT, MODERATE, SEVERE, CRITICAL, EMERGENCY, SHUTDOWN }

/**
 * How a phone feels now. Figures of a hot phone, or of one that saves its battery, are not those of a rested one.
 *
 * @property thermal null before Android 10.
 * @property batteryPercent null where nothing tells.
 * @property batteryCelsius null where nothing tells.
 */
public data class DeviceState(
    val thermal: ThermalStatus?,
    val batteryPercent: Int?,
    val batteryCelsius: Double?,
    val charging: Boolean?,
    val powerSave: Boolean,
    val pssMb: Double,
) {
    /** For reports: names and values. */
    public fun toMap(): Map<String, Any?> = linkedMapOf(
        "thermal_status" to thermal?.name?.lowercase(),
        "battery_percent" to batteryPercent,
        "battery_celsius" to batteryCelsius,
        "charging" to charging,
        "power_save" to powerSave,
        "pss_mb" to pssMb,
    )

    public companion object {
        /** That of the phone that this runs on. Takes some milliseconds. */
        public fun read(context: Context): DeviceState {
            val power = context.getSystemService(PowerManager::class.java)
            // The last battery state is kept by the system; nothing is registered for the next ones.
            val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
            val level = battery.number(BatteryManager.EXTRA_LEVEL)
            val scale = battery.number(BatteryManager.EXTRA_SCALE)?.takeIf { it > 0 }
            return DeviceState(
                thermal = thermal(power),
                batteryPercent = if (level != null && scale != null) level * 100 / scale else null,
                batteryCelsius = battery.number(BatteryManager.EXTRA_TEMPERATURE)?.let { it / 10.0 },
                charging = battery.number(BatteryManager.EXTRA_PLUGGED)?.let { it != 0 },
                powerSave = power.isPowerSaveMode,
                pssMb = DeviceFacts.pssMb(),
            )
        }

        /** Null before Android 10. */
        public fun thermal(power: PowerManager): ThermalStatus? =
            if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) ThermalStatus.entries.getOrNull(power.currentThermalStatus) else null

        private fun Intent?.number(name: String): Int? = this?.getIntExtra(name, -1)?.takeIf { it >= 0 }
    }
}
