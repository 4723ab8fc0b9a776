"""The one exception tree of PocketVLM.

    PocketVLMError                 exit code  code
    ├── UsageError                 2          usage
    │   └── SettingError           2          usage
    ├── BadInputError              3          bad_input
    │   ├── CheckpointError        3          bad_checkpoint
    │   ├── RecipeError            3          bad_recipe
    │   ├── BundleError            3          bad_bundle
    │   ├── ImageError             3          bad_image
    │   ├── PromptError            3          bad_prompt
    │   │   └── ContextLengthError 3          context_length
    │   └── TemplateError          3          bad_chat_template
    ├── GateError                  4          gate_failed
    ├── EnvironmentFault           5          environment
    └── Cancelled                  130        cancelled

Every error carries a `message` (what was wrong and where) and a `hint` (what to do about it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PocketVLMError(Exception):
    """Base of all errors that PocketVLM raises on purpose.

    Args:
        message: what was wrong, and where. One line.
        hint: what the reader can do about it. One line, may be empty.
        report: what was found nevertheless: a program that asked for JSON gets it in one object with the error.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, hint: str = "", *, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.report = report or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PocketVLMError):
    """The command or call itself is wrong: options that exclude each other, an unknown target."""

    exit_code = 2
    code = "usage"


class SettingError(UsageError):
    """A setting of an export that the target or the model cannot follow.

    Args:
        key: the setting, as a recipe names it ("qnn.vtcm_mb").
        message, hint: in the words of a recipe. Settings that are options of the command line, too, stand in backquotes
            (`max_seq_len`): the command names the option where that was used.
    """

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.key = key


class BadInputError(PocketVLMError):
    """Something that the user handed over cannot be used."""

    exit_code = 3
    code = "bad_input"


class CheckpointError(BadInputError):
    """The checkpoint directory is incomplete, damaged, inconsistent or of an unknown kind."""

    code = "bad_checkpoint"


class RecipeError(BadInputError):
    """The export recipe is not valid."""

    code = "bad_recipe"


class BundleError(BadInputError):
    """The bundle is incomplete, damaged, from a newer schema, or unsafe."""

    code = "bad_bundle"


class ImageError(BadInputError):
    """The image cannot be read, or is too large, empty or animated."""

    code = "bad_image"


class PromptError(BadInputError):
    """The conversation cannot be rendered: empty, an unknown role, an image where none may stand."""

    code = "bad_prompt"


class ContextLengthError(PromptError):
    """The prompt is longer than the context; the message says by how many tokens."""

    code = "context_length"


class TemplateError(BadInputError):
    """The checkpoint's chat template is hostile, fails, or cannot be expressed as prompt data."""

    code = "bad_chat_template"


class GateError(PocketVLMError):
    """A quality, placement or verification threshold was missed."""

    exit_code = 4
    code = "gate_failed"


class EnvironmentFault(PocketVLMError):
    """The surroundings failed: a package is missing, the disk is full, no such device."""

    exit_code = 5
    code = "environment"


class Cancelled(PocketVLMError):
    """The caller cancelled the work."""

    exit_code = 130
    code = "cancelled"
