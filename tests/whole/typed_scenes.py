"""Scenes of typed events: the proxy, a stream that runs, and what its client reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.conftest import token
from tests.peers import STREAM_HEAD, Message, Peer, Upstream, chunk, event, request
from tests.typed_streams import failed, read

if TYPE_CHECKING:
    from tests.conftest import Running

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
plans:
  default: {{requests: [1000/1s]}}
upstreams:
  openai: {{url: "{url}", dialect: openai, api_key: {key}, allow_paths: ["/*"], models: ["gpt-*"]}}
  anthropic: {{url: "{url}", dialect: anthropic, api_key: {key}, models: ["claude-*"]}}
  dashscope: {{url: "{url}", dialect: dashscope, api_key: {key}}}
  gemini: {{url: "{url}", dialect: gemini, api_key: {key}}}
  other: {{url: "{url}", dialect: raw, api_key: none, path: /run}}
  always: {{url: "{url}", dialect: openai, api_key: {key}, events: typed, typed_names: {{End: done}}, heartbeat: 100ms}}
typed_names: {{Text: text}}
envelope:
  targets:
    - {{url: "{url}/api/v1/*", upstream: dashscope}}
    - {{url: "{url}/own/*"}}
  allow_private: ["127.0.0.0/8"]
"""
PLAIN = CONFIG.replace("typed_names: {{Text: text}}\n", "")
BODY = {"model": "gpt-x", "stream": True, "messages": []}
ASKED = "/forward-sse?events=typed"
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
CLOSED = failed("upstream_unreachable", "The upstream closed the stream before its end.")


def text(words: str) -> dict[str, Any]:
    return {"t": "Text", "r": words}


def line(**members: Any) -> bytes:
    """A typed event as it is on the wire."""
    return b"data: " + json.dumps(members, separators=(",", ":")).encode() + b"\n\n"


async def begin(proxy: Running, upstream: Upstream, path: str = ASKED) -> tuple[Peer, Peer, Message]:
    """A typed stream that runs, with its first event at the client."""
    client = await proxy.client()
    client.write(request(path, BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    head = await client.read_head()
    await client.read_until(line(t="Text", r="one") + b"\r\n")
    return client, vendor, head


async def rest_of(client: Peer) -> list[dict[str, Any]]:
    """The events until the body's end, which must be one in order."""
    body = b""
    while size := int(await client.read_until(b"\r\n"), 16):
        body += (await client.read_exactly(size + 2))[:-2]
    await client.read_exactly(2)
    return read(body)
