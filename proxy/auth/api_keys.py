"""API keys: opaque secrets that the operator's file knows only by their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# Every key that the proxy makes starts so: secret scanners can find a leaked one, and it is never taken for a JWT.
API_KEY_PREFIX: Final = "fsse_"
_DIGEST_BYTES: Final = 32
_NOBODY: Final = bytes(_DIGEST_BYTES)


class ApiKeyOwner(NamedTuple):
    """The owner of an API key; `plan_name` is None where the configuration names none."""

    user: str
    plan_name: str | None


class ApiKeys:
    """The API keys of one configuration, found by digest.

    What is looked up is the SHA-256 of what was sent, so the time of a look-up tells nothing about how much of a
    guess was right: a guess that is nearly a key has a digest that is nowhere near. No key itself is kept.
    """

    def __init__(self, entries: Iterable[tuple[str, str, str | None]] = ()) -> None:
        """Take `(sha256_hex, user, plan_name)` entries.

        Raises:
            ValueError: A digest is not 64 hex digits or is there twice: the operator's fault.
        """
        self._owners: dict[bytes, tuple[bytes, ApiKeyOwner]] = {}
        # At most as many as there are keys.
        self._found: set[bytes] = set()
        for sha256_hex, user, plan_name in entries:
            try:
                digest = bytes.fromhex(sha256_hex)
            except ValueError:
                digest = b""
            if len(digest) != _DIGEST_BYTES or len(sha256_hex) != 2 * _DIGEST_BYTES:
                raise ValueError("an API key's sha256 must be 64 hex digits")
            if digest in self._owners:
                raise ValueError("two API keys have the same sha256")
            self._owners[digest] = (digest, ApiKeyOwner(user, plan_name))

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, key: str) -> ApiKeyOwner | None:
        """Return the owner of a key, or None; takes the same steps for a hit and for a miss. Never raises."""
        digest = _digest(key)
        known_digest, owner = self._owners.get(digest, (_NOBODY, None))
        if not hmac.compare_digest(digest, known_digest):
            return None
        self._found.add(digest)
        return owner

    def was_found(self, key: str) -> bool:
        """Whether `find` has found that key before, which a guess was not."""
        return bool(self._found) and _digest(key) in self._found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
