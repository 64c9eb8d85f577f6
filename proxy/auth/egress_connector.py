"""aiohttp's connector, with an egress proxy on the way: aiohttp has no SOCKS5, and no CONNECT for plain http."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from proxy.protocol.proxy_variables import ProxyVariables
from proxy.protocol.verify_flags import set_verify_flags
from proxy.upstream import open_tunnel, resolve

if TYPE_CHECKING:
    from yarl import URL

    from proxy.model import EgressProxy
    from proxy.protocol.proxy_variables import Egress


class EgressConnector(aiohttp.TCPConnector):
    """Connects directly, or through the proxy that there is for a URL. Connections are not kept.

    `_create_connection` is what every connector of aiohttp's own implements; it is the one private name that is used.
    """

    def __init__(self, egress: Egress) -> None:
        super().__init__(force_close=True)
        self.egress = egress

    def proxy_for(self, url: URL) -> EgressProxy | None:
        """Return the proxy on the way to a URL."""
        egress = self.egress
        if isinstance(egress, ProxyVariables):
            named = egress.choose(url.scheme, url.raw_host or "")
            return None if named is None else named.proxy
        return egress

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the base's
    ) -> ResponseHandler:
        """Make the connection of a request.

        Raises:
            ProxyError: the egress proxy did not connect.
            aiohttp.ClientConnectorError: the TLS handshake failed behind the proxy.
        """
        proxy = self.proxy_for(req.url)
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        loop = asyncio.get_running_loop()
        host, port = req.url.raw_host or "", req.url.port or 0
        sock = await open_tunnel(proxy, host, port, await resolve(proxy.host, proxy.port))
        context: ssl.SSLContext | None = None
        if req.is_ssl():
            context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else set_verify_flags(ssl.create_default_context())
        try:
            _, handler = await loop.create_connection(
                lambda: ResponseHandler(loop),
                sock=sock,
                ssl=context,
                server_hostname=None if context is None else req.server_hostname or host,
            )
        except OSError as exc:
            raise aiohttp.ClientConnectorError(req.connection_key, exc) from exc
        return handler
