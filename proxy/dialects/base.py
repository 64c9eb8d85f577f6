"""What every dialect has to say for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from proxy.errors import Field, ProxyError


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one vendor's API is spoken: where it is, where its credential goes, how it words an error.

    `words_error(status, code, message)` gives an answer's JSON; `words_event(code, message, path)` the event for a stream
    that broke, None where the dialect has none. `query_credential` says whether `?key=` carries one.
    """

    name: str
    default_path: str | None
    default_allow_paths: tuple[str, ...]
    credential_name: bytes
    credential_prefix: bytes
    words_error: Callable[[int, str, str], bytes]
    words_event: Callable[[str, str, bytes], bytes | None]
    heartbeat_allowed: bool = True
    query_credential: bool = False
    stream_field: Field | None = None

    def credential_field(self, key: str) -> Field:
        """The field that carries the vendor's key."""
        return self.credential_name, self.credential_prefix + key.encode()

    def extra_fields(self, path: bytes, names: Container[bytes]) -> tuple[Field, ...]:
        """What `POST /forward-sse` adds on the default path: the vendor's own word for "as a stream", where absent."""
        field = self.stream_field
        if field is None or path.decode("latin-1") != self.default_path or field[0].lower() in names:
            return ()
        return (field,)

    def error_body(self, error: ProxyError) -> bytes:
        """The JSON body of an answer that is ours."""
        return self.words_error(error.status, error.code, error.message)

    def error_event(self, code: str, message: str, path: bytes) -> bytes | None:
        """The event that says why a running stream broke off."""
        return self.words_event(code, message, path)
