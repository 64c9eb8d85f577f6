"""One admission by the Redis store: a charge and its lease; and the question that it is the answer to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.channel import Answer
    from proxy.limits.redis.store import RedisStore
    from proxy.limits.store import Admission, Fallback, Lease, RateStatus
    from proxy.model import Amounts


class RedisAdmission:
    """See `store.Admission` and `store.Lease`; one object is both.

    `answer` is the server's, None where it was not asked: then `fallback` says why it was let in all the same, and
    `inner` is the admission of this worker's own count, if there is one. `shadow` is the lease in that count.
    `is_registered` says whether the server may know the lease.
    """

    __slots__ = (
        "_store",
        "account",
        "answer",
        "fallback",
        "id",
        "inner",
        "is_refunded",
        "is_registered",
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
        self.shadow: Lease | None = None if inner is None else inner.lease

    @property
    def lease(self) -> RedisAdmission:
        """The slot."""
        return self

    def release(self) -> None:
        """Give the slot back; see `store.Lease.release`."""
        self._store.release(self)

    left = None

    def settle(self, took: Amounts) -> None:
        """Charge what was taken, and release; see `store.Admission.settle`."""
        del took
        self.release()

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
