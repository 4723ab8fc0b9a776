package dev.pocketvlm.demo

import android.content.Context
import dev.pocketvlm.demo.bundles.BundleCatalogue
import dev.pocketvlm.demo.bundles.BundleImporter
import dev.pocketvlm.demo.bundles.BundleStore
import dev.pocketvlm.demo.bundles.Imports
import dev.pocketvlm.demo.bundles.PushedBundles
import dev.pocketvlm.demo.device.Device
import dev.pocketvlm.demo.images.PictureReader
import dev.pocketvlm.demo.session.Preferences
import dev.pocketvlm.demo.session.SessionHolder
import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.Memory
import dev.pocketvlm.runtime.image.ImageCodec
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob

/**
 * What depends on the platform; tests put other ones in.
 *
 * @property codec opens and writes image files.
 * @property memory where the KV cache lies.
 * @property engines what runs graphs; with Qualcomm's libraries in the variant for its NPU.
 * @property device what is read from the system.
 * @property freeBytes room on the volume of a folder.
 */
class Platform(
    val codec: ImageCodec,
    val memory: Memory,
    val engines: Engines,
    val device: Device,
    val freeBytes: (File) -> Long = File::getUsableSpace,
)

/** What the screens share, made by hand: there is one of each per process. */
class AppContainer(context: Context, val platform: Platform) {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)

    val device: Device = platform.device

    /** Imported bundles. A half import of a process that was killed goes away here. */
    val store: BundleStore = BundleStore(File(context.noBackupFilesDir, "bundles")).also { it.recover() }

    val pushed: PushedBundles = PushedBundles(context.getExternalFilesDir("bundles"))

    val sessions: SessionHolder = SessionHolder(scope, store, platform, Preferences(context))

    val catalogue: BundleCatalogue = BundleCatalogue(store, platform.engines)

    val imports: Imports = Imports(scope, BundleImporter(store, platform.freeBytes), sessions)

    val pictures: PictureReader = PictureReader(context.contentResolver)
}

/** The process's container. */
val Context.container: AppContainer get() = (applicationContext as DemoApplication).container
