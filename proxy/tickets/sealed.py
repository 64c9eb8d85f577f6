"""Encrypts a ticket's stored request, so that only the holder of the ticket can decrypt it.

A ticket is two random values, as one URL-safe word. By the first the sealed request is found, under its SHA-256; the
second is the key that it is encrypted with, and is kept nowhere. So whoever reads the store has neither prompts nor
tokens, and cannot use what is there; whoever writes to it can make a ticket fail, not change what it asks for.

Pure but for the random values, and for the buffers that it overwrites. Where sealed requests are kept and how often
they can be taken is the limits store's.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from proxy.model import RequestHead
from proxy.protocol.json_text import PIECE_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

    from proxy.errors import Field
    from proxy.protocol.json_text import Steps

# 128 bits cannot be guessed within a minute, nor in any time. A multiple of three together: base64 without padding.
_ID_BYTES: Final = 16
_KEY_BYTES: Final = 32
_TICKET: Final = re.compile(rb"[A-Za-z0-9_-]{64}")
# Bound into what is sealed: a later form of it cannot be taken for this one.
_VERSION: Final = b"\x02"
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

    def seal(self, head: RequestHead, body: BytesIO) -> Steps[bytes]:
        """Encrypt a request, in pieces; only once for each ticket.

        The body is encrypted where it is, if nobody else has its bytes: no second one is held.
        """
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
        yield from _replace(body, encryptor)
        # Behind the body, which is not moved: the head, its length, the tag, the version.
        end = encryptor.update(plain + len(plain).to_bytes(_LENGTH_BYTES)) + encryptor.finalize()
        body.seek(0, SEEK_END)
        body.write(end + encryptor.tag + _VERSION)
        return body.getvalue()

    def unseal(self, sealed: BytesIO) -> Steps[tuple[RequestHead, bytes]]:
        """Decrypt the request, in pieces and where it is. Nothing of it is used before all of it is verified.

        Raises:
            ValueError: This ticket did not seal it, or it is not as it was.
        """
        end = sealed.seek(0, SEEK_END) - _TAG_BYTES - len(_VERSION)
        if end < 0:
            raise ValueError("not sealed by this ticket")
        sealed.seek(end)
        tag, version = sealed.read(_TAG_BYTES), sealed.read()
        if version != _VERSION:
            raise ValueError("not a sealed request of this version")
        sealed.truncate(end)
        decryptor = Cipher(AES(self.key), GCM(_NONCE, tag)).decryptor()
        decryptor.authenticate_additional_data(_VERSION + self.id)
        yield from _replace(sealed, decryptor)
        try:
            decryptor.finalize()
        except InvalidTag:
            raise ValueError("not sealed by this ticket") from None
        sealed.seek(end - _LENGTH_BYTES)
        size = int.from_bytes(sealed.read())
        sealed.seek(end - _LENGTH_BYTES - size)
        plain = sealed.read(size)
        sealed.truncate(end - _LENGTH_BYTES - size)
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
            sealed.getvalue(),
        )


def _text(header: Field) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode("latin-1")


def _replace(buffer: BytesIO, cipher: CipherContext) -> Steps[None]:
    """Put what the cipher makes of a buffer's content in its place, a piece at a time."""
    with buffer.getbuffer() as view:
        for start in range(0, len(view), PIECE_BYTES):
            if start:
                yield
            piece = view[start : start + PIECE_BYTES]
            piece[:] = cipher.update(piece)
