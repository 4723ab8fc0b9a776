"""Strict JSON -> frozen dataclasses, by their type hints."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from typing import Any, Literal, Union

from pocketvlm.errors import PocketVLMError

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 4, 4, 80, 80


def decode(kind: Any, value: Any, where: str, error: type[PocketVLMError], *, ignore_unknown: bool = False) -> Any:
    """Turn plain JSON `value` into `kind` (a dataclass, tuple, dict, Literal, union or scalar).

    Args:
        where: path of the value, for messages ("manifest.json.tiling.alpha").
        error: exception class to raise.
        ignore_unknown: accept keys that `kind` does not have.

    Raises:
        error: a missing or unknown key (with the nearest known one), or a value of the wrong type.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where, error, ignore_unknown)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments or type(value) not in {type(item) for item in arguments}:
            raise error(f"{where}: {_show(value)} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            if option is type(None) and value is None:
                return None
            try:
                return decode(option, value, where, error, ignore_unknown=ignore_unknown)
            except error:
                continue
        raise error(f"{where}: {_show(value)} has the wrong type")
    if origin is tuple:
        return _decode_tuple(arguments, value, where, error, ignore_unknown)
    if origin is dict:
        if not isinstance(value, dict):
            raise error(f"{where}: expected an object, found {_show(value)}")
        return {
            key: decode(arguments[1], item, f"{where}.{key}", error, ignore_unknown=ignore_unknown)
            for key, item in value.items()
        }
    return _decode_scalar(kind, value, where, error)


def _decode_dataclass(kind: Any, value: Any, where: str, error: type[PocketVLMError], ignore_unknown: bool) -> Any:
    if not isinstance(value, dict):
        raise error(f"{where}: expected an object, found {_show(value)}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in value:
        if key not in fields and not ignore_unknown:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise error(f"{where}: unknown key {key!r}", hint)
    found: dict[str, Any] = {}
    for name, item in fields.items():
        if name in value:
            found[name] = decode(hints[name], value[name], f"{where}.{name}", error, ignore_unknown=ignore_unknown)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise error(f"{where}: {name!r} is missing, and must be there")
    return kind(**found)


def _decode_tuple(arguments: Any, value: Any, where: str, error: type[PocketVLMError], ignore_unknown: bool) -> Any:
    if not isinstance(value, list):
        raise error(f"{where}: expected a list, found {_show(value)}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        kinds = list(arguments)
    else:
        raise error(f"{where}: expected {len(arguments)} values, found {len(value)}")
    return tuple(
        decode(kind, item, f"{where}[{index}]", error, ignore_unknown=ignore_unknown)
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_scalar(kind: Any, value: Any, where: str, error: type[PocketVLMError]) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise error(f"{where}: {_show(value)} is not a finite number")
        return number
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(f"{where}: expected {kind.__name__}, found {_show(value)}")
    return value


def _show(value: Any) -> str:
    # Never the whole of it: YAML's aliases can make a value that is small in the file and endless when it is spelled out.
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
