"""One admission by the Redis store: a charge and its lease; and the question that it is the answer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from proxy.limits.redis.token_commands import member_of

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


class RedisAdmission:
    """See `store.Admission` and `store.Lease`; one object is both.

    `answer` is the server's, None where it was not asked: then `fallback` says why it was let in all the same, and
    `inner` is the admission of this worker's own count, if there is one. `shadow` is its place in that count.
    `is_registered` says whether the server may know the lease. `limits` are the token limits of its plan, `held` is
    what it has reserved of them, or may have; `is_confirmed` says that it has.
    """

    __slots__ = (
        "_store",
        "account",
        "answer",
        "fallback",
        "held",
        "id",
        "inner",
        "is_confirmed",
        "is_refunded",
        "is_registered",
        "limits",
        "shadow",
        "standing",
    )

    def __init__(
        self,
        store: RedisStore,
        account: UserAccount,
        id_: bytes,
        standing: RateStatus,
        *,
        answer: Sequence[int] | None = None,
        fallback: Fallback | None = None,
        inner: Admission | None = None,
    ) -> None:
        self._store = store
        self.account = account
        self.id = id_
        self.standing = standing
        self.answer = answer
        self.fallback = fallback
        self.inner = inner
        self.is_refunded = False
        self.is_registered = answer is not None
        self.shadow: Admission | None = inner
        self.limits: TokenLimits | None = account.token_limits
        self.held: Amounts | None = None
        self.is_confirmed = False

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


class PendingAdmission:
    """An admission that is being asked for; called with the answer.

    Whoever asked may have been cancelled. Then the answer is undone: nobody else would.
    """

    __slots__ = ("_store", "account", "answered", "id", "quotas")

    def __init__(self, store: RedisStore, account: UserAccount, id_: bytes, answered: asyncio.Future[Answer]) -> None:
        self._store = store
        self.account = account
        self.id = id_
        # The account's may be others by the time of the answer: a user may have tokens of two plans.
        self.quotas = account.quotas
        self.answered = answered

    def __call__(self, answer: Answer) -> None:
        """Take the server's answer, or the failure of the connection."""
        if self.answered.cancelled():
            self._store.undo(self, answer)
        else:
            self.answered.set_result(answer)


def is_decision(answer: Answer, quotas: Quotas) -> TypeGuard[list[int]]:
    """Whether an answer has the form of those to an admission: outcome and tick, and three numbers for each rate."""
    if not isinstance(answer, list) or len(answer) != 2 + 3 * len(quotas.limits):
        return False
    return all(isinstance(number, int) for number in answer)
