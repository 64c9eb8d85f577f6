"""From an upstream's response to the client's: bytes as they arrive, back pressure, timeouts, how each ending looks.

`relay` takes the upstream's response and returns aiohttp's, whose body has ended. What is written in place of or beside
the upstream's own bytes is a `Transform`: nothing (`passthrough`), typed events (`typed`), or what an `EventSource` has
to be told in the stream (`event_source`). `EarlyResponse` begins before the upstream's response is there.
`Overruns` end streams whose user's budget is used up. `stream_echo` streams events of our own the same way, without an
upstream, as `echo.EchoSchedule` says.
"""

from proxy.relay.early import EARLY, EarlyResponse, early_interval_s
from proxy.relay.overrun import Overruns
from proxy.relay.relay import relay, stream_echo
from proxy.relay.response import RelayResponse

__all__ = ["EARLY", "EarlyResponse", "Overruns", "RelayResponse", "early_interval_s", "relay", "stream_echo"]
