package dev.pocketvlm.demo.device

import dev.pocketvlm.android.ThermalStatus

/** What the app reads from the system. */
interface Device {
    /** Memory of this process in MiB, its share of what it shares included. Takes some milliseconds: not for a main thread. */
    fun pssMb(): Double

    /** How hot the device is; null where the system does not tell. */
    fun thermal(): ThermalStatus?

    /** Whether the device has little memory for its kind. */
    val lowRam: Boolean

    /** For reports: names and values. Takes some milliseconds, too. */
    fun facts(): Map<String, Any?>
}
