"""Who is asking: verifies JWTs and API keys, and keeps each issuer's key set fresh.

A credential enters, found in a request's head, query or envelope by `find_credential`; a `Principal` leaves, or a 401,
403 or 503 error. `repeats_credential` and `strip_query` keep the credential out of what is forwarded. Nothing here
knows about requests, limits or upstreams.

`operators` is the same for those who operate the proxy: their tokens and the console's sessions.
"""

from proxy.auth.authenticator import Authenticator
from proxy.auth.credentials import find_credential, only_bearer, repeats_credential, strip_query

__all__ = ["Authenticator", "find_credential", "only_bearer", "repeats_credential", "strip_query"]
