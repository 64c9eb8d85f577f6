"""What servers say of how long they keep a connection."""

from __future__ import annotations

import pytest

from proxy.protocol.keep_alive import keep_alive_s


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ((b"timeout=5",), 5),
        ((b"timeout=5, max=100",), 5),
        ((b"max=100,timeout=5",), 5),
        ((b"Timeout = 5",), 5),
        ((b"timeout=0",), 0),
        ((b"timeout=9", b"timeout=5"), 5),
        ((b"timeout=soon, timeout=7",), 7),
        ((), None),
        ((b"",), None),
        ((b"max=100",), None),
        ((b"timeout",), None),
        ((b"timeout=",), None),
        ((b"timeout=-1",), None),
        ((b"timeout=1.5",), None),
        ((b"timeout=5s",), None),
        ((b"xtimeout=5",), None),
        ((b"timeout=9999999999",), None),
        (("timeout=\u0665".encode(),), None),
    ],
)
def test_keep_alive_s(values: tuple[bytes, ...], seconds: int | None) -> None:
    """The smallest number of seconds that is one; what is none is as if it were not there."""
    assert keep_alive_s(values) == seconds
