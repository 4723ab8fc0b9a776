"""Runs a chat template, which is a stranger's program, in a process of its own with bounds on everything.

The child is this same module (`serve`): jinja2's immutable sandbox as transformers sets it up, stricter where that
costs no real template anything. It may use neither much memory nor the disk; the parent kills it when time is over.
"""

from __future__ import annotations

import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketvlm.errors import EnvironmentFault, TemplateError

MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
MAX_TEMPLATE_CHARACTERS = 1_000_000
START_LIMIT_S = 60.0
# The clock on the wall may run so much faster than the processor's: a busy machine is not the template's fault.
WALL_FACTOR = 20
# Templates that write today's date (Llama 3.1) get the date that theirs falls back to; exports stay reproducible.
TODAY = datetime(2024, 7, 26)
_HINT = "use a checkpoint whose chat template you trust, or replace the template"
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pocketvlm.toolchain.template_sandbox import serve; serve()"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the template made of one conversation: `text`, or `refusal`, why it raised an error."""

    text: str
    refusal: str | None = None


class SandboxedTemplate:
    """A compiled chat template in a child process. A context manager; leaving it ends the process.

    Args:
        template: jinja2 source.
        variables: further names for the template: bos_token, eos_token, ...
        time_limit_s: processor time of all renderings together, compilation included.
        output_limit: characters of one rendering.

    Raises:
        TemplateError: the template is too long, does not compile, or breaks a bound while compiling.
        EnvironmentFault: the child process does not start.
    """

    def __init__(self, template: str, variables: Mapping[str, str], time_limit_s: float, output_limit: int) -> None:
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateError(f"the chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters", _HINT)
        self._time_limit_s = time_limit_s
        self._output_limit = output_limit
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Nothing of the parent's environment (tokens, keys) is within the template's reach.
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,
            bufsize=0,
        )
        try:
            self._left_s = START_LIMIT_S
            if self._read(100) != {"ready": True}:
                raise EnvironmentFault("the process that runs chat templates did not start", "try again with more memory")
            self._left_s = WALL_FACTOR * time_limit_s
            self._ask(
                {"template": template, "variables": dict(variables), "output_limit": output_limit, "time_limit_s": time_limit_s}
            )
            answer = self._read(100_000)
            if "fault" in answer:
                raise TemplateError(f"the chat template {answer['fault']}", _HINT)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> SandboxedTemplate:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> Rendered:
        """Render one conversation.

        Raises:
            TemplateError: the template breaks a bound or reaches for what the sandbox forbids.
        """
        self._ask({"messages": list(messages), "add_generation_prompt": add_generation_prompt})
        # JSON may write a character in up to twelve bytes.
        answer = self._read(12 * self._output_limit + 100_000)
        if "fault" in answer:
            raise TemplateError(f"the chat template {answer['fault']}", _HINT)
        return Rendered(str(answer.get("text", "")), answer.get("refusal"))

    def _ask(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            self._fail_dead()

    def _read(self, limit: int) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = bytearray()
        deadline = time.monotonic() + self._left_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._fail_late()
                block = os.read(self._process.stdout.fileno(), 1 << 16)
                if not block:
                    self._fail_dead()
                line += block
                if len(line) > limit:
                    raise TemplateError(f"the chat template writes more than {self._output_limit} characters", _HINT)
        self._left_s = deadline - time.monotonic()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fail_late(self) -> NoReturn:
        raise TemplateError(f"the chat template does not finish within {self._time_limit_s:g} s", _HINT)

    def _fail_dead(self) -> NoReturn:
        try:
            died_of = self._process.wait(5)
        except subprocess.TimeoutExpired:
            died_of = 0
        if died_of == -signal.SIGXCPU:
            self._fail_late()
        raise TemplateError("the chat template makes the process that runs it crash", _HINT)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox prints a forbidden attribute as nothing; here it is an error at once."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's text for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


def compile_template(template: str) -> jinja2.Template:
    """Compile a chat template with the options, filters and globals that transformers gives it."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(template)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def serve() -> None:
    """The child process: JSON lines in, JSON lines out, until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    answer({"ready": True})
    head = json.loads(requests.readline())
    seconds = math.ceil(time.process_time() + head["time_limit_s"])
    # At the first of the two the process gets SIGXCPU, by which the parent knows what happened.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform != "darwin":  # which knows no bound for the address space
        limits[resource.RLIMIT_AS] = MEMORY_LIMIT_BYTES
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    try:
        template = compile_template(head["template"])
    except Exception as error:
        answer({"fault": _fault(error) or f"does not compile: {_one_line(error)}"})
        return
    answer({"compiled": True})
    for line in requests:
        request = json.loads(line)
        answer(_render(template, request, head["variables"], head["output_limit"]))


def _render(template: jinja2.Template, request: Mapping[str, Any], variables: Mapping[str, str], limit: int) -> dict[str, str]:
    blocks: list[str] = []
    size = 0
    try:
        for block in template.generate(
            **variables,
            messages=request["messages"],
            tools=None,
            documents=None,
            add_generation_prompt=request["add_generation_prompt"],
        ):
            blocks.append(block)
            size += len(block)
            if size > limit:
                return {"fault": f"writes more than {limit} characters"}
        return {"text": "".join(blocks)}
    except Exception as error:
        fault = _fault(error)
        return {"fault": fault} if fault else {"refusal": _one_line(error)}


def _fault(error: Exception) -> str | None:
    """What no honest template does; everything else may be its way to refuse a conversation."""
    if isinstance(error, SecurityError):
        return f"reaches for what the sandbox forbids: {_one_line(error)}"
    if isinstance(error, MemoryError):
        return f"needs more than {MEMORY_LIMIT_BYTES} bytes of memory"
    if isinstance(error, RecursionError | OverflowError):
        return f"computes without bounds: {_one_line(error)}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
