package dev.pocketvlm.demo.device

/** How hot the device is, as Android tells: the order is that of its constants. */
enum class Thermal { NONE, LIGHT, MODERATE, SEVERE, CRITICAL, EMERGENCY, SHUTDOWN }

/** What the app reads from the system. */
interface Device {
    /** Proportional set size of this process in MiB. Takes some milliseconds: not for a main thread. */
    fun pssMb(): Double

    /** Null where the system does not tell. */
    fun thermal(): Thermal?

    /** Whether the device has little memory for its kind. */
    val lowRam: Boolean

    /** For reports: names and values. */
    fun facts(): Map<String, Any?>
}
