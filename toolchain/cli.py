"""The `pocketvlm` program: runs a command and turns whatever happens into an exit code and one line.

Exit codes: 0 done, 1 a bug of ours, 2 usage, 3 bad input, 4 a gate failed, 5 environment, 130 interrupted; and what a shell
reports for SIGPIPE and SIGTERM: 141 when the reader of our output has gone, 143 when the program was told to end. The commands
are in `commands/application.py`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence

from pocketvlm.errors import EnvironmentFault, PocketVLMError, PromptError, UsageError
from pocketvlm.toolchain.disk import FULL
from pocketvlm.toolchain.interrupts import TERMINATED, cancelled, interrupted, noting_interrupts, terminated

_READER_GONE = 141
# What the system says about a path before anyone can tell whether something is there.
_UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
_CLI_PACKAGES = ("typer", "rich", "psutil")
# What they need holds all that the command line needs.
_EXPORTING = ("export", "tune")
_NPU_TARGET = re.compile(r"\bqnn:S\w+")
# ONNX Runtime 1.29.0 crashes when it is imported into a process whose command line is longer than 32 KiB.
_MOST_ARGUMENT_BYTES = 30_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; those of the process unless given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    flags = given[: given.index("--")] if "--" in given else given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character is no reason to lose an answer.
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_length(given)
        from pocketvlm.toolchain.commands.application import ReaderGoneError, run_command

        try:
            with noting_interrupts():
                code = run_command(given)
                # What a signal raises inside a callback of an extension goes no further than that.
                return TERMINATED if terminated() else code
        except ReaderGoneError:
            return _leave_quietly()
    except BaseException as caught:
        unexpected = not isinstance(caught, PocketVLMError) and interrupted()
        error = cancelled() if unexpected else caught
        try:
            return _report(error, flags)
        except BrokenPipeError:
            return _leave_quietly()


def _check_length(arguments: Sequence[str]) -> None:
    length = sum(len(os.fsencode(argument)) + 1 for argument in arguments)
    if length > _MOST_ARGUMENT_BYTES:
        raise PromptError(
            f"the command line holds {length} bytes, more than {_MOST_ARGUMENT_BYTES}",
            "give a long prompt on stdin: pocketvlm run BUNDLE < prompt.txt",
        )


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    code, exit_code, message, hint = _describe(error, arguments)
    try:
        if "--json" in arguments:
            report = dict(error.report) if isinstance(error, PocketVLMError) else {}
            found = report | {"error": {"code": code, "message": message, "hint": hint}}
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        # That the output takes no more is the very error that is reported here.
        _discard_output()
    sys.stderr.write(_one_line(f"error: {message}" + (f" ({hint})" if hint else "")) + "\n")
    sys.stderr.flush()
    return exit_code


def _describe(error: BaseException, arguments: Sequence[str]) -> tuple[str, int, str, str]:
    """Code, exit code, message and hint of any exception."""
    if not isinstance(error, PocketVLMError):
        error = _translate(error, arguments)
    if isinstance(error, PocketVLMError):
        return error.code, error.exit_code, error.message, error.hint
    first_line = str(error).partition("\n")[0]
    hint = "this is a bug of PocketVLM: please report it with what --debug prints"
    return "bug", 1, f"{type(error).__name__}: {first_line}", hint


def _translate(error: BaseException, arguments: Sequence[str]) -> BaseException:
    """Exceptions of Python and its libraries that are no bugs -> our own kinds."""
    if isinstance(error, KeyboardInterrupt):
        return cancelled()
    if isinstance(error, MemoryError):
        return EnvironmentFault("not enough memory", "close other programs, or use a machine with more")
    if isinstance(error, OSError) and error.errno in FULL:
        return EnvironmentFault(f"{error.filename or 'output'}: no space left on the device", "free some space")
    if isinstance(error, OSError) and error.errno in _UNREACHABLE and error.filename:
        return EnvironmentFault(f"{error.filename}: {error.strerror}", "check the path and its permissions")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("pocketvlm"):
        package = error.name.partition(".")[0]
        extras = _extras(package, arguments)
        return EnvironmentFault(
            f"the package {package} is not installed", f"pip install 'pocketvlm[{extras}]'; in a clone: '.[{extras}]'"
        )
    if getattr(error, "exit_code", None) == UsageError.exit_code and hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        program = context.command_path if context is not None else "pocketvlm"
        return UsageError(error.format_message().replace("Value error, ", "").rstrip("."), f"see `{program} --help`")
    return error


def _extras(package: str, arguments: Sequence[str]) -> str:
    """All that this command needs, so that the user need not come back for what is missing next."""
    exports = package not in _CLI_PACKAGES or (bool(arguments) and arguments[0] in _EXPORTING)
    found = ["export" if exports else "cli"]
    if any(_NPU_TARGET.search(argument) for argument in arguments):
        found.append("qnn")
    return ",".join(found)


def _one_line(text: str) -> str:
    """`text` without line breaks, and without control characters that could steer a terminal."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text)
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in joined)


def _leave_quietly() -> int:
    """Nobody reads us any more."""
    _discard_output()
    return _READER_GONE


def _discard_output() -> None:
    """Keep Python from saying that the output takes no more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
