"""Whose page asks, and whether the host is this machine; by fields' values."""

from __future__ import annotations

import pytest

from proxy.protocol.own_origin import is_own_page, is_this_machine


@pytest.mark.parametrize(
    ("host", "origins", "sites", "unsafe", "safe"),
    [
        ("h:1", [], [], True, True),
        ("h:1", ["http://h:1"], [], True, True),
        ("H:1", ["https://h:1"], ["same-origin"], True, True),
        ("h:1", [], ["none"], False, True),
        ("h:1", [], ["same-site"], False, False),
        ("h:1", [], ["cross-site"], False, False),
        ("h:1", ["http://h:1"], ["cross-site"], False, False),
        ("h:1", ["http://h:2"], ["same-origin"], False, False),
        ("h:1", ["http://h"], [], False, False),
        ("h:1", ["null"], [], False, False),
        ("h:1", [""], [], False, False),
        ("h:1", ["h:1"], [], False, False),
        ("h:1", ["http://h:1", "http://evil"], [], False, False),
        ("h:1", [], ["same-origin", "cross-site"], False, False),
        (None, ["http://h:1"], [], False, False),
        (None, ["null"], [], False, False),
        ("", ["http://"], [], False, False),
        (None, [], [], True, True),
    ],
)
def test_own_page(host: str | None, origins: list[str], sites: list[str], unsafe: bool, safe: bool) -> None:
    """Only the listener's own page may ask, or none; a person may read without a page."""
    assert is_own_page(host, origins, sites, is_safe=False) is unsafe
    assert is_own_page(host, origins, sites, is_safe=True) is safe


@pytest.mark.parametrize(
    ("host", "is_this"),
    [
        (None, True),
        ("localhost", True),
        ("Localhost:80", True),
        ("127.0.0.1", True),
        ("127.0.0.1:9090", True),
        ("192.0.2.1:9090", True),
        ("[::1]", True),
        ("[::1]:9090", True),
        ("::1", True),
        ("", False),
        (":9090", False),
        ("localhost.", False),
        ("a.localhost", False),
        ("localhost.evil.example", False),
        ("evil.example:9090", False),
        ("127.0.0.1.evil.example", False),
        ("0x7f.1", False),
        ("2130706433", False),
        ("[evil.example]:1", False),
        ("localhost@evil.example", False),
    ],
)
def test_this_machine(host: str | None, is_this: bool) -> None:
    """Names that a name server can point anywhere are not this machine's."""
    assert is_this_machine(host) is is_this
