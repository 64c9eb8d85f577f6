"""The ledger's address: what is shown of it, and what is secret."""

from __future__ import annotations

import pytest

from proxy.settings.build import secrets_of
from proxy.settings.ledger import LedgerUrl, read_ledger
from proxy.settings.units import InvalidValue
from tests.settings_builder import settings

PASSWORD = "s3cret/word"


@pytest.mark.parametrize(
    "url", ["postgresql://user:s3c@ret/word@host/db", "postgresql://user:12/s3cret@host/db", "postgresql://u:p/@/db"]
)
def test_password_that_ends_the_address(url: str) -> None:
    """A password that is not percent-encoded is refused: a part of it would be shown as the database's name."""
    with pytest.raises(InvalidValue) as raised:
        read_ledger(url)
    assert "s3c" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://user:s3cret%2Fword@host:5432/db?sslmode=require", "postgresql://host/db?password=s3cret%2Fword"],
)
def test_password(url: str) -> None:
    """A password is shown nowhere, and redacted from the log, wherever in the address it stands."""
    found = read_ledger(url)
    assert isinstance(found, LedgerUrl)
    assert "s3cret" not in str(found)
    assert "s3cret" not in repr(found)
    assert PASSWORD in set(secrets_of(settings(usage={"ledger": url})))
