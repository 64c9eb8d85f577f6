"""How strictly the form of a TLS peer's certificate is verified: the same with every Python."""

from __future__ import annotations

import ssl


def set_verify_flags(context: ssl.SSLContext) -> ssl.SSLContext:
    """Set the context's `verify_flags` to what an unchanged configuration needs after an upgrade of Python; return it.

    `ssl.create_default_context` sets two more of them from Python 3.13 on. `VERIFY_X509_STRICT` refuses authorities
    whose certificates lack extensions that RFC 5280 §4.2 asks of them (key identifiers, a critical BasicConstraints),
    as many a company's own does: it is cleared. `VERIFY_X509_PARTIAL_CHAIN` trusts an intermediate authority that the
    file of authorities lists without its root: it is set. Signatures, names, dates and purposes are verified either
    way, as curl and Go verify them.
    """
    context.verify_flags = context.verify_flags & ~ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
