"""The benchmark's load generator and upstream, built once for all tests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.native_support import NATIVE, WAIT_S, Load
from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both programs, built as anyone would build them, with every warning an error."""
    compiler = need("cc")
    folder = tmp_path_factory.mktemp("native")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    for name in ("upstream", "load"):
        subprocess.run([compiler, *flags, "-o", folder / name, NATIVE / f"{name}.c"], check=True)
    return folder


@pytest.fixture
def upstream(native: Path) -> Iterator[int]:
    """The port of a fresh upstream, which has to end cleanly when it is told to."""
    with subprocess.Popen([native / "upstream", "--port", "0"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().removeprefix(b"ready "))
        process.terminate()
        assert process.wait(WAIT_S) == 0


@pytest.fixture
def load(native: Path) -> Load:
    return Load(native / "load")
