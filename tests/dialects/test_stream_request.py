"""Whether a request asks for an event stream, told by the request alone."""

from __future__ import annotations

import pytest

from proxy.dialects import DIALECTS
from tests.steps import finish

ACCEPT = ((b"Accept", b"text/event-stream"),)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (b'{"stream":true}', True),
        (b'{"model":"m", "stream" : true, "messages":[]}', True),
        (b'{"stream":false}', False),
        (b'{"stream":"true"}', False),
        (b'{"stream":1}', False),
        (b'{"metadata":{"stream":true}}', False),
        (b'{"messages":[{"content":"\\"stream\\":true"}]}', False),
        (b'[{"stream":true}]', False),
        (b'"stream"', False),
        (b'{"stream":true', False),
        (b"", False),
        (b'{"stream":true,"pad":"' + b"x" * 1_000_000 + b'"}', True),
        (b'{"stream":true,"stream":false}', False),
    ],
)
def test_asks_for_stream_in_the_body(dialect: str, body: bytes, *, asks: bool) -> None:
    """The member `stream` of the body counts, and where it cannot be read, it does not."""
    assert finish(DIALECTS[dialect].asks_for_stream("POST", ACCEPT, body)) is asks


@pytest.mark.parametrize(
    ("dialect", "fields", "asks"),
    [
        ("dashscope", ((b"X-DashScope-SSE", b"enable"),), True),
        ("dashscope", ((b"x-dashscope-sse", b"Enable"),), True),
        ("dashscope", ((b"X-DashScope-SSE", b"disable"),), False),
        ("dashscope", ACCEPT, True),
        ("dashscope", (), False),
        ("raw", ACCEPT, True),
        ("raw", ((b"accept", b"text/html, text/event-stream;q=0.5"),), True),
        ("raw", ((b"Accept", b"*/*"),), False),
        ("raw", (), False),
        ("gemini", ACCEPT, False),
    ],
)
def test_asks_for_stream_in_the_fields(dialect: str, fields: tuple[tuple[bytes, bytes], ...], *, asks: bool) -> None:
    """Elsewhere a field counts; for Gemini nothing does."""
    assert finish(DIALECTS[dialect].asks_for_stream("POST", fields, b'{"stream":true}')) is asks


@pytest.mark.parametrize("dialect", ["openai", "dashscope", "raw"])
def test_asks_for_stream_head(dialect: str) -> None:
    """An answer to HEAD has no body."""
    assert not finish(DIALECTS[dialect].asks_for_stream("HEAD", ACCEPT, b'{"stream":true}'))


def test_asks_for_stream_coded() -> None:
    """A body in a content coding is not read for this."""
    assert not finish(DIALECTS["openai"].asks_for_stream("POST", ((b"Content-Encoding", b"gzip"),), b'{"stream":true}'))
