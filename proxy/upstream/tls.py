"""TLS towards upstreams: always verified, with the system's authorities or the operator's own file.

Where an upstream wants one, with a certificate of ours.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from proxy.protocol.verify_flags import set_verify_flags
from proxy.upstream.reasons import ClientHandshake

if TYPE_CHECKING:
    from proxy.model import TlsFiles


class TlsContexts:
    """The TLS contexts, one for each set of files: loading the system's authorities takes tens of milliseconds."""

    def __init__(self) -> None:
        self._contexts: dict[TlsFiles, ssl.SSLContext] = {}

    def get(self, files: TlsFiles) -> ssl.SSLContext:
        """Return the context of these files; without a `ca_file` it trusts the system's authorities.

        Names are checked, TLS 1.2 is the least. Only HTTP/1.1 is offered.

        Raises:
            OSError: a file cannot be read or used; `ssl.SSLError` is one.
        """
        context = self._contexts.get(files)
        if context is None:
            context = self._contexts[files] = make_context(files)
        return context

    def replace(self, files: TlsFiles, context: ssl.SSLContext) -> None:
        """Use another context for these files from now on; open connections keep theirs."""
        self._contexts[files] = context


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """Create a context from the files as they are now. Blocks.

    Raises:
        OSError: a file cannot be read or used; `ssl.SSLError` is one.
    """
    context = set_verify_flags(ssl.create_default_context(cafile=files.ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslobject_class = ClientHandshake
    context.set_alpn_protocols(["http/1.1"])
    if files.certificate is not None:
        # OpenSSL would ask for a passphrase on the terminal.
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    return context
