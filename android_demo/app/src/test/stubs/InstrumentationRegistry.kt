// What Robolectric calls of androidx.test:monitor, which is an AAR of Google's repository: these files stand in for it.
package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

object InstrumentationRegistry {
    private var registered: Instrumentation? = null
    private var registeredArguments = Bundle()

    @JvmStatic
    fun registerInstance(instrumentation: Instrumentation?, arguments: Bundle?) {
        registered = instrumentation
        registeredArguments = arguments ?: Bundle()
    }

    @JvmStatic
    fun getInstrumentation(): Instrumentation = checkNotNull(registered)

    @JvmStatic
    fun getArguments(): Bundle = registeredArguments
}
