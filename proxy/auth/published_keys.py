"""An issuer's published key set: fetched, cached and rotated.

How a request meets a published set (RFC 7517, and the two PyJWT advisories on its client, GHSA-fhv5-28vv-h8m8 and
GHSA-993g-76c3-p5m4, whose faults this design avoids):

- A known `kid` never waits for the network, whatever the issuer's server does.
- An unknown `kid` makes the set be fetched at once, by one fetch that everyone shares, and then not again for a
  cooldown: whoever invents key ids costs the issuer one request per cooldown.
- A failed fetch, or one that brings no usable key, changes nothing: the old set stays until a maximum age.
- The set is fetched again by itself, a little before every `ttl_s`, so that a removed key stops working in an idle
  proxy too. Cache-Control is ignored: operators should be able to tell when a revocation holds from our file alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from proxy.auth.fetch_errors import KeyFetchError
from proxy.auth.jwks import JwksSource, fetch_jwks, open_session
from proxy.auth.key_sets import MAX_CANDIDATES
from proxy.auth.keys import KeyRefusedError, VerificationKey, check_algorithms, jwks_keys
from proxy.errors import AuthUnavailableError

if TYPE_CHECKING:
    import aiohttp

Outcome = Literal["changed", "unchanged", "failed"]
OnRefresh = Callable[[str, Outcome, str | None], None]

# Requests that wait for one fetch. Beyond, an unknown kid is refused without waiting, so that a hanging key server
# and a flood of invented kids cannot hold more than this many requests.
MAX_WAITERS: Final = 1024
# Reasons of keys that are not used, in the one line that says that none is.
_SHOWN_SKIPPED: Final = 4


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """When a published set is fetched, and for how long its keys are used.

    `unloaded_cooldown_s` takes the place of `cooldown_s` while there are no keys at all and every request is refused
    with 503: after that long from a failure, the next request fetches again.
    """

    ttl_s: float = 300.0
    cooldown_s: float = 30.0
    unloaded_cooldown_s: float = 1.0
    max_age_s: float = 86_400.0
    timeout_s: float = 5.0
    max_bytes: int = 1 << 20
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0


class Timer(Protocol):
    """The handle of a delayed call, as asyncio's `TimerHandle`; tests have their own."""

    def cancel(self) -> None:
        """Cancel the call."""
        ...


def _call_later(delay_s: float, callback: Callable[[], object]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, callback)


def _ignore(_issuer: str, _outcome: Outcome, _reason: str | None) -> None:
    """Do nothing: the default hook for refreshes."""


