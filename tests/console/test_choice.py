"""Which streams an operator wants, and in which order."""

from __future__ import annotations

import pytest

from proxy.console.choice import MAX_ROWS, SORTS, Choice
from tests.console.made_up import made_up

ROWS = [made_up(number) for number in range(40)]


def ids(rows: list[dict[str, object]]) -> list[int]:
    return [int(str(row["id"]), 16) for row in rows]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), list(range(40))),
        (Choice(user="bob-1"), [9]),
        (Choice(user="bob-1", issuer="other"), []),
        (Choice(upstream="gemini", phase="paused"), [13]),
        (Choice(text="ÉMILE-2"), [20]),
        (Choice(text="QWEN"), [2, 7, 12, 17, 22, 27, 32, 37]),
        (Choice(text=f"{17:024x}"), [17]),
        (Choice(text="id.example.com", phase="waiting"), [3, 11, 19, 27, 35]),
        (Choice(text="no such thing"), []),
    ],
)
def test_choice_of(choice: Choice, expected: list[int]) -> None:
    """A stream is shown where it has all that is asked for; text is looked for whatever its case."""
    assert ids(choice.of(ROWS)) == expected


def test_choice_of_a_request_without_a_user() -> None:
    """What is not authenticated yet has no user, and is found by its id."""
    row = made_up(1, user=None, issuer=None, plan=None, upstream=None, model=None)
    assert Choice(text=row["id"]).of([row]) == [row]
    assert Choice(user="bob-0").of([row]) == []


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_choice_first(sort: str, order: str) -> None:
    """Rows are in order, unknown values last, whichever the order."""
    first = Choice(sort=sort, order=order).first(ROWS)
    values = [row[SORTS[sort]] for row in first]
    known = [value for value in values if value is not None]
    assert len(first) == len(ROWS)
    assert values[: len(known)] == known
    # The oldest began first.
    assert known == sorted(known, reverse=(order == "desc") != (sort == "age"))


def test_choice_first_is_capped() -> None:
    """Of many rows the first are kept: those at the top of the order."""
    rows = [made_up(number) for number in range(2000)]
    by_bytes = Choice(sort="bytes").first(rows)
    assert len(by_bytes) == MAX_ROWS
    assert [row["bytes"] for row in by_bytes] == sorted((row["bytes"] for row in rows), reverse=True)[:MAX_ROWS]
    assert ids(Choice().first(rows))[:3] == [1999, 1998, 1997]
    users = [row["user"] for row in Choice(sort="user", order="desc").first(rows)]
    assert users == sorted((row["user"] for row in rows), reverse=True)[:MAX_ROWS]
