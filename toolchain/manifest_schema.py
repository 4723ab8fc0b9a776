"""JSON Schema of `manifest.json`, made from the dataclasses of `pocketvlm.runtime.manifest`.

`python -m pocketvlm.toolchain.manifest_schema` writes runtime/manifest.schema.json anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from pocketvlm.runtime import manifest

SCHEMA_PATH = Path(manifest.__file__).with_name("manifest.schema.json")
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def manifest_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of this version's manifests.

    It states types and names, the form of QAIRT's version, and which variants must name a device. What else relates one
    value to another (paths that must be listed, ranges) is checked by `parse_manifest`. A reader of a newer minor version's
    manifest must pass over names that it does not know; this schema, being of one version, does not.
    """
    definitions: dict[str, Any] = {}
    root = _schema(manifest.Manifest, definitions)
    definitions["SchemaVersion"]["properties"]["major"] = {"const": manifest.SCHEMA_MAJOR}
    definitions["DeviceSpec"]["properties"]["qairt"]["pattern"] = f"^{manifest.QAIRT_VERSION}$"
    definitions["VariantSpec"] |= _device_of_npu()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"PocketVLM bundle manifest {manifest.SCHEMA_MAJOR}.{manifest.SCHEMA_MINOR}",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def dump_schema() -> str:
    """Text of manifest.schema.json."""
    return json.dumps(manifest_schema(), indent=1, ensure_ascii=False) + "\n"


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(item, definitions) for item in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(item, definitions) for item in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"type": _SCALARS[kind]}


def _device_of_npu() -> dict[str, Any]:
    """A variant whose engine, or that of one of its stages, is the NPU's names a device."""
    on_npu = {"properties": {"engine": {"const": manifest.NPU_ENGINE}}, "required": ["engine"]}
    some_stage = {"properties": {"stages": {"not": {"additionalProperties": {"not": on_npu}}}}, "required": ["stages"]}
    named = {"properties": {"device": {"type": "object"}}, "required": ["device"]}
    return {"if": {"anyOf": [on_npu, some_stage]}, "then": named}


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    summary = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    # Without a docstring, dataclass writes the signature there.
    description = {} if summary.startswith(f"{kind.__name__}(") else {"description": summary}
    return {
        **description,
        "type": "object",
        "properties": {item.name: _schema(hints[item.name], definitions) for item in fields},
        "required": [item.name for item in fields if item.default is missing and item.default_factory is missing],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    SCHEMA_PATH.write_text(dump_schema(), encoding="utf-8", newline="\n")
