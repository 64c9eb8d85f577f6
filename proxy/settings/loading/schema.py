"""JSON Schema of the configuration file, for editors; committed as `config/schema.json`."""

from __future__ import annotations

from typing import Any

from proxy.settings.server import Settings

_VARIABLE = {"$ref": "#/$defs/Variable"}
_SCALARS = frozenset({"string", "integer", "number", "boolean"})


def json_schema() -> dict[str, Any]:
    """Return the schema: names as in the file, units as text, `${…}` for any single value, no unknown keys."""
    schema = _for_file(Settings.model_json_schema(by_alias=True))
    assert isinstance(schema, dict)
    schema["$defs"]["Variable"] = {
        "description": "Text with environment variables in it: ${NAME} or ${NAME:-default}.",
        "type": "string",
        "pattern": r"\$\{",
    }
    schema["$defs"] = dict(sorted(schema["$defs"].items()))
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "forward-sse configuration",
        "description": "What an operator can set; docs/configuration.md explains every key.",
    }
    return {**head, **{key: value for key, value in schema.items() if key not in head}}


def _for_file(node: Any, *, is_names: bool = False) -> Any:
    """Adapt one node of pydantic's schema to the file; `is_names`: its keys are names, not keywords."""
    if isinstance(node, list):
        return [_for_file(item) for item in node]
    if not isinstance(node, dict):
        return node
    if is_names:
        return {name: _for_file(schema) for name, schema in node.items()}
    kept = {key: value for key, value in node.items() if key != "title" and not (key == "default" and value is None)}
    # None in the models means absent: a key without a value is a fault.
    options = [option for option in kept.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        kept = {**options[0], **kept}
    elif options:
        kept["anyOf"] = options
    is_scalar = kept.get("type") in _SCALARS or "enum" in kept or "const" in kept
    shape = {
        key: value
        if key in {"default", "examples", "propertyNames"}
        else _for_file(value, is_names=key in {"properties", "$defs"})
        for key, value in kept.items()
    }
    is_free_text = shape.get("type") == "string" and not shape.keys() & {"pattern", "enum", "const"}
    if not is_scalar or is_free_text:
        return shape
    about = {key: shape.pop(key) for key in ("description", "default", "examples") if key in shape}
    return {"anyOf": [shape, _VARIABLE], **about}
