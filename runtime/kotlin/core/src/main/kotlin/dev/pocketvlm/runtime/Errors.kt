package dev.pocketvlm.runtime

/**
 * Base of all errors that PocketVLM raises on purpose; the same tree, codes and exit codes as in Python (`pocketvlm.errors`).
 *
 * ```
 * PocketVlmException               exit code  code
 * ├── UsageException               2          usage
 * ├── BadInputException            3          bad_input
 * │   ├── BundleException          3          bad_bundle
 * │   ├── ImageException           3          bad_image
 * │   └── PromptException          3          bad_prompt
 * │       └── ContextLengthException 3        context_length
 * ├── EnvironmentException         5          environment
 * └── CancelledException           130        cancelled
 * ```
 *
 * @property problem what was wrong, and where. One line.
 * @property hint what the reader can do about it. One line, may be empty.
 */
public sealed class PocketVlmException(
    public val problem: String,
    public val hint: String,
    public val code: String,
    public val exitCode: Int,
    cause: Throwable? = null,
) : RuntimeException(if (hint.isEmpty()) problem else "$problem ($hint)", cause)

/** The call itself is wrong: an option outside its range, an unknown target, a session that is closed. */
public class UsageException(problem: String, hint: String = "") : PocketVlmException(problem, hint, "usage", 2)

/** Something that the caller handed over cannot be used. */
public sealed class BadInputException(problem: String, hint: String, code: String, cause: Throwable? = null) :
    PocketVlmException(problem, hint, code, 3, cause)

/** The bundle is incomplete, damaged, from a newer schema, or unsafe. */
public class BundleException(problem: String, hint: String = "", cause: Throwable? = null) :
    BadInputException(problem, hint, "bad_bundle", cause)

/** The image cannot be read, or is too large, empty or animated. */
public class ImageException(problem: String, hint: String = "", cause: Throwable? = null) :
    BadInputException(problem, hint, "bad_image", cause)

/** The conversation cannot be rendered: empty, an unknown role, an image where none may stand. */
public open class PromptException(problem: String, hint: String = "", code: String = "bad_prompt") :
    BadInputException(problem, hint, code)

/** The prompt is longer than the context; the message says by how many tokens. */
public class ContextLengthException(problem: String, hint: String = "") : PromptException(problem, hint, "context_length")

/** The surroundings failed: a library is missing, the disk is full, no such device. */
public class EnvironmentException(problem: String, hint: String = "", cause: Throwable? = null) :
    PocketVlmException(problem, hint, "environment", 5, cause)

/** The caller cancelled the work. */
public class CancelledException(problem: String) : PocketVlmException(problem, "", "cancelled", 130)
