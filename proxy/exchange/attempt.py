"""What is kept of one attempt: one request to one vendor with one key, for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from proxy.errors import UpstreamTimeoutError
from proxy.failover.policy import Outcome

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Sequence

    from proxy.exchange.telemetry import Call
    from proxy.model import Ending
    from proxy.upstream import UpstreamResponse

# Which clock an answer's head can be too late for.
Clock = Literal["connect", "first_byte", "first_output", "total"]
_CANCELLED: Final = Outcome.CANCELLED
# The line of an exchange stays short, whatever was tried: the last ones are shown.
MOST_LOGGED = 16


class Attempt:
    """One attempt, and the clock of its answer's head. Times are the loop's, in seconds.

    Attributes:
        key: The first 8 hexadecimal digits of the SHA-256 of the operator's key; None where there is none.
        outcome: How it came out; CANCELLED where it did not.
        status: The vendor's; None while it has not answered.
        ending: How it ended; None while it is under way, or its answer is.
        reason: Why, where it failed before there was an answer: the log's word.
        sent_s: When the request was handed to the connection; None before that.
        waiter: What waits for the answer's head, where a clock runs.
        call: What telemetry knows of it; None where there is none.
    """

    __slots__ = (
        "_clock",
        "_deadline_s",
        "begun_s",
        "call",
        "ended_s",
        "ending",
        "key",
        "outcome",
        "reason",
        "sent_s",
        "status",
        "upstream",
        "waiter",
    )

    def __init__(self, upstream: str, key: str | None, begun_s: float) -> None:
        self.upstream = upstream
        self.key = key
        self.begun_s = begun_s
        self.sent_s: float | None = None
        self.outcome = _CANCELLED
        self.status: int | None = None
        self.ending: Ending | None = None
        self.reason: str | None = None
        self.ended_s = 0.0
        self.call: Call | None = None
        self.waiter: Future[UpstreamResponse] | None = None

    def expect(self, waiter: Future[UpstreamResponse], clock: Clock, deadline_s: float) -> None:
        """Fail `waiter` when that clock runs out, while the timer checks this; nothing restarts it."""
        self.waiter = waiter
        self._clock = clock
        self._deadline_s = deadline_s

    def check(self, now_s: float) -> None:
        """Act if the deadline has passed; called by the `DeadlineTimer`."""
        waiter = self.waiter
        if waiter is not None and now_s >= self._deadline_s and not waiter.done():
            waiter.set_exception(UpstreamTimeoutError(self._clock))

    def end(self, ending: Ending, reason: str | None, now_s: float) -> None:
        """Note how it ended."""
        self.ending = ending
        self.reason = reason
        self.ended_s = now_s


def logged(attempts: Sequence[Attempt], ending: Ending, now_s: float) -> list[dict[str, Any]]:
    """Return the attempts as the log shows them; what is under way ends with its exchange."""
    shown: list[dict[str, Any]] = []
    # Nearly always there is one: a comprehension's own call, and a slice of what is short, take as long as the rest.
    for attempt in attempts if len(attempts) <= MOST_LOGGED else attempts[-MOST_LOGGED:]:
        is_over = attempt.ending is not None
        shown.append(
            {
                "upstream": attempt.upstream,
                "key": attempt.key,
                "status": attempt.status,
                "ending": attempt.ending if is_over else ending,
                "ms": int(((attempt.ended_s if is_over else now_s) - attempt.begun_s) * 10_000 + 0.5) / 10,
            }
        )
    return shown
