"""Tickets: a caller's whole request, sealed so that only who holds the ticket can open it.

A ticket is two random values, as one URL-safe word. By the first the sealed request is found, under its SHA-256; the
second is the key that it is encrypted with, and is kept nowhere. So whoever reads the store has neither prompts nor
tokens, and cannot use what is there; whoever writes to it can make a ticket fail, not change what it asks for.

Pure but for the random values. Where sealed requests are kept and how often they can be taken is the limits store's.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.model import RequestHead

if TYPE_CHECKING:
    from proxy.errors import Field

# 128 bits cannot be guessed within a minute, nor in any time. A multiple of three together: base64 without padding.
_ID_BYTES: Final = 16
_KEY_BYTES: Final = 32
_TICKET: Final = re.compile(rb"[A-Za-z0-9_-]{64}")
# Bound into what is sealed: a later form of it cannot be taken for this one.
_VERSION: Final = b"\x01"
# NIST SP 800-38D §8.2 asks that no nonce comes twice under one key: each key seals once.
_NONCE: Final = bytes(12)
_LENGTH_BYTES: Final = 4
# A secret of the browser's that is forwarded to nobody.
_LEFT_OUT: Final = frozenset({b"cookie", b"cookie2"})


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket, while it is in our hands: when it is made, and when it is used."""

    id: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Ticket:
        """A ticket that nobody else has."""
        return cls(os.urandom(_ID_BYTES), os.urandom(_KEY_BYTES))

    @classmethod
    def parse(cls, text: bytes) -> Ticket | None:
        """The ticket that the client sent, None where it cannot be one."""
        if _TICKET.fullmatch(text) is None:
            return None
        secret = urlsafe_b64decode(text)
        return cls(secret[:_ID_BYTES], secret[_ID_BYTES:])

    @property
    def text(self) -> str:
        """What the client is given. A secret, for as long as the ticket is good."""
        return urlsafe_b64encode(self.id + self.key).decode()

    @property
    def name(self) -> str:
        """What the sealed request is kept under; tells nothing of the ticket."""
        return hashlib.sha256(self.id).hexdigest()

    def seal(self, head: RequestHead, body: bytes) -> bytes:
        """Encrypt a request; once only for each ticket."""
        plain = orjson.dumps(
            {
                "method": head.method,
                "path": head.path.decode("latin-1"),
                "query": None if head.query is None else head.query.decode("latin-1"),
                "fields": [_text(header) for header in head.fields if header[0].lower() not in _LEFT_OUT],
            }
        )
        sealed = len(plain).to_bytes(_LENGTH_BYTES) + plain + body
        return _VERSION + AESGCM(self.key).encrypt(_NONCE, sealed, _VERSION + self.id)

    def unseal(self, sealed: bytes) -> tuple[RequestHead, bytes]:
        """Give back the request.

        Raises:
            ValueError: This ticket did not seal it, or it is not as it was.
        """
        if sealed[:1] != _VERSION:
            raise ValueError("not a sealed request of this version")
        try:
            opened = AESGCM(self.key).decrypt(_NONCE, memoryview(sealed)[1:], _VERSION + self.id)
        except InvalidTag:
            raise ValueError("not sealed by this ticket") from None
        # Whole and ours from here on: nothing below can be malformed.
        end = _LENGTH_BYTES + int.from_bytes(opened[:_LENGTH_BYTES])
        head = orjson.loads(opened[_LENGTH_BYTES:end])
        query = head["query"]
        return (
            RequestHead(
                head["method"],
                head["path"].encode("latin-1"),
                None if query is None else query.encode("latin-1"),
                tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in head["fields"]),
            ),
            opened[end:],
        )


def _text(header: Field) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode("latin-1")
