"""Content codings, undone within bounds."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib

import brotli
import pytest

from proxy.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError
from proxy.protocol.content_codings import decode, read_codings
from proxy.protocol.json_text import PIECE_BYTES
from tests.steps import counted, finish

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODERS = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstd.compress,
}
TEXTS = {
    "empty": b"",
    "small": b'{"model":"m"}',
    "a piece": b"x" * PIECE_BYTES,
    "two pieces": b"x" * (2 * PIECE_BYTES),
    "large": bytes(range(256)) * 4000,
    "zeros": bytes(2_000_000),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("coding", CODERS, ids=bytes.decode)
def test_decode(coding: bytes, name: str) -> None:
    """What was coded comes out again, in steps; within the bound to the byte."""
    text = TEXTS[name]
    coded = CODERS[coding](text)

    decoded, turns = counted(decode(coded, [coding], max_bytes=len(text)))

    assert decoded == text
    assert turns >= len(text) // (8 * PIECE_BYTES)
    if text:
        with pytest.raises(BodyTooLargeError):
            finish(decode(coded, [coding], max_bytes=len(text) - 1))


@pytest.mark.parametrize("coding", CODERS, ids=bytes.decode)
def test_decode_bomb(coding: bytes) -> None:
    """A bomb is refused having held no more than the bound and a few pieces."""
    bomb = CODERS[coding](bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            finish(decode(bomb, [coding], max_bytes=1_000_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 1_000_000 * 1.2 + 20 * PIECE_BYTES


@pytest.mark.parametrize("coding", CODERS, ids=bytes.decode)
def test_decode_every_cut(coding: bytes) -> None:
    """A body that breaks off, or goes on, is none."""
    coded = CODERS[coding](b'{"model":"m"}')
    for end in range(len(coded)):
        with pytest.raises(InvalidRequestError, match=coding.decode()):
            finish(decode(coded[:end], [coding], max_bytes=1000))
    for more in (b"x", b"\x00" * 40_000):
        with pytest.raises(InvalidRequestError, match=coding.decode()):
            finish(decode(coded + more, [coding], max_bytes=100_000))


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"], ids=bytes.decode)
def test_decode_members(coding: bytes) -> None:
    """Files of these formats may be put one after the other, within reason."""
    coder = CODERS[coding]
    coded = coder(b"a") + coder(b"") * 1000 + coder(b"b" * PIECE_BYTES) + coder(b"c")

    decoded, turns = counted(decode(coded, [coding], max_bytes=10 * PIECE_BYTES))

    assert decoded == b"a" + b"b" * PIECE_BYTES + b"c"
    assert turns > 1000 // 16
    with pytest.raises(InvalidRequestError):
        finish(decode(coder(b"") * 5000, [coding], max_bytes=1000))


def test_decode_zstd_window() -> None:
    """A frame that asks for more memory than any sender needs is refused before that is taken."""
    coded = zstd.compress(b"x" * 100_000, options={zstd.CompressionParameter.window_log: 27})
    # A frame of a known and small size needs no such window, so that the size is left out.
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    streamed = compressor.compress(b"x" * 100_000) + compressor.flush()

    assert finish(decode(coded, [b"zstd"], max_bytes=100_000)) == b"x" * 100_000
    with pytest.raises(InvalidRequestError):
        finish(decode(streamed, [b"zstd"], max_bytes=100_000))


@pytest.mark.parametrize(
    ("values", "codings"),
    [
        ([], ()),
        ([b"identity"], ()),
        ([b""], ()),
        ([b"GZip"], (b"gzip",)),
        ([b"deflate, ,identity,\tbr "], (b"deflate", b"br")),
        ([b"zstd", b"x-gzip"], (b"zstd", b"x-gzip")),
    ],
)
def test_read_codings(values: list[bytes], codings: tuple[bytes, ...]) -> None:
    """Codings have no case, a list may be several fields (RFC 9110 §8.4), identity is none."""
    assert read_codings(values) == codings


@pytest.mark.parametrize("value", [b"snappy", b"gzip;q=1", b"gzip, gzip, gzip, gzip", b"*", b"br, compress"])
def test_read_codings_unknown(value: bytes) -> None:
    """What cannot be undone is told apart from what is broken."""
    with pytest.raises(UnsupportedMediaTypeError):
        read_codings([value])
