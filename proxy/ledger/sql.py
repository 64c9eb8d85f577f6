"""The ledger's SQL, the same text for SQLite and for PostgreSQL: columns, statements, and sums.

Parameters are written `:name`, as both sqlite3 and SQLAlchemy's `text()` read them. Rows are found by time through
`row_id`, which begins with the time: the primary key serves for it, and for deletion.
"""

from __future__ import annotations

from datetime import date, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.ledger.row import TOKEN_COLUMNS, Row, Sums

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.ledger.row import Query

_EPOCH: Final = date(1970, 1, 1)
DAY_MS: Final = 86_400_000
MAX_GROUPS: Final = 10_000
# What a vendor says is believed up to here, so that no sum of rows is too large for the database's integers.
MAX_TOKENS: Final = 10**10
MAX_COST_NANO: Final = 10**13

# Of the columns of `exchanges`, in both databases; `file_schema` and the migrations make them.
TYPES: Final = {
    "row_id": "TEXT NOT NULL PRIMARY KEY",
    "id": "TEXT NOT NULL",
    "ended_ms": "BIGINT NOT NULL",
    "issuer": "TEXT NOT NULL",
    "user": "TEXT NOT NULL",
    "plan": "TEXT NOT NULL",
    "upstream": "TEXT",
    "model": "TEXT",
    "dialect": "TEXT",
    "status": "INTEGER",
    "ending": "TEXT NOT NULL",
    "code": "TEXT",
    "ttfb_ms": "DOUBLE PRECISION",
    "duration_ms": "DOUBLE PRECISION NOT NULL",
    "bytes": "BIGINT NOT NULL",
    "events": "BIGINT NOT NULL",
    "input_tokens": "BIGINT NOT NULL",
    "output_tokens": "BIGINT NOT NULL",
    "cached_tokens": "BIGINT NOT NULL",
    "reasoning_tokens": "BIGINT NOT NULL",
    "cost_nano": "BIGINT",
    "currency": "TEXT NOT NULL",
    "usage": "TEXT NOT NULL",
    "price_version": "TEXT",
    "attempts": "INTEGER NOT NULL",
}
# The texts of a row, some of which are the clients' and the vendors' own.
_TEXTS_OF: Final = itemgetter(*(at for at, type_ in enumerate(TYPES.values()) if type_.startswith("TEXT")))
# Where a row has no value a day's key has an empty text: NULLs are never equal, and no conflict would be found.
_NULLABLE: Final = frozenset({"upstream", "model", "code"})
_KEY: Final = ("issuer", "user", "day", "plan", "upstream", "model", "ending", "code")
_COUNTED: Final = ("requests", *TOKEN_COLUMNS, "cost_nano", "unpriced")


def _name(column: str) -> str:
    """A column's name as SQL; `user` is PostgreSQL's own word."""
    return f'"{column}"' if column == "user" else column


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(_name, columns))


def _parameters(columns: Iterable[str]) -> str:
    return ", ".join(f":{column}" for column in columns)


# Only rows that are really inserted may be added to the days: see `totals`.
INSERT_ROW: Final = (
    f"INSERT INTO exchanges ({_names(Row._fields)}) VALUES ({_parameters(Row._fields)}) "  # noqa: S608 - names of columns
    "ON CONFLICT (row_id) DO NOTHING"
)
ADD_DAY: Final = (
    f"INSERT INTO days ({_names((*_KEY, *_COUNTED))}) VALUES ({_parameters((*_KEY, *_COUNTED))}) "  # noqa: S608 - the same
    f"ON CONFLICT ({_names(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{column} = days.{column} + excluded.{column}" for column in _COUNTED)
)
# In small pieces, so that nobody waits long for the lock.
DELETE_OLD_ROWS: Final = (
    "DELETE FROM exchanges WHERE row_id IN "
    "(SELECT row_id FROM exchanges WHERE row_id < :before_id ORDER BY row_id LIMIT :most)"
)
DELETE_OLD_DAYS: Final = "DELETE FROM days WHERE day < :before_day"


def first_id(ms: int) -> str:
    """What no `row_id` of that moment or later is below, and every earlier one is."""
    return f"{max(0, ms):012x}"


class Kept(NamedTuple):
    """From where on rows are kept: whole days, because a day's totals cannot lose a part of it."""

    before_id: str
    before_day: int

    @classmethod
    def since(cls, ms: int) -> Kept:
        """Keep the day of that moment, and later ones."""
        day = max(0, ms) // DAY_MS
        return cls(first_id(day * DAY_MS), day)


