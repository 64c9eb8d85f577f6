"""Authenticates a request: turns the credential that it carries into a principal.

The one entry to this room. It chooses by the credential's shape, exactly once: an API key is never tried as a token
nor a token as an API key, so a failure in one way cannot become a success in the other.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.auth import tokens as jws
from proxy.auth.api_keys import API_KEY_PREFIX
from proxy.auth.credentials import MAX_CREDENTIAL_BYTES
from proxy.auth.issuers import verify
from proxy.errors import InvalidTokenError, ProxyError
from proxy.model import Principal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from proxy.auth.api_keys import ApiKeys
    from proxy.auth.issuers import Claims, Issuer
    from proxy.auth.key_sets import KeySource
    from proxy.model import Plan

API_KEY_ISSUER: Final = "key"
DEFAULT_PLAN: Final = "default"
_DOTS_OF_JWS: Final = 2
_API_KEY_PREFIX: Final = API_KEY_PREFIX.encode()
# BLAKE2b, because this is done for every request: SHA-256 takes twice the time where OpenSSL 3 looks it up each time.
_digest: Final = hashlib.blake2b


class _Verified(NamedTuple):
    """A cached, verified token: its principal, its expiry, and the keys' generation that verified it."""

    principal: Principal
    refused_from: float
    keys: KeySource
    generation: int


class Authenticator:
    """Authenticates credentials against API keys and any number of JWT issuers.

    Verified tokens are remembered: by digest, so that no live token lies in memory; at most `cache_entries`, the oldest
    going first; only good ones, so that nobody without a token can fill it. Each hit is checked for the token's
    expiry and for a change of its issuer's keys.
    """

    def __init__(
        self,
        *,
        issuers: Sequence[Issuer],
        api_keys: ApiKeys,
        plans: Mapping[str, Plan],
        cache_entries: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Store the configured issuers and API keys; `open` starts them.

        Args:
            issuers: Each with its own keys and a name of its own.
            api_keys: Maybe none.
            plans: By name; one must be `default`, for users without a known plan.
            cache_entries: How many verified tokens are remembered; 0 for none.
            now: Seconds since the epoch.

        Raises:
            ValueError: Two issuers of one name, an issuer called `key`, or no default plan.
        """
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        if len(self._issuers) != len(issuers):
            raise ValueError("two issuers have the same name")
        if API_KEY_ISSUER in self._issuers:
            # Its users would be taken for those of API keys, and share their limits.
            raise ValueError(f"an issuer cannot be called {API_KEY_ISSUER!r}")
        if DEFAULT_PLAN not in plans:
            raise ValueError(f"there is no plan {DEFAULT_PLAN!r}")
        self._api_keys = api_keys
        self._plans = plans
        self._cache_entries = cache_entries
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()
        self._now = now

    @property
    def key_sources(self) -> Mapping[Hashable, KeySource]:
        """The issuers' key sources by their `settings_key`; a reload passes them to the next authenticator."""
        return {issuer.keys.settings_key: issuer.keys for issuer in self._issuers.values()}

    async def open(self) -> None:
        """Start loading keys; does not wait for the network."""
        for issuer in self._issuers.values():
            await issuer.keys.open()

    async def close(self) -> None:
        """Stop; key sources that another authenticator opened go on."""
        for issuer in self._issuers.values():
            await issuer.keys.close()

    def cached_principal(self, token: bytes) -> Principal | None:
        """Return the principal of a token that was verified before and has not expired, else None; never raises.

        Only what is the same, byte for byte, is found: it needs no check of its form.
        """
        # API keys are never remembered, and what is too long is not hashed.
        if token.startswith(_API_KEY_PREFIX) or len(token) > MAX_CREDENTIAL_BYTES:
            return None
        digest = _digest(token).digest()
        verified = self._cache.get(digest)
        if verified is None:
            return None
        if self._now() < verified.refused_from and verified.keys.generation == verified.generation:
            return verified.principal
        del self._cache[digest]
        return None

    def has_verified_key(self, token: str) -> bool:
        """Whether it is an API key that was verified before; for a token with a signature, see `cached_principal`."""
        return _is_api_key(token) and len(token) <= MAX_CREDENTIAL_BYTES and self._api_keys.was_found(token)

    async def authenticate(self, token: str) -> Principal:
        """Verify a credential, wherever in the request it stood, and return its principal.

        Waits only for a key set, and only where no loaded key has the token's `kid`; cancelling is safe.

        Raises:
            InvalidTokenError: Forged, malformed, unknown, or from an issuer that is not configured.
            ExpiredTokenError: Good once.
            InsufficientScopeError: Good, without a required scope.
            AuthUnavailableError: The issuer's keys were never loaded: not the client's fault.
        """
        if _is_api_key(token):
            return self.authenticate_api_key(token)
        try:
            return await self._authenticate_token(token)
        except ProxyError:
            raise
        except Exception:  # noqa: BLE001  what a caller sends may make any parser below fail in any way: never a 500
            # `from None`: the cause may quote the token.
            raise InvalidTokenError from None

    def authenticate_api_key(self, token: str) -> Principal:
        """Look up an API key, and return its principal; a JWT is refused.

        Raises:
            InvalidTokenError: Not one of ours.
        """
        # Bounded before it is hashed.
        owner = self._api_keys.find(token) if len(token) <= MAX_CREDENTIAL_BYTES else None
        if owner is None:
            raise InvalidTokenError
        return Principal(API_KEY_ISSUER, owner.user, self._plan((owner.plan_name,) if owner.plan_name else ()))

    def problems(self) -> tuple[str, ...]:
        """List the issuers whose tokens cannot be verified now, because none of their keys is loaded, with the reason.

        The words may be shown to anybody.
        """
        return tuple(
            f"{name}: {issuer.keys.failure or 'no keys yet'}"
            for name, issuer in self._issuers.items()
            if not issuer.keys.is_loaded
        )

    def is_ready(self) -> bool:
        """Return False only where no configured way of authenticating works."""
        return len(self._api_keys) > 0 or any(issuer.keys.is_loaded for issuer in self._issuers.values())

    async def _authenticate_token(self, token: str) -> Principal:
        parsed = jws.parse(token)
        name = parsed.claims.get("iss")
        # The claim is not verified yet: it only chooses among our own entries, which demand their own `iss` again.
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None or parsed.algorithm not in issuer.algorithms:
            raise InvalidTokenError
        keys = await issuer.keys.candidates(parsed.kid, parsed.algorithm)
        # No await from here on: the generation is that of the keys which verify.
        generation = issuer.keys.generation
        claims = verify(parsed, issuer, keys, self._now())
        principal = Principal(issuer.issuer, claims.user, self._plan(claims.plan_names))
        self._remember(token, principal, claims, issuer, generation)
        return principal

    def _remember(self, token: str, principal: Principal, claims: Claims, issuer: Issuer, generation: int) -> None:
        if self._cache_entries <= 0:
            return
        refused_from = claims.expires_at + issuer.leeway_s
        self._cache[_digest(token.encode()).digest()] = _Verified(principal, refused_from, issuer.keys, generation)
        # An OrderedDict, because taking the oldest off a dict again and again gets slower and slower.
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)

    def _plan(self, names: Sequence[str]) -> Plan:
        """Return the first named plan that is configured; a user's other roles and groups are no plans."""
        return self._plans[next((name for name in names if name in self._plans), DEFAULT_PLAN)]


def _is_api_key(token: str) -> bool:
    return token.startswith(API_KEY_PREFIX) or token.count(".", 0, MAX_CREDENTIAL_BYTES) != _DOTS_OF_JWS
