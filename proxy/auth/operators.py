"""Who is operating: verifies operators' tokens and the console's sessions, by the configuration of the moment.

A session is a cookie that holds the operator's name and when it expires, sealed with an HMAC under a random secret that
all workers of a service share. Nothing of it is stored, so any worker verifies it. The HMAC covers the token's digest,
too: a token that is removed or replaced ends its sessions, in each worker when that worker has read the file again.

A token's digest is compared in constant time. Knows nothing of requests, cookies' attributes or addresses.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from proxy.errors import ExpiredTokenError, InvalidTokenError
from proxy.protocol.client_address import ClientAddresses

if TYPE_CHECKING:
    from collections.abc import Callable

Role = Literal["view", "operate"]

# A working day, and a shift of one who came late.
SESSION_S: Final = 12 * 3600
SECRET_BYTES: Final = 32
# A later form of a session cannot be taken for this one.
_VERSION: Final = b"forward-sse console 1\0"
_EXPIRY_BYTES: Final = 8
_SEAL_BYTES: Final = 32
# Of 64 characters of a name, four bytes each at most.
_MAX_SESSION: Final = 512


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token that is accepted; its SHA-256 in place of itself."""

    name: str
    digest: bytes = field(repr=False)
    role: Role


@dataclass(frozen=True, slots=True)
class AdminRules:
    """What the configuration says of the operator's listener.

    Attributes:
        needs_credential: Whether a token or a session is needed. With no `tokens` nobody gets in then.
        checks_host: Whether `Host` must name this machine: where no credential is needed, since another machine cannot
            connect, a page whose name resolves to this one (DNS rebinding) must not get in, either.
        are_metrics_open: Whether /metrics needs none in any case.
        clients: Finds the address of who asks.
    """

    tokens: tuple[OperatorToken, ...] = ()
    needs_credential: bool = False
    checks_host: bool = True
    are_metrics_open: bool = True
    clients: ClientAddresses = field(default_factory=lambda: ClientAddresses(()))


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks; `name` is None where no credential is needed.

    A response that lasts, such as an event stream, asks `is_valid` again from time to time, and ends where it is false.
    """

    name: str | None
    role: Role
    _check: Callable[[], bool] = field(repr=False)

    @property
    def may_operate(self) -> bool:
        """Whether the operator may change anything."""
        return self.role == "operate"

    def is_valid(self) -> bool:
        """Whether the credential would still be accepted: not expired, its token not removed, its role not changed."""
        return self._check()


class Operators:
    """The operators of one worker: authenticates them, opens and verifies their sessions.

    Attributes:
        rules: By the configuration of the moment; a reload replaces them.
    """

    def __init__(
        self, rules: AdminRules, *, secret: bytes, now: Callable[[], float] = time.time, session_s: int = SESSION_S
    ) -> None:
        """`secret` seals the sessions and is the same in all workers; `now` gives the time of day in seconds."""
        self.rules = rules
        self.session_s = session_s
        self._secret = secret
        self._now = now

    def anyone(self) -> Operator:
        """Whoever asks, where no credential is needed.

        Raises:
            RuntimeError: one is needed: a defect of ours.
        """
        if self.rules.needs_credential:
            raise RuntimeError("a credential is needed")
        return Operator(None, "operate", lambda: not self.rules.needs_credential)

    def authenticate(self, token: str) -> Operator:
        """Whose token it is.

        Raises:
            InvalidTokenError: nobody's.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        # All of them, so that the time does not tell which one matched.
        matching = [known for known in self.rules.tokens if hmac.compare_digest(known.digest, digest)]
        if not matching:
            raise InvalidTokenError("This is no operator's token.")
        return self._operator(matching[0], None)

    def open_session(self, token: str) -> tuple[Operator, str]:
        """The operator whose token it is, and a new session: a secret, in characters that a cookie may have.

        Raises:
            InvalidTokenError: it is nobody's token.
        """
        operator = self.authenticate(token)
        known = self._known(operator.name)
        assert known is not None
        expires_s = int(self._now()) + self.session_s
        payload = expires_s.to_bytes(_EXPIRY_BYTES) + known.name.encode()
        return operator, urlsafe_b64encode(self._seal(known, payload) + payload).decode().rstrip("=")

    def resume_session(self, text: str) -> Operator:
        """Whose session it is.

        Raises:
            ExpiredTokenError: it has expired, its token was removed, or it was not made here.
        """
        error = ExpiredTokenError("The session has ended: log in again.")
        if len(text) > _MAX_SESSION:
            raise error
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            seal, payload = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
            name = payload[_EXPIRY_BYTES:].decode()
        except ValueError:
            raise error from None
        known = self._known(name)
        if known is None or not hmac.compare_digest(seal, self._seal(known, payload)):
            raise error
        # It is ours from here on.
        expires_s = int.from_bytes(payload[:_EXPIRY_BYTES])
        if self._now() >= expires_s:
            raise error
        return self._operator(known, expires_s)

    def _operator(self, known: OperatorToken, expires_s: int | None) -> Operator:
        def check() -> bool:
            return known in self.rules.tokens and (expires_s is None or self._now() < expires_s)

        return Operator(known.name, known.role, check)

    def _known(self, name: str | None) -> OperatorToken | None:
        return next((token for token in self.rules.tokens if token.name == name), None)

    def _seal(self, known: OperatorToken, payload: bytes) -> bytes:
        return hmac.digest(self._secret, _VERSION + known.digest + payload, "sha256")