def storable(row: Row) -> Row:
    """The row as any database takes it: no NUL, no half of a surrogate pair, no number beyond reason."""
    if not "".join(filter(None, _TEXTS_OF(row))).isprintable():
        # Surrogates are unprintable, and so is NUL.
        texts: dict[str, Any] = {name: clean(value) for name, value in row._asdict().items() if isinstance(value, str)}
        row = row._replace(**texts)
    if (
        max(row.input_tokens, row.output_tokens, row.cached_tokens, row.reasoning_tokens) > MAX_TOKENS
        or (row.cost_nano or 0) > MAX_COST_NANO
    ):
        row = row._replace(
            **{name: min(getattr(row, name), MAX_TOKENS) for name in TOKEN_COLUMNS},
            cost_nano=None if row.cost_nano is None else min(row.cost_nano, MAX_COST_NANO),
        )
    return row


def clean(text: str) -> str:
    """The text as any database takes it."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def totals(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The parameters of `ADD_DAY` for rows that were inserted, summed up; always in the same order of keys.

    Two transactions that add the same days in the same order cannot wait for each other in a circle.
    """
    days: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        key = (
            row.issuer,
            row.user,
            row.ended_ms // DAY_MS,
            row.plan,
            row.upstream or "",
            row.model or "",
            row.ending,
            row.code or "",
        )
        sums = days.get(key)
        if sums is None:
            sums = days[key] = [0] * len(_COUNTED)
        sums[0] += 1
        sums[1] += row.input_tokens
        sums[2] += row.output_tokens
        sums[3] += row.cached_tokens
        sums[4] += row.reasoning_tokens
        sums[5] += row.cost_nano or 0
        # As the metric of that name: a model was run, and nobody knows its price.
        sums[6] += row.cost_nano is None and row.usage != "none"
    return [dict(zip((*_KEY, *_COUNTED), (*key, *days[key]), strict=True)) for key in sorted(days)]


def counts_of(day: dict[str, Any]) -> list[int]:
    """The numbers of one day of `totals`, as a record that `read_sums` reads."""
    return [day[column] for column in _COUNTED]


def sums_statement(query: Query) -> tuple[str, dict[str, Any]]:
    """The SELECT of a query, and its parameters; `read_sums` reads what it returns.

    Whole days come from their totals, the rows before the first whole day one by one.
    """
    since_ms = max(0, query.since_ms)
    first_day = -(-since_ms // DAY_MS)
    parameters: dict[str, Any] = {"first_day": first_day}
    whose = ""
    for column in ("issuer", "user"):
        value = getattr(query, column)
        if value is not None:
            whose += f" AND {_name(column)} = :{column}"
            parameters[column] = clean(value)
    parts = f"SELECT {_names((*query.by, *_COUNTED))} FROM days WHERE day >= :first_day{whose}"  # noqa: S608 - names of columns
    if since_ms < first_day * DAY_MS:
        parameters |= {"since_id": first_id(since_ms), "until_id": first_id(first_day * DAY_MS)}
        selected = ", ".join([*map(_of_row, query.by), *map(_of_row, _COUNTED)])
        parts += f" UNION ALL SELECT {selected} FROM exchanges WHERE row_id >= :since_id AND row_id < :until_id{whose}"  # noqa: S608 - the same
    summed = ", ".join(f"CAST(SUM({column}) AS BIGINT)" for column in _COUNTED)
    columns = [*map(_name, query.by), summed]
    order = ", ".join([f"{len(query.by) + 1} DESC", *(str(number + 1) for number in range(len(query.by)))])
    group = f" GROUP BY {_names(query.by)}" if query.by else ""
    statement = f"SELECT {', '.join(columns)} FROM ({parts}) AS parts{group} ORDER BY {order} LIMIT {MAX_GROUPS}"  # noqa: S608 - the same
    return statement, parameters


def _of_row(column: str) -> str:
    """A column of `days` as it follows from one row of `exchanges`."""
    if column == "day":
        return f"CAST(ended_ms / {DAY_MS} AS BIGINT) AS day"
    if column == "requests":
        return "1 AS requests"
    if column == "cost_nano":
        return "COALESCE(cost_nano, 0) AS cost_nano"
    if column == "unpriced":
        return "CASE WHEN cost_nano IS NULL AND usage <> 'none' THEN 1 ELSE 0 END AS unpriced"
    if column in _NULLABLE:
        return f"COALESCE({column}, '') AS {column}"
    return _name(column)


def read_sums(query: Query, records: Iterable[Sequence[Any]]) -> list[Sums]:
    """The sums from what `sums_statement` returned; none where there was nothing to sum up."""
    count = len(query.by)
    return [
        Sums(
            {column: _shown(column, value) for column, value in zip(query.by, record[:count], strict=True)},
            *map(int, record[count:]),
        )
        for record in records
        if record[count] is not None
    ]


def _shown(column: str, value: Any) -> str | None:
    if column == "day":
        return (_EPOCH + timedelta(days=int(value))).isoformat()
    return None if value == "" and column in _NULLABLE else str(value)
