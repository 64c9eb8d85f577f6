"""Cuts what a client has written, for a log line or a span, without leaving a part of a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# As much of a text is searched, so that the time does not grow with what a client sends: a path may have `max_header`.
MAX_SEARCHED: Final = 4096


def cut_redacted(text: str, most: int, redact: Callable[[bytes], bytes]) -> str:
    """The first `most` characters of a text, cut after the secrets were replaced.

    The other way round, a part would be left of a secret that stands across the end, and whoever searches the whole
    line for secrets later does not find it. A text that is not cut is left to that search.
    """
    if len(text) <= most:
        return text
    return redact(text[:MAX_SEARCHED].encode("utf-8", "replace")).decode("utf-8", "replace")[:most]
