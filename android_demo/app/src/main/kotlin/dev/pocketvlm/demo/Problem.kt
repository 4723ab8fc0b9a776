package dev.pocketvlm.demo

import android.content.res.Resources
import dev.pocketvlm.runtime.PocketVlmException
import java.io.IOException

/** What went wrong, and what the reader can do about it. */
sealed interface Problem {
    /** One sentence: what was wrong. */
    fun message(resources: Resources): String

    /** What to do; may be empty. */
    fun hint(resources: Resources): String

    /** Told by the runtime, in its words. */
    data class Told(private val problem: String, private val hint: String) : Problem {
        override fun message(resources: Resources): String = problem.replaceFirstChar(Char::uppercase)

        override fun hint(resources: Resources): String = hint.replaceFirstChar(Char::uppercase)
    }

    /** Known to the app: ids of texts, and what stands in the message. */
    data class Known(private val message: Int, private val hint: Int, private val arguments: List<Any> = emptyList()) : Problem {
        override fun message(resources: Resources): String = resources.getString(message, *arguments.toTypedArray())

        override fun hint(resources: Resources): String = resources.getString(hint)
    }

    companion object {
        /** The problem that this error tells of; null for what is a mistake in the program. */
        fun of(error: Throwable): Problem? = when (error) {
            is ProblemException -> error.problem
            is PocketVlmException -> Told(error.problem, error.hint)
            is OutOfMemoryError -> Known(R.string.problem_memory, R.string.problem_memory_hint)
            is IOException -> Told(error.message ?: error.javaClass.simpleName, "")
            else -> null
        }
    }
}

/** Carries a [Problem] to where it is shown. */
class ProblemException(val problem: Problem, cause: Throwable? = null) : IOException(problem.toString(), cause)

/** Runs [work]; what a user can understand goes to [report], a mistake in the program is thrown on. */
inline fun reporting(report: (Problem) -> Unit, work: () -> Unit) {
    try {
        work()
    } catch (error: java.util.concurrent.CancellationException) {
        throw error
    } catch (error: Throwable) {
        report(Problem.of(error) ?: throw error)
    }
}
