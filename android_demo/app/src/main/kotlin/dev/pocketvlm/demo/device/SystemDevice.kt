package dev.pocketvlm.demo.device

import android.app.ActivityManager
import android.content.Context
import android.os.PowerManager
import dev.pocketvlm.android.DeviceFacts
import dev.pocketvlm.android.DeviceState
import dev.pocketvlm.android.ThermalStatus

/** The device that the app runs on. */
class SystemDevice(private val context: Context) : Device {
    private val power = context.getSystemService(PowerManager::class.java)

    override fun pssMb(): Double = DeviceFacts.pssMb()

    override fun thermal(): ThermalStatus? = DeviceState.thermal(power)

    override val lowRam: Boolean get() = context.getSystemService(ActivityManager::class.java).isLowRamDevice

    override fun facts(): Map<String, Any?> = DeviceFacts.read().toMap() + DeviceState.read(context).toMap()
}
