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
from pocketvlm.toolchain.commands.options import (
    BundlePath,
    CheckpointName,
    Debug,
    Json,
    OnceCommand,
    Revision,
    Target,
    config_option,
    device_option,
    file_option,
    output_option,
    path_of,
    text_of,
)
from pocketvlm.toolchain.interrupts import Terminated, cancelled
from pocketvlm.toolchain.recipe import MAX_CHUNK, MAX_CONTEXT

app = typer.Typer(
    help="Put a vision-language model on a phone: export a checkpoint to a bundle, and ask it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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

        app.command(name, cls=OnceCommand)(call)
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
    checkpoint: CheckpointName,
    output: Annotated[
        Path,
        output_option(
            "BUNDLE",
            "Directory to write. A bundle that is there is replaced once the new one is good; nothing else is.",
        ),
    ],
    config: Annotated[
        Path | None,
        config_option("Recipe with these and all other settings, such as those in export_configs/. Options override it."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="Compile target, as `pocketvlm list targets` names them; once for each. Without any the recipe's, or ort-cpu.",
        ),
    ] = None,
    precision: Annotated[
        Literal["paper", "fp32"] | None,
        typer.Option(help="paper, unless the recipe says otherwise: INT8 vision, INT4 decoder, INT8 cache. fp32: unquantized."),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_CONTEXT,
            metavar="N",
            help="Tokens that the KV cache holds, those of images included; by default as many as the model can take, up to "
            "a limit of the target.",
        ),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_CHUNK, metavar="N", help="Most tokens of one prefill call; 128 unless the recipe says otherwise."
        ),
    ] = None,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint into a phone bundle, and print the bundle's path."""
    from pocketvlm.toolchain.commands.export import export

    overrides = {"precision": precision, "max_seq_len": max_seq_len, "chunk_size": chunk_size}
    export(checkpoint, output, config, tuple(target or ()), overrides, revision)


@_command("tune")
def _tune(
    checkpoint: CheckpointName,
    target: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="NPU to tune for, such as qnn:SM8750. In the written recipe it replaces the only other target of its kind "
            "(qnn:*); where there are none or several of them it is added. All other targets stay.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        output_option(
            "RECIPE.yaml",
            "Recipe to write. One that this command wrote before is replaced, unless it has been edited; nothing else is.",
        ),
    ],
    config: Annotated[
        Path | None,
        config_option("Recipe to start from; what is not tuned stays as it is."),
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a recipe with the fastest settings for an NPU, by its compiler's own estimate.

    Tried on one layer of the model, which takes minutes: tiles at once, chunk size, form of attention, on-chip memory.
    Give the recipe to `pocketvlm export -c`. The estimates rank settings; they are no phone's speed.
    """
    from pocketvlm.toolchain.commands.tune import tune

    tune(checkpoint, target, output, config, revision, as_json)


@_command("run")
def _run(
    bundle: BundlePath,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Question; read from stdin if missing.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(parser=path_of, metavar="FILE", help="Image to ask about; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="F", help="0: always the likeliest token; higher: more varied. The checkpoint's own unless given."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Repeats the same random choices; without effect at --temperature 0.")
    ] = None,
    target: Target = None,
    trace: Annotated[
        Path | None, typer.Option(parser=path_of, metavar="FILE", help="Write what ran when (Chrome trace, for Perfetto).")
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
    image: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FILE",
            help="Measure questions about this image, not yet and already encoded, instead of text alone.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="About so many tokens of prompt; the image's come on top.")
    ] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Longest answer, in tokens.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Measured runs, after one that warms up.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads on the CPU; the engine's choice unless given.")
    ] = None,
    target: Target = None,
    device: Annotated[
        str,
        device_option(
            "Where to measure: host, this computer; adb, the phone or emulator that is connected; adb:SERIAL, one of several."
        ),
    ] = "host",
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="Longest run on another device; unless given, it grows with the repetitions."
        ),
    ] = None,
    runner: Annotated[
        Path | None,
        file_option("--runner", told="Jar of the runtime for Android; POCKETVLM_RUNNER, or this clone's build unless given."),
    ] = None,
    onnxruntime_android: Annotated[
        Path | None,
        file_option(
            "--onnxruntime-android",
            told="Archive (.aar) of ONNX Runtime for Android; POCKETVLM_ONNXRUNTIME_AAR, or what Maven or Gradle has fetched "
            "unless given.",
        ),
    ] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table instead of text.")] = False,
    debug: Debug = False,
) -> None:
    """Measure speed and memory on this computer or on a phone: median and standard deviation."""
    from pocketvlm.toolchain.commands.bench import bench
    from pocketvlm.toolchain.devices.report import BenchJob, Settings

    if as_json and markdown:
        raise UsageError("--json and --markdown exclude each other", "give one of them")
    settings = Settings(prompt_tokens, new_tokens, repetitions, threads, image.name if image else None)
    job = BenchJob(bundle, image, settings, target, timeout, runner, onnxruntime_android)
    bench(device, job, "json" if as_json else "markdown" if markdown else "table")


@_command("push")
def _push(
    bundle: BundlePath,
    device: Annotated[
        str, device_option("Where to: adb, the phone or emulator that is connected; adb:SERIAL, one of several.")
    ] = "adb",
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            parser=text_of,
            metavar="DIR",
            help="Folder on the device; /data/local/tmp/pocketvlm/ with the bundle's name unless given. A bundle that is there "
            "is replaced; nothing else is.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a bundle to a phone or an emulator; only what is missing or differs there travels.

    What was interrupted goes on where it stopped. The bundle can be opened there when all of it has arrived, not before.
    """
    from pocketvlm.toolchain.commands.push import push

    push(bundle, device, to, as_json)


@_command("inspect")
def _inspect(
    path: Annotated[
        str, typer.Argument(parser=text_of, metavar="BUNDLE|CHECKPOINT", help="Bundle, checkpoint directory or hub id.")
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
    target: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="Check what exporting for this target needs, too; otherwise only what running bundles needs."
        ),
    ] = None,
    phone_runtime: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="With --target: check that the phone's runtime of this version can load what is compiled here. "
            "For qnn:* the version of com.qualcomm.qti:qnn-runtime, or of QAIRT, such as 2.50.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        device_option(
            "Look at a phone or emulator, too: adb, the one that is connected; adb:SERIAL, one of several. "
            "With --target: whether it has that SoC."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine: packages, processor, memory, disk; and with --device a phone."""
    from pocketvlm.toolchain.commands.doctor import doctor

    doctor(target, phone_runtime, device, as_json)


@_command("list")
def _list(
    section: Annotated[Section | None, typer.Argument(help="Only one of the tables.", show_default=False)] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what this version knows."""
    from pocketvlm.toolchain.commands.listing import list_names

    list_names(section, as_json)
