"""Finds the caller's credential in a request, where each vendor's SDK puts it, and keeps it from being forwarded.

Pure: reads a request head, raises refusals. Whether the credential is any good is the authenticator's business; taking
the header fields that carried it off the forwarded request is the route's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from proxy.auth.tokens import MAX_TOKEN_CHARS
from proxy.errors import InvalidRequestError, InvalidTokenError
from proxy.protocol.header_fields import SERVER_CREDENTIALS, fold
from proxy.protocol.paths import query_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.model import RequestHead

# Longer ones are refused before anything is parsed.
MAX_CREDENTIAL_BYTES: Final = MAX_TOKEN_CHARS

# Shorter strings are no secrets, and occur in values by chance.
_MIN_CREDENTIAL: Final = 8
# One for each field that can carry one, and a few in a query.
_MAX_OWN: Final = 16
# Where the vendors' SDKs put their key, and so the proxy's token.
_KEY_FIELDS: Final = SERVER_CREDENTIALS - {b"authorization"}
# Wider than RFC 6750's b64token, so that a foreign key is "invalid" and not "malformed"; no space, no control
# character, no comma splitting.
_VISIBLE: Final = bytes(range(ord("!"), ord("~") + 1))
_OWS: Final = b" \t"


def only_bearer(head: RequestHead) -> bytes | None:
    """Return the token of `Authorization: Bearer` as it came, where nothing else in the head can carry a credential.

    None also where the field is not spelled as usual. Nothing is checked: this is for finding a token that was good
    before; `find_credential` reads all others.
    """
    value = head.index.get(b"authorization")
    return value[7:] if value is not None and value[:7] == b"Bearer " and _has_one_place(head) else None


def find_credential(head: RequestHead, *, query_key: bool, query_token: bool) -> str | None:
    """Return the one credential that a request carries, or None.

    Looks in `Authorization: Bearer`, in the vendors' key fields, in `?key=` with `query_key` and, where the operator
    allows it, in `?access_token=` (RFC 6750 §2.3). The same credential in several places is fine; an authorization
    of another scheme, and an empty key field as SDKs send it with an unset key, count as nothing.

    Raises:
        InvalidRequestError: Two different credentials, a second `Authorization` field even if it agrees (RFC 9110
            §5.3 allows no second one), a repeated `access_token`, or one that is not allowed here.
        InvalidTokenError: The credential cannot be a token: empty, too long, with spaces or non-ASCII bytes.
    """
    index = head.index
    if _has_one_place(head):
        bearer = _bearer(index.get(b"authorization"))
        return None if bearer is None else bearer.decode("ascii")
    if b"authorization" in index.repeated:
        raise InvalidRequestError("There is more than one Authorization field.")
    bearer = _bearer(index.get(b"authorization"))
    found = set() if bearer is None else {bearer}
    for name in _KEY_FIELDS:
        found.update(_checked(key) for value in index.every(name) if (key := value.strip(_OWS)))
    if head.query:
        found.update(_query_credentials(head.query, query_key=query_key, query_token=query_token))
    if len(found) > 1:
        raise InvalidRequestError("There are two different credentials.")
    return found.pop().decode("ascii") if found else None


def strip_query(query: bytes | None, *, query_key: bool) -> bytes | None:
    """Remove the query members that can carry a caller's credential; every other byte stays, in order.

    `access_token` goes in any case, `key` where the dialect has its credential there (`query_key`). A query of
    which nothing is left is None.
    """
    if query is None:
        return None
    members = query.split(b"&")
    names = _credential_names(query_key=query_key)
    kept = [member for member in members if _name(member) not in names]
    if len(kept) == len(members):
        return query
    return b"&".join(kept) or None


def repeats_credential(values: Iterable[bytes], head: RequestHead, passcode: str | None = None) -> bool:
    """Check whether a value that would be forwarded contains the caller's credential.

    `passcode` is that of the envelope which the request carries. The head is read once, however many values there are.

    Raises:
        InvalidRequestError: The query has more credentials than a request can need.
    """
    own = {given.strip().rpartition(b" ")[2] for name, given in head.fields if fold(name) in SERVER_CREDENTIALS}
    own.update(given for name, given in query_members(head.query) if name in _NAMES_WITH_KEY)
    if passcode is not None:
        own.add(passcode.encode())
    # Each is looked for in each value, which a caller could make thousands of times thousands.
    if len(own) > _MAX_OWN:
        raise InvalidRequestError("There are too many credentials.")
    secrets = [secret for secret in own if len(secret) >= _MIN_CREDENTIAL]
    return any(secret in value for value in values for secret in secrets)


def _has_one_place(head: RequestHead) -> bool:
    """Whether `Authorization` is all that can carry a credential, as in nearly every request."""
    index = head.index
    return not (index.repeated or head.query) and index.keys().isdisjoint(_KEY_FIELDS)


def _bearer(value: bytes | None) -> bytes | None:
    """Return the token of an `Authorization` value, None for another scheme (RFC 9110 §11.1: schemes have no case)."""
    if value is None:
        return None
    value = value.strip(_OWS)
    scheme = value[:7].lower()
    # RFC 9110 §11.4: one space or several; what else stands there is part of the token, and refused as such.
    if scheme == b"bearer ":
        return _checked(value[7:].lstrip(b" "))
    return _checked(b"") if scheme in {b"bearer", b"bearer\t"} else None


def _checked(credential: bytes) -> bytes:
    if not credential or len(credential) > MAX_CREDENTIAL_BYTES or credential.translate(None, _VISIBLE):
        raise InvalidTokenError
    return credential


def _query_credentials(query: bytes, *, query_key: bool, query_token: bool) -> Iterator[bytes]:
    names = _credential_names(query_key=query_key)
    access_tokens = 0
    for member in query.split(b"&"):
        name = _name(member)
        if name not in names:
            continue
        value = unquote_to_bytes(member.partition(b"=")[2][: 3 * MAX_CREDENTIAL_BYTES + 3])
        if name == b"access_token":
            access_tokens += 1
            if not query_token:
                raise InvalidRequestError("An access token in the query is not accepted here.")
            if access_tokens > 1:  # RFC 6750 §3.1: a repeated parameter is an invalid request
                raise InvalidRequestError("There is more than one access_token parameter.")
            yield _checked(value)
        elif value:
            yield _checked(value)


def _credential_names(*, query_key: bool) -> frozenset[bytes]:
    return _NAMES_WITH_KEY if query_key else _QUERY_NAMES


def _name(member: bytes) -> bytes:
    """Decode the name of a query member: to an upstream's parser `access%5Ftoken` is the same name."""
    name = member.partition(b"=")[0]
    return unquote_to_bytes(name) if b"%" in name else name


_QUERY_NAMES: Final = frozenset({b"access_token"})
_NAMES_WITH_KEY: Final = frozenset({b"access_token", b"key"})
