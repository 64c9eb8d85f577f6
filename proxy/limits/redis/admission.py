"""One admission by the Redis store: a charge and its lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.limits.redis.commands import member_of
from proxy.limits.store import RateStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.store import RedisStore
    from proxy.limits.store import Admission, Fallback
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Amounts

_UNKNOWN = RateStatus()


@dataclass(slots=True, eq=False)
class RedisAdmission:
    """See `store.Admission`.

    It is made when the server is asked. `quotas` and `limits` are its plan's: the account's may be others by the time
    of the answer, because a user may have tokens of two plans.
    `answer` is the server's, None where it was not asked: then `fallback` says why it was let in all the same. `shadow`
    is its place in this worker's own count, if it is counted there. `is_registered` says whether the server may know
    the lease. `held` is what it has reserved of token limits, or may have; `is_confirmed` says that it has.
    """

    _store: RedisStore
    account: UserAccount
    id: bytes
    quotas: Quotas
    limits: TokenLimits | None
    standing: RateStatus = _UNKNOWN
    answer: Sequence[int] | None = None
    fallback: Fallback | None = None
    shadow: Admission | None = None
    is_refunded: bool = False
    is_registered: bool = False
    held: Amounts | None = None
    is_confirmed: bool = False

    @property
    def member(self) -> bytes | None:
        """What the server keeps of what is held; None where nothing is."""
        return None if self.held is None else member_of(self.id, self.held)

    def free(self) -> None:
        """Take what is reserved out of what this worker knows of the user."""
        if self.is_confirmed and self.held is not None and self.account.tokens is not None:
            self.account.tokens.free(self.held)

    def release(self) -> None:
        """Give the slot back; see `store.Admission.release`."""
        self._store.release(self)

    def settle(self, took: Amounts) -> None:
        """Charge what was taken, and release; see `store.Admission.settle`."""
        self._store.settle(self, took)

    def refund(self) -> None:
        """Give back what is left of the charge; see `store.Admission.refund`."""
        self._store.refund(self)
