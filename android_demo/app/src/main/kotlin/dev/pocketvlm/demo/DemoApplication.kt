package dev.pocketvlm.demo

import android.app.Application
import dev.pocketvlm.android.BitmapCodec
import dev.pocketvlm.android.SharedMemoryBuffers
import dev.pocketvlm.demo.device.QualcommNpu
import dev.pocketvlm.demo.device.SystemDevice
import dev.pocketvlm.runtime.engine.Engines

/** The process. Everything that lives as long is in its [container]. */
open class DemoApplication : Application() {
    lateinit var container: AppContainer
        private set

    override fun onCreate() {
        super.onCreate()
        container = AppContainer(this, createPlatform())
        container.sessions.restore()
    }

    /** What the device has; tests put other parts in. */
    protected open fun createPlatform(): Platform =
        Platform(BitmapCodec(), SharedMemoryBuffers, Engines.standard(QualcommNpu.find(this)), SystemDevice(this))

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        container.sessions.trim(level)
    }
}
