"""YAML parser that keeps the line of every value.

Deliberate departures from YAML 1.1:
1. Only `true` and `false` are booleans: `off`, `no`, `yes`, `on` are text.
2. Only decimal whole numbers are numbers: `010`, `0x10`, `1e3`, `1:30`, dates are text.
3. No aliases, merge keys or tags: they are hard to read, and nested aliases grow without bound.
4. A repeated key is a fault, and so is one without a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from proxy.settings.loading.faults import ConfigurationError, Fault, Location, SourceLocation, SourceLocations, dotted

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 1 << 20
_MAX_DEPTH = 32

_NULL, _BOOL, _INT, _TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "str"))
_MAPPING, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
# 18 digits: more than any setting needs, far fewer than make int() slow.
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")


class Missing:
    """Type of `MISSING`: a value that is unavailable, which a fault has reported already."""

    def __repr__(self) -> str:
        return "<unknowable>"


MISSING = Missing()


@dataclass(slots=True)
class Document:
    """A file's values, the line of each key, and the faults so far."""

    values: dict[str, Any]
    places: SourceLocations
    faults: list[Fault] = field(default_factory=list)


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """YAML that a configuration may not use."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.message = message
        self.line: int = mark.line + 1


class _Loader(yaml.SafeLoader):
    """YAML loader that composes nodes only; no tag constructs an object."""

    # Own resolvers: SafeLoader's implement YAML 1.1.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc] # the stubs call it an instance's
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases and deep nesting."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call] # untyped in the stubs
        if isinstance(event, yaml.AliasEvent):
            raise _Refused("aliases are not used here: write it out", event.start_mark)
        if self.depth >= _MAX_DEPTH:
            raise _Refused(f"is nested more than {_MAX_DEPTH} deep", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|false)\Z"), ["t", "f"])
_Loader.add_implicit_resolver(_INT, _DECIMAL, list("-0123456789"))


def read(path: Path) -> Document:
    """Read and parse a file of at most 1 MiB. It is read once, because it may be replaced meanwhile.

    Raises:
        ConfigurationError: It cannot be read, is too large, or is not YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise _refusal(str(path), 0, f"cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise _refusal(str(path), 0, "is larger than 1 MiB")
    return parse(content, str(path))


def _refusal(name: str, line: int, message: str) -> ConfigurationError:
    return ConfigurationError([Fault(SourceLocation(name, line), "", message)])


def parse(content: bytes, name: str) -> Document:
    """Parse the content of a file of that name.

    Raises:
        ConfigurationError: Not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise _refusal(name, content.count(b"\n", 0, exc.start) + 1, "is not UTF-8") from exc
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except _Refused as exc:
        raise _refusal(name, exc.line, exc.message) from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise _refusal(name, mark.line + 1 if mark else 1, f"is not YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:  # a character that YAML does not allow; the error's text may show secrets
        offset = getattr(exc, "position", 0)
        line = text.count("\n", 0, offset if isinstance(offset, int) else 0) + 1
        raise _refusal(name, line, "has a character that YAML does not allow") from exc
    document = Document({}, {(): SourceLocation(name, 1)})
    if not isinstance(root, yaml.MappingNode):
        raise _refusal(name, 1, "is empty" if root is None else "must be a mapping of keys to values")
    document.values = _value(root, (), name, document)
    return document


def _value(node: yaml.Node, location: Location, name: str, document: Document) -> Any:
    """Convert a node to a plain value, adding lines and faults to the document."""
    if isinstance(node, yaml.MappingNode) and node.tag == _MAPPING:
        return _mapping(node, location, name, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
        items = []
        for index, item in enumerate(node.value):
            document.places[(*location, index)] = SourceLocation(name, item.start_mark.line + 1)
            items.append(_value(item, (*location, index), name, document))
        return items
    if node.tag == _TEXT:
        return node.value
    if node.tag == _BOOL and node.value in {"true", "false"}:
        return node.value == "true"
    if node.tag == _INT and _DECIMAL.match(node.value):
        return int(node.value)
    message = "has no value: give one, or leave the key out" if node.tag == _NULL else "has a tag; none is used here"
    document.faults.append(Fault(SourceLocation(name, node.start_mark.line + 1), dotted(location), message))
    return MISSING


def _mapping(node: yaml.MappingNode, location: Location, name: str, document: Document) -> dict[str, Any]:
    """Convert a mapping; of a repeated key the first value counts."""
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = SourceLocation(name, key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
            message = "has a key that is not text: put it in quotes"
            document.faults.append(Fault(place, dotted(location), message))
            continue
        where = (*location, key_node.value)
        if key_node.value in values:
            message = f"is given twice, first on line {document.places[where].line}"
            document.faults.append(Fault(place, dotted(where), message))
            continue
        document.places[where] = place
        values[key_node.value] = _value(value_node, where, name, document)
    return values
