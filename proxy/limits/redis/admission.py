"""One admission by the Redis store: a charge and its lease; and the question that it is the answer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.limits.redis.commands import member_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.channel import Answer
    from proxy.limits.redis.store import RedisStore
    from proxy.limits.store import Admission, Fallback, RateStatus
    from proxy.limits.token_limits import TokenLimits
    from proxy.model import Amounts


@dataclass(slots=True, eq=False)
class RedisAdmission:
    """See `store.Admission` and `store.Lease`; one object is both.

    `limits` are the token limits of its plan. `answer` is the server's, None where it was not asked: then `fallback`
    says why it was let in all the same. `shadow` is its place in this worker's own count, if it is counted there.
    `is_registered` says whether the server may know the lease. `held` is what it has reserved of token limits, or may
    have; `is_confirmed` says that it has.
    """

    _store: RedisStore
    account: UserAccount
    id: bytes
    standing: RateStatus
    limits: TokenLimits | None
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

    @property
    def lease(self) -> RedisAdmission:
        """The slot."""
        return self

    def release(self) -> None:
        """Give the slot back; see `store.Lease.release`."""
        self._store.release(self)

    def settle(self, took: Amounts) -> None:
        """Charge what was taken, and release; see `store.Admission.settle`."""
        self._store.settle(self, took)

    def refund(self) -> None:
        """Give back what is left of the charge; see `store.Admission.refund`."""
        self._store.refund(self)


@dataclass(slots=True, eq=False)
class PendingAdmission:
    """An admission that is being asked for; called with the answer.

    Whoever asked may have been cancelled. Then the answer is undone: nobody else would. `quotas` are those asked about;
    the account's may be others by the time of the answer, because a user may have tokens of two plans.
    """

    _store: RedisStore
    account: UserAccount
    quotas: Quotas
    id: bytes
    answered: asyncio.Future[Answer]

    def __call__(self, answer: Answer) -> None:
        """Take the server's answer, or the failure of the connection."""
        if self.answered.cancelled():
            self._store.undo(self, answer)
        else:
            self.answered.set_result(answer)
