package dev.pocketvlm.runtime

import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlinx.coroutines.ExecutorCoroutineDispatcher
import kotlinx.coroutines.asCoroutineDispatcher

/** One answer at a time per decoder. */
internal class Turn(private val decoder: Decoder) {
    private val executor = Executors.newSingleThreadExecutor { work -> Thread(work, "answer").apply { isDaemon = true } }
    private val lock = ReentrantLock()
    private val ended = lock.newCondition()
    private var active: Answer? = null

    /** The thread on which answers are made. */
    val dispatcher: ExecutorCoroutineDispatcher = executor.asCoroutineDispatcher()

    @Volatile
    var closed: Boolean = false
        private set

    /** Whether somebody has the turn. */
    val busy: Boolean get() = lock.withLock { active != null }

    /** Gives the turn to [answer]. */
    fun begin(answer: Answer): Unit = lock.withLock {
        if (closed) throw UsageException("the session is closed", "open it again")
        if (active != null) {
            throw UsageException(
                "the session is still answering another question",
                "read that answer to its end or stop it first, or open a second session",
            )
        }
        active = answer
    }

    /** Takes the turn back. */
    fun end(answer: Answer): Unit = lock.withLock {
        if (active === answer) {
            active = null
            ended.signalAll()
        }
    }

    /** Cancels that answer, and the engine's run in progress if it is that answer's. */
    fun cancel(answer: Answer) {
        answer.cancel()
        lock.withLock { if (active === answer) decoder.cancel() }
    }

    fun cancelActive() {
        lock.withLock { active }?.let(::cancel)
    }

    /**
     * Begins no answer any more, cancels the one in progress, and waits until the engine rests. Returns false where that was
     * done before.
     */
    fun close(): Boolean {
        lock.withLock {
            if (closed) return false
            closed = true
        }
        while (true) {
            cancelActive()
            val rests = lock.withLock {
                // A run that began just after it was cancelled is cancelled again.
                if (active != null) ended.await(CANCEL_AGAIN_MILLIS, TimeUnit.MILLISECONDS)
                active == null
            }
            if (rests) break
        }
        executor.shutdown()
        return true
    }

    private companion object {
        const val CANCEL_AGAIN_MILLIS = 100L
    }
}
