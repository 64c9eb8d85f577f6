"""Skips a test whose program is missing on this machine; with the variable `CI` set, fails it.

README.md lists the programs ("Test it"), `.ci/run` installs them.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import NoReturn


def need(*names: str) -> str:
    """Return the path of the first of these programs that is installed; without any, skip or fail the test."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        skip_or_fail(f"{' or '.join(names)} is not on the PATH")
    return path


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; where `CI` is not empty, fail it, because a skipped test would look like a passed one there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
