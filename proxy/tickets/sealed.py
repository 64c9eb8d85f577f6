"""Encrypts a ticket's stored request, so that only the holder of the ticket can decrypt it.

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
from io import BytesIO
from typing import TYPE_CHECKING, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from proxy.model import RequestHead
from proxy.protocol.json_text import PIECE_BYTES

if TYPE_CHECKING:
    from proxy.errors import Field
    from proxy.protocol.json_text import Steps

# 128 bits cannot be guessed within a minute, nor in any time. A multiple of three together: base64 without padding.
_ID_BYTES: Final = 16
_KEY_BYTES: Final = 32
_TICKET: Final = re.compile(rb"[A-Za-z0-9_-]{64}")
# Bound into what is sealed: a later form of it cannot be taken for this one.
_VERSION: Final = b"\x01"
# NIST SP 800-38D §8.2 asks that no nonce comes twice under one key: each key seals once.
_NONCE: Final = bytes(12)
_TAG_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
# A secret of the browser's that is forwarded to nobody.
_LEFT_OUT: Final = frozenset({b"cookie", b"cookie2"})


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket: its name in the store and its key. Exists only while it is made or used."""

    id: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Ticket:
        """Create a random ticket."""
        return cls(os.urandom(_ID_BYTES), os.urandom(_KEY_BYTES))

    @classmethod
    def parse(cls, text: bytes) -> Ticket | None:
        """Parse the ticket that a client sent; None where it has not the form of one."""
        if _TICKET.fullmatch(text) is None:
            return None
        secret = urlsafe_b64decode(text)
        return cls(secret[:_ID_BYTES], secret[_ID_BYTES:])

    @property
    def text(self) -> str:
        """The text that the client gets. A secret, until the ticket is used or expires."""
        return urlsafe_b64encode(self.id + self.key).decode()

    @property
    def name(self) -> str:
        """The key in the store; reveals nothing of the ticket."""
        return hashlib.sha256(self.id).hexdigest()

    def seal(self, head: RequestHead, body: bytes) -> Steps[bytes]:
        """Encrypt a request, in pieces; only once for each ticket. Uses memory for the result besides the body."""
        plain = orjson.dumps(
            {
                "method": head.method,
                "path": head.path.decode("latin-1"),
                "query": None if head.query is None else head.query.decode("latin-1"),
                "fields": [_text(header) for header in head.fields if header[0].lower() not in _LEFT_OUT],
            }
        )
        encryptor = Cipher(AES(self.key), GCM(_NONCE)).encryptor()
        encryptor.authenticate_additional_data(_VERSION + self.id)
        # Unlike a bytearray it gives its content as bytes without copying it.
        sealed = BytesIO()
        sealed.write(_VERSION + encryptor.update(len(plain).to_bytes(_LENGTH_BYTES) + plain))
        rest = memoryview(body)
        while rest:
            sealed.write(encryptor.update(rest[:PIECE_BYTES]))
            rest = rest[PIECE_BYTES:]
            if rest:
                yield
        sealed.write(encryptor.finalize() + encryptor.tag)
        return sealed.getvalue()

    def unseal(self, sealed: bytes) -> Steps[tuple[RequestHead, bytes]]:
        """Decrypt the request, in pieces. Nothing of it is used before all of it is verified.

        Raises:
            ValueError: This ticket did not seal it, or it is not as it was.
        """
        if sealed[:1] != _VERSION:
            raise ValueError("not a sealed request of this version")
        view = memoryview(sealed)[1:]
        if len(view) < _TAG_BYTES:
            raise ValueError("not sealed by this ticket")
        rest, tag = view[:-_TAG_BYTES], bytes(view[-_TAG_BYTES:])
        decryptor = Cipher(AES(self.key), GCM(_NONCE, tag)).decryptor()
        decryptor.authenticate_additional_data(_VERSION + self.id)
        # The length of the head, the head, the body.
        size = int.from_bytes(decryptor.update(rest[:_LENGTH_BYTES]))
        rest = rest[_LENGTH_BYTES:]
        plain = decryptor.update(rest[:size])
        rest = rest[size:]
        body = BytesIO()
        while rest:
            body.write(decryptor.update(rest[:PIECE_BYTES]))
            rest = rest[PIECE_BYTES:]
            if rest:
                yield
        try:
            decryptor.finalize()
        except InvalidTag:
            raise ValueError("not sealed by this ticket") from None
        # Whole and ours from here on: nothing below can be malformed.
        head = orjson.loads(plain)
        query = head["query"]
        return (
            RequestHead(
                head["method"],
                head["path"].encode("latin-1"),
                None if query is None else query.encode("latin-1"),
                tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in head["fields"]),
            ),
            body.getvalue(),
        )


def _text(header: Field) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode("latin-1")
