"""From an upstream's response to the client's: bytes as they arrive, back pressure, timeouts, and how each ending looks.

`relay` takes the upstream's response and returns aiohttp's, ended. What is written in place of or beside the
upstream's own bytes is a `Transform`: nothing (`passthrough`), typed events (`typed`), or what an `EventSource` has to
be told in the stream (`event_source`).
"""

from proxy.relay.relay import relay

__all__ = ["relay"]
