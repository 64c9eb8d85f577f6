"""Whether a request asks for an event stream, told by the request alone."""

from __future__ import annotations

import pytest

from proxy.dialects.stream_request import MAX_BODY_BYTES, asks_for_stream

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
        (b'{"stream":true,"pad":"' + b"x" * MAX_BODY_BYTES + b'"}', False),
    ],
)
def test_asks_for_stream_in_the_body(dialect: str, body: bytes, *, asks: bool) -> None:
    """The member `stream` of the body counts, and where it cannot be read, it does not."""
    assert asks_for_stream(dialect, "POST", ACCEPT, body) is asks


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
    assert asks_for_stream(dialect, "POST", fields, b'{"stream":true}') is asks


@pytest.mark.parametrize("dialect", ["openai", "dashscope", "raw"])
def test_asks_for_stream_head(dialect: str) -> None:
    """An answer to HEAD has no body."""
    assert not asks_for_stream(dialect, "HEAD", ACCEPT, b'{"stream":true}')
