"""No proxy: what the load and the upstream alone take, so that a delay can be told as *added*."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import Peer, Started

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site


class Direct(Peer):
    """The upstream itself."""

    name: ClassVar[str] = "direct"
    title: ClassVar[str] = "no proxy"

    def absence(self) -> str | None:
        """Never."""
        return None

    def version(self) -> str:
        """There is none."""
        return ""

    def start(self, site: Site) -> Started:
        """Point at the upstream, which runs already."""
        return Started(site.upstream_port, ())
