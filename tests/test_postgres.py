"""The server of the tests itself."""

from __future__ import annotations

import psycopg
import pytest

from tests.postgres import PostgresServer


def test_server_is_killed_and_comes_back() -> None:
    """What was written is there again after a crash; meanwhile nobody answers; a hanging server answers later."""
    server = PostgresServer()
    try:
        server.start()
        server.ask("CREATE TABLE t AS SELECT 1 AS n")
        server.admin("CHECKPOINT")  # as good as fsync, which is off
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            server.ask("SELECT n FROM t")
        server.start()
        assert server.ask("SELECT n FROM t") == [(1,)]
        server.stop()
        server.go_on()
        assert server.ask("SELECT n FROM t") == [(1,)]
    finally:
        server.close()