class RemoteKeySet:
    """A published JWK Set (see the module's text for its behaviour).

    The shared fetch is a task of this object: a request that is cancelled while it waits does not cancel it.
    `failure` says why the last fetch failed, `skipped` which published keys are not used; both may be shown to anybody.
    """

    def __init__(
        self,
        source: JwksSource,
        algorithms: tuple[str, ...],
        *,
        policy: RefreshPolicy = RefreshPolicy(),
        on_refresh: OnRefresh = _ignore,
        monotonic: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], object]], Timer] = _call_later,
    ) -> None:
        """Bind a source to the issuer's algorithms.

        Args:
            source: Where the keys are published.
            algorithms: Public-key algorithms only: a published key is never a secret.
            policy: The durations.
            on_refresh: Called once after each fetch with the issuer, the outcome and why it failed; the reason is
                for the log, and may name hosts.
            monotonic: The clock of cooldowns and ages.
            call_later: How the next fetch is scheduled; with `monotonic`, the only time in here.

        Raises:
            ValueError: An algorithm is unknown or HMAC: the operator's fault.
        """
        self._algorithms = check_algorithms(algorithms)
        if any(name.startswith("HS") for name in self._algorithms):
            raise ValueError("HS algorithms need a secret, not a published key set")
        self.generation = 0
        self.failure: str | None = None
        self.skipped: tuple[str, ...] = ()
        self._source = source
        self._policy = policy
        self._on_refresh = on_refresh
        self._monotonic = monotonic
        self._call_later = call_later
        self._keys: tuple[VerificationKey, ...] = ()
        self._loaded_at = 0.0
        self._refetch_allowed_at = float("-inf")
        self._failures = 0
        self._users = 0
        self._waiters = 0
        self._session: aiohttp.ClientSession | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._timer: Timer | None = None

    @property
    def settings_key(self) -> Hashable:
        """Equal for equal sources, algorithms and durations."""
        return ("remote", self._source, self._algorithms, self._policy)

    @property
    def is_loaded(self) -> bool:
        """Whether there are keys that are not too old."""
        return bool(self._keys) and self._monotonic() - self._loaded_at < self._policy.max_age_s

    async def open(self) -> None:
        """Start the first fetch and return; later calls only count the users."""
        self._users += 1
        if self._users == 1:
            self._session = open_session(self._source)
            self._start_fetch()

    async def close(self) -> None:
        """Stop when the last `open` is closed: cancels the fetch; waiting requests use the loaded keys."""
        self._users -= 1
        if self._users > 0 or self._session is None:
            return
        # Everything is taken off before the first await: who opens meanwhile begins anew, and loses nothing to us.
        session, self._session = self._session, None
        fetch, self._fetch = self._fetch, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        try:
            if fetch is not None:
                fetch.cancel()
                await asyncio.wait((fetch,))
        finally:
            await session.close()

    async def candidates(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """Return the keys for a token's header; waits for a fetch only where no loaded key has the `kid`.

        The wait is bounded by the policy's `timeout_s`; cancelling it leaves the fetch to the others.
        """
        found = self._find(kid, algorithm)
        if found is None:
            await self._refetch()
            if not self.is_loaded:
                raise AuthUnavailableError(retry_after_s=self._policy.unloaded_cooldown_s)
            found = self._find(kid, algorithm) or ()
        return found if len(found) <= MAX_CANDIDATES else ()

    def _find(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...] | None:
        """Return the loaded keys that fit, None where the `kid` is unknown and a fetch may find it.

        A known `kid` with a key that is not for this algorithm is no reason to fetch: it is a bad token. A kid is
        only ever compared (RFC 8725 §3.10).
        """
        if not self.is_loaded:
            return None
        named = self._keys if kid is None else tuple(key for key in self._keys if key.kid == kid)
        fitting = tuple(key for key in named if algorithm in key.algorithms)
        is_unknown = not named if kid is not None else not fitting
        return None if is_unknown else fitting

    async def _refetch(self) -> None:
        """Wait for the running fetch, else for a new one if the cooldown allows it."""
        if self._fetch is None:
            now = self._monotonic()
            if now < self._refetch_allowed_at:
                return
            self._refetch_allowed_at = now + self._policy.cooldown_s
            self._start_fetch()
        if self._fetch is None or self._waiters >= MAX_WAITERS:
            return
        self._waiters += 1
        try:
            # `wait` and not `await`: neither our cancellation nor the fetch's passes through it.
            await asyncio.wait((self._fetch,))
        finally:
            self._waiters -= 1

    def _start_fetch(self) -> None:
        if self._fetch is None and self._session is not None:
            name = f"keys of {self._source.issuer}"
            self._fetch = asyncio.get_running_loop().create_task(self._refresh(self._session), name=name)

    async def _refresh(self, session: aiohttp.ClientSession) -> None:
        """Fetch once, replace the keys, schedule the next fetch; the body of the shared task."""
        outcome: Outcome = "failed"
        reason: str | None = None
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                document = await fetch_jwks(session, self._source, max_bytes=self._policy.max_bytes)
            outcome = self._take(document)
        except TimeoutError:
            self.failure = reason = f"no answer within {self._policy.timeout_s:g} s"
        except KeyFetchError as error:
            self.failure, reason = error.reason, error.in_full
        except KeyRefusedError as error:
            self.failure = reason = f"key set: {error}"
        except Exception as error:  # noqa: BLE001  whatever an issuer's server makes a library raise, the old keys stay and the next fetch is scheduled
            self.failure = reason = type(error).__name__
        if self._session is not session:
            return  # closed meanwhile, by someone whose cancellation a library lost
        self._fetch = None
        self._failures = self._failures + 1 if outcome == "failed" else 0
        if outcome == "failed":
            self._forget_if_too_old()
        if not self._keys:
            self._refetch_allowed_at = self._monotonic() + self._policy.unloaded_cooldown_s
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(self._next_delay_s(), self._start_fetch)
        self._on_refresh(self._source.issuer, outcome, reason)

    def _take(self, document: object) -> Outcome:
        keys, self.skipped = jwks_keys(document, self._algorithms)
        if not keys:
            # An empty set is what a broken server publishes; an issuer that means it is removed from the file.
            raise KeyRefusedError(_no_usable_key(self.skipped))
        self.failure = None
        self._loaded_at = self._monotonic()
        if frozenset(keys) == frozenset(self._keys):
            return "unchanged"
        self._keys = keys
        self.generation += 1
        return "changed"

    def _forget_if_too_old(self) -> None:
        if self._keys and not self.is_loaded:
            self._keys = ()
            self.generation += 1

    def _next_delay_s(self) -> float:
        # Jittered downwards: workers and proxies that started together do not ask together, and `ttl_s` stays a bound.
        jitter = 0.8 + 0.2 * random.random()  # noqa: S311  no secret
        if self._failures == 0:
            return self._policy.ttl_s * jitter
        # The exponent is bounded so that the power cannot overflow after a long outage.
        backoff_s = self._policy.first_backoff_s * 2.0 ** min(self._failures - 1, 16)
        return min(backoff_s, self._policy.max_backoff_s, self._policy.ttl_s) * jitter


def _no_usable_key(skipped: tuple[str, ...]) -> str:
    """Explain why no key of a set is usable: the reasons of its first keys."""
    if not skipped:
        return "it is empty"
    more = f"; and {len(skipped) - _SHOWN_SKIPPED} more" if len(skipped) > _SHOWN_SKIPPED else ""
    return f"no usable key: {'; '.join(skipped[:_SHOWN_SKIPPED])}{more}"
