"""HAProxy in HTTP mode: one thread, kept connections to the upstream, a log line an exchange."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import Peer, Started, first_line
from benchmarks.processes import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site

_START_S = 10.0
# What it opens besides connections.
_RESERVE = 200

_CONFIG = """
global
    nbthread 1
    maxconn {connections}
    log stdout format raw local0

defaults
    mode http
    log global
    option httplog
    option http-keep-alive
    http-reuse always
    # Else events wait up to 40 ms to be sent together, and a client's leaving is only noticed when it is written to.
    option http-no-delay
    option abortonclose
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 75s

frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend vendor

backend vendor
    http-request set-header Authorization "Bearer vendor-key"
    server vendor 127.0.0.1:{upstream} maxconn {connections}
"""


class HAProxy(Peer):
    """HAProxy without a check of any kind."""

    name: ClassVar[str] = "haproxy"
    title: ClassVar[str] = "HAProxy"

    def absence(self) -> str | None:
        """No haproxy on the path."""
        return None if shutil.which("haproxy") else "not installed"

    def version(self) -> str:
        """As it says itself: `HAProxy version 2.6.12-1 …`."""
        words = first_line(["haproxy", "-v"]).split()
        return words[2] if len(words) > 2 else ""  # noqa: PLR2004 - the third word

    def start(self, site: Site) -> Started:
        """Run it in the foreground, without a master."""
        port = free_port()
        config = site.directory / "haproxy.cfg"
        connections = (site.descriptors - _RESERVE) // 2
        config.write_text(_CONFIG.format(connections=connections, port=port, upstream=site.upstream_port))
        program = site.start("haproxy", ["haproxy", "-db", "-f", config])
        program.wait_for_port(port, deadline_s=_START_S)
        return Started(port, (program,))
