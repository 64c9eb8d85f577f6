"""The interface of an issuer's key source, and the simplest source: one key in the operator's file.

Published key sets, which are fetched and rotated, stand in `published_keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from proxy.auth.keys import pem_key, secret_key

if TYPE_CHECKING:
    from collections.abc import Hashable

    from proxy.auth.keys import VerificationKey

# How many keys a token may be tried with: without a `kid`, or with one that several keys share (RFC 7517 §4.5).
MAX_CANDIDATES: Final = 4


class KeySource(Protocol):
    """Keys of one issuer. `generation` grows whenever the keys change, which invalidates cached tokens."""

    generation: int
    # Why the last attempt to get keys failed, in words that anybody may read; None where it did not.
    failure: str | None

    @property
    def settings_key(self) -> Hashable:
        """Equal for two sources made from equal settings, so that a reload keeps the running one."""
        ...

    @property
    def is_loaded(self) -> bool:
        """Whether there are keys to verify tokens with."""
        ...

    async def candidates(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """Return the keys that may verify a token with this header, at most `MAX_CANDIDATES`, possibly none.

        Raises:
            AuthUnavailableError: No key was ever loaded, or the last ones are too old.
        """
        ...

    async def open(self) -> None:
        """Start; never waits for the network. Each `open` needs its `close`."""
        ...

    async def close(self) -> None:
        """Stop when the last `open` is closed; leaves no task and no socket."""
        ...


class StaticKeySet:
    """One key from the operator's file: an HMAC secret or a public key. `kid` is ignored, there is no choice."""

    def __init__(self, key: VerificationKey) -> None:
        self.generation = 0
        self.failure: str | None = None
        self._key = key

    @classmethod
    def from_secret(cls, secret: str | bytes, algorithms: tuple[str, ...]) -> StaticKeySet:
        """Make one from an HMAC secret; raises ValueError (see `keys.secret_key`)."""
        return cls(secret_key(secret, algorithms))

    @classmethod
    def from_pem(cls, pem: str | bytes, algorithms: tuple[str, ...]) -> StaticKeySet:
        """Make one from a public key in PEM; raises ValueError (see `keys.pem_key`)."""
        return cls(pem_key(pem, algorithms))

    @property
    def settings_key(self) -> Hashable:
        """The key's fingerprint: no secret can be read from it."""
        return ("static", self._key)

    @property
    def is_loaded(self) -> bool:
        """Always."""
        return True

    async def candidates(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:  # noqa: ARG002  the protocol's
        """Return the key, if it is bound to the algorithm."""
        return (self._key,) if algorithm in self._key.algorithms else ()

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""
