"""Parses an access token's outer form, a compact JWS (RFC 7515 §7.1), strictly and once.

Pure. PyJWT's parser is not used: it accepts padding and duplicate members, and a token that two parsers read
differently is how verifier and consumer come to disagree (RFC 8725 §2.4). Nothing is verified here.

Departures from the standards, all on the strict side: duplicate members (RFC 7515 §4 lets a parser take the last),
`b64` (RFC 7797) and any `crit` are refused, and so are JWE and nested tokens.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

# A token with the groups of a large directory has 11 KiB and more. The JSON of a token of this bound, which anybody may
# send, is decoded in less than 2 ms; in a header field the listener's own bound is the narrower one.
MAX_TOKEN_CHARS: Final = 65_536

# Two dots exactly: a JWE has four. Alphabet of base64url without padding; `fullmatch`, because `$` lets a newline pass.
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# Each of these asks for a processing that is not done here: RFC 7515 §4.1.11, RFC 7797, RFC 7516, RFC 7519 §5.2.
_REFUSED_PARAMETERS: Final = ("crit", "b64", "enc", "zip", "cty")


class MalformedTokenError(ValueError):
    """The text is not a token in the accepted form; the message has nothing of its content."""


@dataclass(frozen=True, slots=True)
class Jws:
    """A parsed token, of which nothing is verified."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any] = field(repr=False)
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def parse(token: str) -> Jws:
    """Parse a compact JWS.

    Time is linear in a token of at most `MAX_TOKEN_CHARS`. `jwk`, `jku`, `x5u` and `x5c` are ignored: keys come from
    configuration alone (RFC 8725 §3.10).

    Raises:
        MalformedTokenError: Any departure from the form.
        ValueError: From the JSON and text decoders.
        RecursionError: JSON nested deeper than the interpreter follows; the caller turns both into a 401.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise MalformedTokenError("too long")
    parts = _COMPACT.fullmatch(token)
    if parts is None:
        raise MalformedTokenError("not a compact JWS")
    header = _json_object(_decode(parts[1]))
    for name in _REFUSED_PARAMETERS:
        if name in header:
            raise MalformedTokenError("unsupported header parameter")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise MalformedTokenError("no algorithm")
    if "kid" in header and not isinstance(kid, str):
        raise MalformedTokenError("kid is not a string")
    if not _is_access_token_type(header):
        raise MalformedTokenError("another kind of token")
    return Jws(
        algorithm=algorithm,
        kid=kid,
        claims=_json_object(_decode(parts[2])),
        signing_input=token[: parts.end(2)].encode("ascii"),
        signature=_decode(parts[3]),
    )


def _is_access_token_type(header: dict[str, Any]) -> bool:
    """Return False where `typ` marks the token as something else than an access token.

    RFC 8725 §3.11: explicit types end in `+jwt` (`dpop+jwt`, `logout+jwt`, …); of these only RFC 9068's
    `at+jwt` is ours. Issuers put many things into `typ` otherwise, which say nothing.
    """
    if "typ" not in header:
        return True
    kind = header["typ"]
    if not isinstance(kind, str):
        return False
    kind = kind.lower().removeprefix("application/")
    return kind == "at+jwt" or not kind.endswith("+jwt")


def _decode(segment: str) -> bytes:
    """Decode canonical base64url: unused bits must be zero, or several texts would be one token (RFC 4648 §3.5)."""
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode("ascii"):
        raise MalformedTokenError("base64url is not canonical")
    return data


def _json_object(data: bytes) -> dict[str, Any]:
    # Decoded here because json.loads would also take UTF-16 and UTF-32 (RFC 7515 §4: UTF-8 only).
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise MalformedTokenError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedTokenError("duplicate member")
    return members


def _refuse_constant(_: str) -> NoReturn:
    """NaN and Infinity are no JSON (RFC 8259 §6), but Python's decoder takes them."""
    raise MalformedTokenError("not a JSON number")
