"""The console's page: one document, made at start of the files beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from proxy.pages import Page

_DOCUMENT: Final = Path(__file__).parent / "static" / "console.html"


def load_page() -> Page:
    """Read the files; blocks, so it is for the start only.

    Raises:
        OSError: a file is missing; the installation is broken.
    """
    # Of pictures there is the icon only.
    return Page.load(_DOCUMENT, images="data:")
