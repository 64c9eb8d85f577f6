"""Verifies an access token by its issuer's configuration (RFC 7519, RFC 8725, RFC 9068).

Signatures are PyJWT's and cryptography's; every comparison of claims is ours, because PyJWT makes `exp`, `aud` and
`iss` optional and once compared issuers by substring (CVE-2024-53861). Identity is `iss` with the user claim.

Departures: `exp` is required although RFC 7519 makes it optional; an `iat` in the future is refused (RFC 7519 gives it
no meaning), because it shows a clock or an issuer that cannot be trusted with `exp` either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from proxy.auth.keys import check_algorithms
from proxy.errors import ExpiredTokenError, InsufficientScopeError, InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from proxy.auth.key_sets import KeySource
    from proxy.auth.keys import VerificationKey
    from proxy.auth.tokens import Jws

MAX_USER_CHARS: Final = 256
# The end of the year 9999: beyond it no date library can show the time, and the token is a mistake.
_MAX_TIME_S: Final = 253_402_300_799
# Control characters, line separators and lone surrogates: a user's name stands in log lines and in keys of a store.
_UNSAFE_IN_USER: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer of access tokens, as the operator described it; `audiences` are alternatives."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    keys: KeySource = field(repr=False, compare=False)
    audience_claim: str = "aud"
    user_claim: str = "sub"
    plan_claim: str | None = "plan"
    required_scopes: tuple[str, ...] = ()
    leeway_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse a configuration that would accept every token or none.

        Raises:
            ValueError: No issuer, audience, algorithm, audience claim or user claim, or an algorithm that is unknown.
        """
        check_algorithms(self.algorithms)
        names = (self.issuer, self.audience_claim, self.user_claim, *self.audiences)
        if not self.audiences or not all(names):
            raise ValueError("an issuer needs a name, an audience and a user claim")


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a verified token about its bearer; `plan_names` in the token's order, empty where it names none."""

    user: str
    plan_names: tuple[str, ...]
    expires_at: float


def verify(token: Jws, issuer: Issuer, keys: Collection[VerificationKey], now: float) -> Claims:
    """Verify a token by its issuer's configuration: signature and every claim (RFC 8725 §3.3).

    Pure, and bounded by at most one signature check per key given. The signature comes first: nothing that is said
    about a token's claims is said to who could not sign it.

    Args:
        token: The token taken apart; its `iss` is compared again.
        issuer: The entry.
        keys: The candidates for the token's `kid` and algorithm.
        now: Seconds since the epoch.

    Raises:
        InvalidTokenError: Anything wrong but age and scope; from claims of the wrong type too.
        ExpiredTokenError: Good, but too late by more than the leeway.
        InsufficientScopeError: Good, but a required scope is missing.
    """
    if token.algorithm not in issuer.algorithms:
        raise InvalidTokenError
    if not any(key.verifies(token.algorithm, token.signing_input, token.signature) for key in keys):
        raise InvalidTokenError
    claims = token.claims
    if claims.get("iss") != issuer.issuer:
        raise InvalidTokenError("The access token's issuer is not accepted here.")
    if not _names_audience(claims.get(issuer.audience_claim), issuer.audiences):
        raise InvalidTokenError("The access token is not meant for this service.")
    expires_at = _time(claims, "exp")
    if expires_at is None:
        raise InvalidTokenError("The access token has no expiry.")
    for name in ("nbf", "iat"):
        begins_at = _time(claims, name)
        if begins_at is not None and begins_at > now + issuer.leeway_s:
            raise InvalidTokenError("The access token is not valid yet.")
    user = _user(claims.get(issuer.user_claim), may_be_number=issuer.user_claim != "sub")
    plan_names = _plan_names(claims, issuer.plan_claim)
    # Where nobody asks for a scope, `null` is none.
    scopes = _scopes(claims) if issuer.required_scopes or _scope_of(claims) is not None else frozenset()
    if not isinstance(claims.get("jti", ""), str | None):
        raise InvalidTokenError("The access token's identifier is malformed.")
    if now >= expires_at + issuer.leeway_s:
        raise ExpiredTokenError
    if not scopes.issuperset(issuer.required_scopes):
        raise InsufficientScopeError
    return Claims(user, plan_names, expires_at)


def _names_audience(audience: object, accepted: Collection[str]) -> bool:
    """RFC 7519 §4.1.3: a string or a list of strings, compared exactly."""
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return False
    return any(name in accepted for name in named)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2: may have a fraction), None where there is none or `null`."""
    value = claims.get(name)
    if value is None:
        return None
    # bool is an int to Python; 1e999 is an infinite float to its decoder.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME_S:
        raise InvalidTokenError("The access token has a malformed time.")
    return float(value)


def _user(value: object, *, may_be_number: bool) -> str:
    """Return the user exactly as claimed: folding case or Unicode forms would make two users one.

    A whole number is its text, where it is allowed: the key of a database's row. RFC 7519 §4.1.2 makes `sub` a string.
    Numbers with a fraction or an exponent are refused, because several of them would be one user.
    """
    if may_be_number and isinstance(value, int) and not isinstance(value, bool):
        # The JSON decoder refuses more digits than `str` would write (`sys.get_int_max_str_digits`).
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_CHARS or _UNSAFE_IN_USER.search(value):
        raise InvalidTokenError("The access token names no usable user.")
    return value


def _plan_names(claims: Mapping[str, Any], claim: str | None) -> tuple[str, ...]:
    """Return the plans that a token names: none, one, or a list's members in their order.

    The number of names is bounded by the token's own size. `null` counts as absent, also within a list.
    """
    value = None if claim is None else _member(claims, claim)
    names = value if isinstance(value, list) else [value]
    if not all(name is None or isinstance(name, str) for name in names):
        raise InvalidTokenError("The access token's plan is malformed.")
    return tuple(name for name in names if name is not None)


def _member(members: Mapping[str, Any], path: str) -> Any:
    """Return the member of that exact name, else the one at that dotted path; None where there is neither.

    Names may hold dots themselves (`https://example.com/app_metadata`), so the longest one that is there is tried
    first. What is not an object has no members: such a path leads nowhere, and so does one through `null`.

    Time is linear in the objects of the token: each is entered at most once, because each is reached by one path.
    """
    found = members.get(path)
    end = path.rfind(".")
    while found is None and end > 0:
        inner = members.get(path[:end])
        if isinstance(inner, dict):
            found = _member(inner, path[end + 1 :])
        end = path.rfind(".", 0, end)
    return found


def _scope_of(claims: Mapping[str, Any]) -> Any:
    return claims["scope"] if "scope" in claims else claims.get("scp", "")


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """RFC 8693 §4.2 has one string with spaces; some issuers send a list, or call it `scp`."""
    value = _scope_of(claims)
    scopes = value.split(" ") if isinstance(value, str) else value
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InvalidTokenError("The access token's scope is malformed.")
    return frozenset(scopes)
