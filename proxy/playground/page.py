"""The playground's page: one document, made at start of the files beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from proxy.pages import Page

_DOCUMENT: Final = Path(__file__).parent / "static" / "playground.html"
# Where the document says whether a token is asked for.
_AUTH: Final = 'data-auth="token"'
_NO_AUTH: Final = 'data-auth="none"'
# An answer's pictures: inside the stream, or where the vendor keeps them.
_IMAGES: Final = "data: https:"


def load_page(*, needs_token: bool) -> Page:
    """Read the files and put them together; blocks, so it is for the start only.

    `needs_token` is all that the page knows of the configuration: whoever asks without a token learns it anyway.

    Raises:
        OSError: a file is missing; the installation is broken.
    """
    return Page.load(_DOCUMENT, images=_IMAGES, replaced={} if needs_token else {_AUTH: _NO_AUTH})
