"""Fixtures of the PostgreSQL ledger: a server for all tests of a module, a database for each test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.postgres import PostgresServer, started

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[PostgresServer]:
    """A server that no test breaks."""
    with started() as server:
        yield server


@pytest.fixture
def url(shared_server: PostgresServer) -> str:
    """The URL of an empty database."""
    return shared_server.create_database(f"ledger{next(_NUMBERS)}")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be broken."""
    with started() as server:
        yield server
