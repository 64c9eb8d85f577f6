"""The proxy that anyone writes in an afternoon: aiohttp on both sides, a loop in between, nothing checked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import REPOSITORY, Peer, Started, library
from benchmarks.processes import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site

_START_S = 20.0


class AiohttpPipe(Peer):
    """`async for chunk: await write(chunk)` on uvloop, without a check of any kind."""

    name: ClassVar[str] = "aiohttp_pipe"
    title: ClassVar[str] = "aiohttp pipe"

    def absence(self) -> str | None:
        """Never: the proxy itself brings aiohttp."""
        return None

    def version(self) -> str:
        """The libraries'."""
        return f"{library('aiohttp')}, {library('uvloop')}"

    def start(self, site: Site) -> Started:
        """Run it with the interpreter of the benchmark."""
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.pipe", str(port), str(site.upstream_port)]
        program = site.start("pipe", command, {"PYTHONPATH": str(REPOSITORY)})
        program.wait_for_port(port, deadline_s=_START_S)
        return Started(port, (program,))
