"""What the ledger keeps of an exchange, and what can be asked of it: values and the interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from proxy.model import Amounts
from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Column = Literal["user", "issuer", "plan", "upstream", "model", "day", "ending", "code"]
COLUMNS: Final[tuple[Column, ...]] = ("user", "issuer", "plan", "upstream", "model", "day", "ending", "code")
# How long sums may take, and what a user has used.
SUMS_S: Final = 5.0
USED_S: Final = 0.2
TOKEN_COLUMNS: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


class Row(NamedTuple):
    """One exchange. Never content, never a secret; money is whole nano-dollars.

    Attributes:
        row_id: Unique, and rising with time: 12 hexadecimal digits of `ended_ms`, 20 of chance. `id` may be the
            client's own, and come again.
        ended_ms: When it was settled, Unix time.
        cost_nano: None where the price is unknown, or no model was run.
        usage: `reported`, `estimated` or `none`.
        price_version: That of the built-in prices; None where no price was looked up.
        attempts: How many requests were sent to vendors.
    """

    row_id: str
    id: str
    ended_ms: int
    issuer: str
    user: str
    plan: str
    upstream: str | None
    model: str | None
    dialect: str | None
    status: int | None
    ending: str
    code: str | None
    ttfb_ms: float | None
    duration_ms: float
    bytes: int
    events: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_nano: int | None
    currency: str
    usage: str
    price_version: str | None
    attempts: int


class Query(NamedTuple):
    """Sums of the rows that ended at `since_ms` or later, by columns; only of the issuer and of the user, where given.

    Days are UTC's.
    """

    since_ms: int
    by: tuple[Column, ...] = ()
    issuer: str | None = None
    user: str | None = None


class Sums(NamedTuple):
    """The sums of a group: `by` has its columns' values, a day as `2026-01-31`."""

    by: Mapping[str, str | None]
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_nano: int
    unpriced: int

    def as_json(self) -> dict[str, Any]:
        """The members of one row of an answer; `cost_usd` is a decimal as text."""
        sums = {name: getattr(self, name) for name in ("requests", *TOKEN_COLUMNS, "unpriced")}
        return {**self.by, **sums, "cost_usd": usd_text(self.cost_nano)}


def amounts(sums: Sequence[Sums]) -> Amounts:
    """The sums of all groups, as the token limits count."""
    return Amounts(sum(one.input_tokens + one.output_tokens for one in sums), sum(one.cost_nano for one in sums))


class LedgerCounts(NamedTuple):
    """How many rows wait, failed and were dropped, for the metrics.

    Attributes:
        waiting: How many rows are not where they belong yet.
        errors: How often rows could not be written.
        dropped: How many rows were given up, because too many waited.
    """

    waiting: int
    errors: int
    dropped: int


class Ledger(Protocol):
    """Where rows go. Nobody is refused because of it."""

    @property
    def start_s(self) -> float:
        """How long after `open` it may be that it does not answer yet, though nothing is wrong."""
        ...

    async def open(self) -> None:
        """Get ready.

        Raises:
            OSError: the file cannot be used, or was written by a later release.
        """
        ...

    async def close(self) -> None:
        """Write what waits."""
        ...

    def append(self, row: Row) -> None:
        """Have a row written; never waits and never raises."""
        ...

    async def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows, the groups with the most requests first; at most 10,000 groups.

        Raises:
            LedgerUnavailableError: the database does not answer, or takes too long.
        """
        ...

    async def used(self, issuer: str, user: str, since_ms: int) -> Amounts:
        """What a user has used since a moment.

        Raises:
            LedgerUnavailableError: the database does not answer, or not within a fifth of a second.
        """
        ...

    def set_retention(self, retention_s: float) -> None:
        """Delete rows that are older than this, from now on."""
        ...

    def counts(self) -> LedgerCounts:
        """The counts so far; quick, and callable from any thread."""
        ...
