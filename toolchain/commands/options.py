"""Arguments and options that several commands have, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pocketvlm.errors import UsageError
from pocketvlm.toolchain.devices import split


def text_of(text: str) -> str:
    """An argument that may not be empty."""
    if not text:
        raise typer.BadParameter("it is empty")
    return text


def path_of(text: str) -> Path:
    """The path of a file or folder."""
    # Path("") would be the current folder.
    return Path(text_of(text))


def variant_of(text: str) -> str:
    """A variant of a bundle, "T", or two of them, "T1+T2"."""
    if "" in text.split("+"):
        raise typer.BadParameter(f"{text!r} lacks a target; write T, or T1+T2")
    return text


def device_of(text: str) -> str:
    """A device, "adb:R5CT"; what stands behind the colon is its kind's business."""
    split(text)
    return text


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice where it can heed one only. Click would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does.

        Raises:
            UsageError: such an option was given twice.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        for parameter in order:
            count = order.count(parameter)
            if count > 1 and not (getattr(parameter, "multiple", False) or getattr(parameter, "is_flag", False)):
                times = "twice" if count == 2 else f"{count} times"
                name = max(parameter.opts, key=len)
                raise UsageError(f"{name} was given {times}", f"give it once; see `{ctx.command_path} --help`")
        return rest


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
CheckpointName = Annotated[
    str, typer.Argument(parser=text_of, metavar="CHECKPOINT", help="Checkpoint directory, or hub id (owner/name).")
]
Revision = Annotated[str | None, typer.Option(metavar="R", help="Branch, tag or commit of a hub id.")]
BundlePath = Annotated[
    Path, typer.Argument(parser=path_of, metavar="BUNDLE", help="Bundle: a directory or a zip.", show_default=False)
]
Target = Annotated[
    str | None,
    typer.Option(
        parser=variant_of,
        metavar="T",
        help="Variant to use, by its target or name (see `pocketvlm inspect`); unless given, the first that runs here. "
        "An NPU that is only emulated here is used only when it is named. T1+T2: vision from T1, language model from T2.",
    ),
]


def config_option(told: str) -> Any:
    """The recipe to read."""
    return typer.Option("-c", "--config", parser=path_of, metavar="RECIPE.yaml", help=told)


def output_option(metavar: str, told: str) -> Any:
    """The place to write to."""
    return typer.Option("-o", "--output", parser=path_of, metavar=metavar, help=told, show_default=False)


def device_option(told: str) -> Any:
    """A device, by its kind and address."""
    return typer.Option(parser=device_of, metavar="D", help=told)


def file_option(*names: str, told: str) -> Any:
    """A file to read."""
    return typer.Option(*names, parser=path_of, metavar="FILE", help=told)
