"""Decodes compressed request bodies (`Content-Encoding`, RFC 9110 §8.4) in bounded pieces, for routing to read.

Pure. The body is forwarded as it came, still compressed. Every call of a library reads and returns at most
`PIECE_BYTES`, so that neither a decompression bomb nor a body of empty blocks blocks the event loop.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Final, Protocol

import brotli

from proxy.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError
from proxy.protocol.json_text import PIECE_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.protocol.json_text import JsonText, Steps

# No client that sends JSON applies more than one or two.
_MAX_CODINGS: Final = 3
# RFC 9659 §3: a decoder of zstd content need not support windows above 8 MiB. RFC 8878 lets a frame ask for terabytes.
_MAX_ZSTD_WINDOW_LOG: Final = 23
# Senders that cut files into members make them of 64 KiB. Empty ones by the million would cost a minute.
_MAX_MEMBERS: Final = 4096
# The cost of a call of a library and of starting a member, in bytes: a new member reads the rest of a piece again.
_CALL_COST: Final = 512
_MEMBER_COST: Final = 4096


class _Decoder(Protocol):
    """Decompressor of one member or frame, with the interface of `compression.zstd` and `bz2`."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class _Inflate:
    """`zlib` with the interface of `_Decoder`."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)
        # zlib may have consumed all input and still hold output.
        self._is_full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._is_full and not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        decoded = self._zlib.decompress(data or self._zlib.unconsumed_tail, max_length)
        self._is_full = len(decoded) == max_length
        return decoded


class _Brotli:
    """`brotli` with the interface of `_Decoder`; it has no members, and raises on bytes after its end."""

    unused_data = b""

    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        # `can_accept_more_data` is true also if output is left; the output may exceed the limit by one buffer.
        self._is_full = False

    @property
    def eof(self) -> bool:
        return bool(self._brotli.is_finished())

    @property
    def needs_input(self) -> bool:
        return not self._is_full and bool(self._brotli.can_accept_more_data())

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        decoded: bytes = self._brotli.process(data, output_buffer_limit=max_length)
        self._is_full = len(decoded) >= max_length
        return decoded


def _zstd() -> _Decoder:
    decoder: _Decoder = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW_LOG}
    )
    return decoder


def _deflate(data: JsonText) -> _Decoder:
    """Detect the zlib format (RFC 9110 §8.4.1.2) or raw deflate, which some clients send; servers accept both."""
    is_wrapped = len(data) > 1 and data[0] & 0x0F == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
    return _Inflate(zlib.MAX_WBITS if is_wrapped else -zlib.MAX_WBITS)


_DECODERS: Final[dict[bytes, Callable[[JsonText], _Decoder]]] = {
    b"gzip": lambda _: _Inflate(16 + zlib.MAX_WBITS),
    b"x-gzip": lambda _: _Inflate(16 + zlib.MAX_WBITS),
    b"deflate": _deflate,
    b"br": lambda _: _Brotli(),
    b"zstd": lambda _: _zstd(),
}
# Formats in which members may be concatenated (RFC 1952 §2.2, RFC 8878 §3.1).
_HAS_MEMBERS: Final = frozenset({b"gzip", b"x-gzip", b"zstd"})
_ERRORS: Final = (zlib.error, zstd.ZstdError, brotli.error)


def read_codings(values: Sequence[bytes]) -> tuple[bytes, ...]:
    """Parse `Content-Encoding`: the codings in the order in which they were applied, without `identity`.

    Raises:
        UnsupportedMediaTypeError: A coding is unknown, or there are more than three.
    """
    if not values:
        return ()
    named = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    codings = tuple(coding for coding in named if coding not in {b"", b"identity"})
    if len(codings) > _MAX_CODINGS or any(coding not in _DECODERS for coding in codings):
        raise UnsupportedMediaTypeError
    return codings


def decode(body: JsonText, codings: Sequence[bytes], *, max_bytes: int) -> Steps[JsonText]:
    """Decompress a body, in pieces. Memory: at most `max_bytes` for each coding.

    Raises:
        BodyTooLargeError: The decoded body is larger than `max_bytes`.
        InvalidRequestError: The body is truncated, corrupt, or not in that coding.
    """
    for coding in reversed(codings):
        body = yield from _undo(body, coding, max_bytes)
    return body


def _undo(body: JsonText, coding: bytes, max_bytes: int) -> Steps[JsonText]:
    out = bytearray()
    rest = memoryview(body)
    decoder = _DECODERS[coding](body)
    members, spent = 1, 0
    try:
        while True:
            piece = rest[:0]
            if decoder.needs_input:
                piece, rest = rest[:PIECE_BYTES], rest[PIECE_BYTES:]
                if not piece:
                    raise _broken(coding)
            decoded = decoder.decompress(piece, PIECE_BYTES)
            out += decoded
            if len(out) > max_bytes:
                raise BodyTooLargeError
            spent += len(piece) + len(decoded) + _CALL_COST
            if decoder.eof:
                unused = len(decoder.unused_data)
                rest = memoryview(body)[len(body) - len(rest) - unused :]
                if not rest:
                    return out
                members += 1
                if coding not in _HAS_MEMBERS or members > _MAX_MEMBERS:
                    raise _broken(coding)
                decoder = _DECODERS[coding](body)
                spent += _MEMBER_COST
            if spent >= PIECE_BYTES:
                spent = 0
                yield
    except _ERRORS:
        raise _broken(coding) from None


def _broken(coding: bytes) -> InvalidRequestError:
    return InvalidRequestError(f"The body is not what its Content-Encoding {coding.decode()} makes.")
