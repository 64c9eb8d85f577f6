"""The proxies that are compared, one module each. Their order is the table's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.aiohttp_pipe import AiohttpPipe
from benchmarks.peers.direct import Direct
from benchmarks.peers.haproxy import HAProxy
from benchmarks.peers.litellm import LiteLLM
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.nginx_auth import NginxAuth
from benchmarks.peers.ours import Ours

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer

ALL: tuple[Peer, ...] = (Direct(), Nginx(), NginxAuth(), HAProxy(), AiohttpPipe(), LiteLLM(), Ours())
