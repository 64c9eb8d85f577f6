"""The rooms of the code: what each is for, and that others import only its face."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.dialects import DIALECTS

PROXY = Path(__file__).parents[1] / "proxy"
# Rooms whose modules are imported by name from outside: each is a phase, or a subject of its own.
FACES = {
    "auth": ("egress_connector", "operators"),
    "console": ("choice", "feed", "spend"),
    "exchange": ("attempts", "authenticate", "body", "head", "reserve"),
    "failover": ("keys", "policy"),
    "ledger": ("log_lines",),
    "limits": ("failures", "memory", "redis"),
    "observability": ("gen_ai", "logging", "metrics", "redaction", "tracing"),
    "pages": (),
    "playground": (),
    "relay": ("echo",),
    "routing": (),
    "tickets": (),
    "upstream": ("response", "tls"),
    "usage": ("model_name", "prices"),
}
# They build the rooms' objects from the settings, so they know the rooms' classes.
BUILDERS = {
    "app.py",
    "settings/build.py",
    "settings/build_telemetry.py",
    "settings/build_ways.py",
    "settings/ledgers.py",
    "settings/rotation.py",
    "settings/rules_builder.py",
}
MAX_NAMES = 7
PACKAGES = sorted(path.parent for path in PROXY.rglob("__init__.py") if path.parent != PROXY)


def imported(path: Path) -> list[str]:
    """The dotted names of the modules that a file imports, those for types included."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def exported(package: Path) -> list[str]:
    """The names in a package's `__all__`; none where it has none."""
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


@pytest.mark.parametrize("room", FACES)
def test_room_is_imported_by_its_face(room: str) -> None:
    """Code outside a room imports the room, or a module that is part of its face, and nothing deeper."""
    allowed = {f"proxy.{room}", *(f"proxy.{room}.{module}" for module in FACES[room])}
    deep = [
        f"{path.relative_to(PROXY)}: {name}"
        for path in PROXY.rglob("*.py")
        if path.relative_to(PROXY).parts[0] != room and str(path.relative_to(PROXY)) not in BUILDERS
        for name in imported(path)
        if name.startswith(f"proxy.{room}.") and name not in allowed
    ]
    assert deep == []


@pytest.mark.parametrize("room", FACES)
def test_face_is_small(room: str) -> None:
    """A room exports a few names."""
    assert 1 <= len(exported(PROXY / room)) <= MAX_NAMES


def test_dialects_are_named_in_their_room() -> None:
    """Outside `dialects`, code asks a dialect and never compares its name; the mock vendor stands apart."""
    names = set(DIALECTS) - {"raw"}  # a value of `events` too
    named = [
        f"{path.relative_to(PROXY)}:{node.lineno}"
        for path in PROXY.rglob("*.py")
        if path.relative_to(PROXY).parts[0] not in {"dialects", "mock"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert named == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(PROXY)))
def test_room_explains_itself(package: Path) -> None:
    """A package's docstring has more than a title: what enters, and what leaves."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert docstring is not None
    assert len(docstring.split("\n\n")) > 1


@pytest.mark.parametrize("path", sorted(PROXY.rglob("*.py")), ids=lambda path: str(path.relative_to(PROXY)))
def test_module_is_short(path: Path) -> None:
    """A module has at most 400 lines."""
    assert len(path.read_text().splitlines()) <= 400


def test_memory_store_loads_no_redis() -> None:
    """A worker whose limits are in memory does not pay for redis-py."""
    script = "import sys, proxy.app, proxy.cli.commands, proxy.settings; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
