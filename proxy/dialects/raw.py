"""The dialect of upstreams of which nothing is known but where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects.base import Dialect
from proxy.dialects.stream_request import accepts_event_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.errors import Field


class Raw(Dialect):
    """Anything that is streamed: only the configured path is called, and nothing is put into its streams."""

    name = "raw"
    is_readable = False

    def asks_in_fields(self, fields: Sequence[Field]) -> bool:
        """The standard way is all that is known."""
        return accepts_event_stream(fields)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:  # noqa: ARG002 - whatever they are
        """None: an aborted body is the only sign that every format has."""
        return None

    def reader(self, request_body: bytes | bytearray) -> None:  # noqa: ARG002 - whatever it asked for
        """None: nothing is known of what is streamed."""
        return
