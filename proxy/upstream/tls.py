"""TLS towards upstreams: always verified, with the system's authorities or the operator's own file."""

from __future__ import annotations

import ssl

from proxy.upstream.reasons import ClientHandshake


class TlsContexts:
    """The TLS contexts, one for each file of authorities: loading the system's takes tens of milliseconds."""

    def __init__(self) -> None:
        self._contexts: dict[str | None, ssl.SSLContext] = {}

    def get(self, ca_file: str | None) -> ssl.SSLContext:
        """Return the context that trusts `ca_file`, or the system's authorities where it is None.

        Names are checked, TLS 1.2 is the least. Only HTTP/1.1 is offered.

        Raises:
            OSError: the file cannot be read.
            ssl.SSLError: the file holds no certificate.
        """
        context = self._contexts.get(ca_file)
        if context is None:
            context = self._contexts[ca_file] = make_context(ca_file)
        return context

    def replace(self, ca_file: str, context: ssl.SSLContext) -> None:
        """Use another context for that file from now on; open connections keep theirs."""
        self._contexts[ca_file] = context


def make_context(ca_file: str | None) -> ssl.SSLContext:
    """Create a context that trusts the file as it is now, or the system's authorities. Blocks.

    Raises:
        OSError: the file cannot be read.
        ssl.SSLError: the file holds no certificate.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslobject_class = ClientHandshake
    context.set_alpn_protocols(["http/1.1"])
    return context
