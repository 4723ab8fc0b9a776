"""Commands, arguments and options. What a command does is in the module of its name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pocketvlm import __version__
from pocketvlm.errors import UsageError
from pocketvlm.toolchain.interrupts import Terminated, cancelled
from pocketvlm.toolchain.recipe import MAX_CHUNK, MAX_CONTEXT

app = typer.Typer(
    help="Put a vision-language model on a phone: export a checkpoint to a bundle, and ask it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _text(text: str) -> str:
    if not text:
        raise typer.BadParameter("it is empty")
    return text


def _path(text: str) -> Path:
    # Path("") would be the current folder.
    return Path(_text(text))


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BundlePath = Annotated[
    Path, typer.Argument(parser=_path, metavar="BUNDLE", help="Bundle: a directory or a zip.", show_default=False)
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="Variant to use; the first that runs here unless given. T1+T2: vision from T1, language model from T2.",
    ),
]
Section = Literal["architectures", "connectors", "tilings", "targets"]


class ReaderGoneError(Exception):
    """Whoever read our output has closed it."""


def run_command(arguments: Sequence[str]) -> int:
    """Parse `arguments` and run the command.

    Raises:
        ReaderGoneError: stdout or stderr was closed.
        PocketVLMError, or what typer raises for wrong usage: the command failed.
    """
    try:
        return app(args=list(arguments), prog_name="pocketvlm", standalone_mode=False) or 0
    except Terminated:
        raise
    except SystemExit as error:
        # Typer's own answer to a closed pipe, when it prints help; no command exits this way.
        raise ReaderGoneError from error


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command. Typer has its own answers to Ctrl-C and closed pipes; ours must come first."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> None:
            try:
                function(*arguments, **options)
                sys.stdout.flush()
            except BrokenPipeError as error:
                raise ReaderGoneError from error
            except KeyboardInterrupt as error:
                raise cancelled() from error

        app.command(name)(call)
        return call

    return register


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@_command("export")
def _export(
    checkpoint: Annotated[
        str, typer.Argument(parser=_text, metavar="CHECKPOINT", help="Checkpoint directory, or hub id (owner/name).")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=_path, metavar="BUNDLE", help="Directory to write.", show_default=False)
    ],
    config: Annotated[
        Path | None, typer.Option("-c", "--config", parser=_path, metavar="RECIPE.yaml", help="Recipe; options override it.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(metavar="T", help="Compile target; may be repeated.")] = None,
    precision: Annotated[
        Literal["paper", "fp32"] | None, typer.Option(help="paper: INT8 vision, INT4 decoder, INT8 cache; fp32: unquantized.")
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=1, max=MAX_CONTEXT, metavar="N", help="Capacity of the KV cache.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, max=MAX_CHUNK, metavar="N", help="Most tokens of one prefill call.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="R", help="Branch, tag or commit of a hub id.")] = None,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint into a phone bundle."""
    from pocketvlm.toolchain.commands.export import export

    overrides = {"precision": precision, "max_seq_len": max_seq_len, "chunk_size": chunk_size}
    export(checkpoint, output, config, tuple(target or ()), overrides, revision)


@_command("tune")
def _tune(
    checkpoint: Annotated[
        str, typer.Argument(parser=_text, metavar="CHECKPOINT", help="Checkpoint directory, or hub id (owner/name).")
    ],
    target: Annotated[str, typer.Option(metavar="T", help="Compile target.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=_path, metavar="RECIPE.yaml", help="Recipe to write.", show_default=False)
    ],
    config: Annotated[
        Path | None, typer.Option("-c", "--config", parser=_path, metavar="RECIPE.yaml", help="Recipe to start from.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="R", help="Branch, tag or commit of a hub id.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rank batch, chunk size and layer pattern for an NPU by its compiler's own estimate."""
    from pocketvlm.toolchain.commands.tune import tune

    tune(checkpoint, target, output, config, revision, as_json)


@_command("run")
def _run(
    bundle: BundlePath,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Question; read from stdin if missing.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(parser=_path, metavar="FILE", help="Image to ask about; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="F", help="0 is greedy; the checkpoint's own unless given.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of the sampling.")] = None,
    target: Target = None,
    trace: Annotated[
        Path | None, typer.Option(parser=_path, metavar="FILE", help="Write what ran when (Chrome trace, for Perfetto).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask one question; the answer streams to stdout."""
    from pocketvlm.toolchain.commands.run import run

    run(bundle, prompt, image or [], max_new_tokens, temperature, seed, target, trace, as_json)


@_command("chat")
def _chat(bundle: BundlePath, target: Target = None, debug: Debug = False) -> None:
    """Talk in several turns.

    Lines that begin with a slash are commands: /image FILE shows an image with the next question, /new forgets the
    conversation, /help lists them, /quit ends. Ctrl-C stops an answer, Ctrl-D ends. Of lines from
    a file or pipe, the first that cannot be used ends it.
    """
    from pocketvlm.toolchain.commands.chat import chat

    chat(bundle, target)


@_command("bench")
def _bench(
    bundle: BundlePath,
    image: Annotated[Path | None, typer.Option(parser=_path, metavar="FILE", help="Measure with this image, too.")] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="About so many tokens of prompt beside the image.")
    ] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Longest answer.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Measured runs, after one that warms up.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; the engine's choice unless given.")] = None,
    target: Target = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    debug: Debug = False,
) -> None:
    """Measure speed and memory: median and standard deviation."""
    from pocketvlm.toolchain.commands.bench import bench

    if as_json and markdown:
        raise UsageError("--json and --markdown exclude each other", "give one of them")
    bench(
        bundle,
        image,
        prompt_tokens,
        new_tokens,
        repetitions,
        threads,
        target,
        "json" if as_json else "markdown" if markdown else "table",
    )


@_command("inspect")
def _inspect(
    path: Annotated[
        str, typer.Argument(parser=_text, metavar="BUNDLE|CHECKPOINT", help="Bundle, checkpoint directory or hub id.")
    ],
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Only show how such an image is cut.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a bundle, or what a checkpoint would become."""
    from pocketvlm.toolchain.commands.inspect import inspect

    inspect(path, size, as_json)


@_command("verify")
def _verify(bundle: BundlePath, as_json: Json = False, debug: Debug = False) -> None:
    """Check hashes, schema, and every stage's numbers.

    A stage that cannot run here (one for another device, or one that the emulation of its device cannot run) is named and
    not compared. Exit code 4: a stage gives other numbers than at export; 5: not one stage can run here.
    """
    from pocketvlm.toolchain.commands.verify import verify

    verify(bundle, as_json)


@_command("doctor")
def _doctor(
    target: Annotated[str | None, typer.Option(metavar="T", help="Check what exporting for this target needs.")] = None,
    phone_runtime: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Version of the target's runtime on the phone (qnn: of qnn-runtime or QAIRT)."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine: packages, processor, memory, disk."""
    from pocketvlm.toolchain.commands.doctor import doctor

    doctor(target, phone_runtime, as_json)


@_command("list")
def _list(
    section: Annotated[Section | None, typer.Argument(help="Only one of the tables.", show_default=False)] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what this version knows."""
    from pocketvlm.toolchain.commands.listing import list_names

    list_names(section, as_json)
