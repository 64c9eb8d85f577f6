"""The vendor's connection: address checks, TLS, a pool of kept connections, and the HTTP/1.1 client protocol.

The bytes of a request and an `Address` enter; an `UpstreamResponse` leaves as soon as the vendor's head is complete, or
a 502, 503 or 504 error. Its body goes to the sink that is attached to it, in the callback that read it.
"""

from proxy.upstream.addresses import Address
from proxy.upstream.connection import Connection
from proxy.upstream.pool import Pool
from proxy.upstream.response import NOTHING, Sink, UpstreamResponse

__all__ = ["NOTHING", "Address", "Connection", "Pool", "Sink", "UpstreamResponse"]
