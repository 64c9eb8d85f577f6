"""`admin`: who may use the operator's listener, and where it must be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.cli import check_report
from proxy.settings.build import build_admin_rules
from proxy.settings.loading import ConfigurationError, load
from proxy.settings.units import Address
from tests.settings_builder import settings

if TYPE_CHECKING:
    from pathlib import Path

A, B = "a" * 64, "B" * 64
OPS = {"name": "ops", "sha256": A, "role": "operate"}
LOOK = {"name": "look", "sha256": B}
REST = "auth: none\nupstreams: {main: {url: 'https://h', dialect: openai, api_key: none}}\n"


def faults(path: Path, text: str) -> list[str]:
    """The faults of a file, without its name."""
    path.write_text(REST + text)
    with pytest.raises(ConfigurationError) as refused:
        load(path, {})
    return [str(fault).removeprefix(f"{path}:") for fault in refused.value.faults]


def test_admin_tokens() -> None:
    """Tokens have a name, a digest in lower case, and the lesser role unless given the other; metrics are open."""
    admin = settings(admin={"tokens": [OPS, LOOK]}).admin
    assert admin is not None
    assert [(one.name, one.sha256, one.role) for one in admin.tokens] == [
        ("ops", A, "operate"),
        ("look", B.lower(), "view"),
    ]
    assert (admin.metrics, admin.is_open) == ("open", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "localhost", "LOCALHOST"])
def test_admin_absent_on_loopback(host: str) -> None:
    """On loopback nothing need be said."""
    assert settings(admin_listen=f"{host}:9090").admin is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::]", "10.0.0.1", "[2001:db8::1]", "proxy.internal", "localhost.example"]
)
def test_admin_absent_elsewhere(tmp_path: Path, host: str) -> None:
    """A listener that others reach is refused, with its line; `admin` of either kind allows it."""
    path = tmp_path / "proxy.yaml"
    (fault,) = faults(path, f"admin_listen: '{host}:9090'\n")
    assert fault.startswith("3: admin_listen: is reachable from other machines, so it needs `admin: {tokens: […]}`")
    for admin in ("open", f"{{tokens: [{{name: a, sha256: '{A}'}}]}}"):
        path.write_text(f"{REST}admin_listen: '{host}:9090'\nadmin: {admin}\n")
        assert load(path, {}).admin is not None


def test_admin_by_variable(tmp_path: Path) -> None:
    """A listener that a variable moves is refused at the variable, which can say `open`, too."""
    path = tmp_path / "proxy.yaml"
    path.write_text(REST)
    with pytest.raises(ConfigurationError, match="FORWARD_SSE_ADMIN_LISTEN"):
        load(path, {"FORWARD_SSE_ADMIN_LISTEN": "0.0.0.0:9090"})
    both = {"FORWARD_SSE_ADMIN_LISTEN": "0.0.0.0:9090", "FORWARD_SSE_ADMIN": "open"}
    admin = load(path, both).admin
    assert admin is not None
    assert admin.is_open


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("admin:\n", "3: admin: has no value"),
        ("admin: none\n", "3: admin: must be a mapping with `tokens`, or the word open"),
        ("admin: opne\n", "3: admin: must be a mapping with `tokens`, or the word open (did you mean open?)"),
        ("admin: true\n", "3: admin: must be a mapping with `tokens`, or the word open"),
        ("admin: {}\n", "3: admin.tokens: is required"),
        ("admin: {metrics: open}\n", "3: admin.tokens: is required"),
        ("admin: {tokens: []}\n", "3: admin.tokens: lets nobody in"),
        ("admin: {token: []}\n", "3: admin.token: unknown key (did you mean tokens?)"),
        ("admin: {tokens: [{name: a, sha256: abc}]}\n", "3: admin.tokens[0].sha256: must be the key's SHA-256"),
        (f"admin: {{tokens: [{{name: a, sha256: {A}, role: all}}]}}\n", "3: admin.tokens[0].role: must be one of view"),
        (f"admin: {{tokens: [{{name: {'n' * 65}, sha256: {A}}}]}}\n", "3: admin.tokens[0].name: must be at most 64"),
        (f"admin: {{tokens: [{{sha256: {A}}}]}}\n", "3: admin.tokens[0].name: is required"),
        (
            f"admin: {{tokens: [{{name: a, sha256: {A}}}, {{name: a, sha256: {B}}}]}}\n",
            "3: admin.tokens[1].name: is the same name as tokens[0]",
        ),
        (
            f"admin: {{tokens: [{{name: a, sha256: {A}}}, {{name: b, sha256: {A.upper()}}}]}}\n",
            "3: admin.tokens[1].sha256: is the same token as tokens[0]",
        ),
        (f"admin: {{tokens: [{{name: a, sha256: {A}}}], metrics: closed}}\n", "3: admin.metrics: must be one of open"),
    ],
)
def test_admin_refused(tmp_path: Path, text: str, told: str) -> None:
    """What is not clear about who gets in is refused, with its line; no fault repeats a digest."""
    (fault,) = faults(tmp_path / "proxy.yaml", text)
    assert fault.startswith(told)
    assert A not in fault.lower()


def test_admin_many_tokens(tmp_path: Path) -> None:
    """There are at most 64, each of which is compared with each token that is sent."""
    listed = ", ".join(f"{{name: n{number}, sha256: '{number:064x}'}}" for number in range(65))
    assert faults(tmp_path / "proxy.yaml", f"admin: {{tokens: [{listed}]}}\n") == [
        "3: admin.tokens: must be at most 64"
    ]


def test_admin_token_is_an_api_key(tmp_path: Path) -> None:
    """A user's API key is no operator's token."""
    path = tmp_path / "proxy.yaml"
    path.write_text(
        REST.replace("auth: none", f"auth: {{api_keys: [{{user: a, sha256: {A}}}]}}")
        + f"admin: {{tokens: [{{name: ops, sha256: {A.upper()}}}]}}\n"
    )
    with pytest.raises(ConfigurationError, match=r"admin\.tokens\[0\]\.sha256: is also one of auth\.api_keys"):
        load(path, {})


@pytest.mark.parametrize(
    ("changes", "line", "warning"),
    [
        ({}, "admin          without credentials: only from this machine", None),
        ({"admin": "open"}, "admin          open: without credentials", None),
        (
            {"admin": "open", "admin_listen": "0.0.0.0:9"},
            "admin          open: without credentials",
            "admin: open: every",
        ),
        ({"admin": {"tokens": [LOOK]}, "admin_listen": "off"}, "admin_listen   off", "admin: admin_listen is off"),
        ({"admin": {"tokens": [OPS]}}, "  operator     ops: operate, SHA-256 aaaaaaaa…", None),
        (
            {"admin": {"tokens": [OPS, LOOK], "metrics": "token"}, "admin_listen": "0.0.0.0:9"},
            "admin          2 tokens, metrics with a token",
            None,
        ),
    ],
)
def test_admin_report(changes: dict[str, Any], line: str, warning: str | None) -> None:
    """`check` says who gets in, and warns where that is everybody."""
    made = settings(**changes)
    assert line in check_report.report(made).splitlines()
    found = [text for text in check_report.warnings(made) if text.startswith("admin")]
    assert [text.startswith(warning or "") for text in found] == ([] if warning is None else [True])


def test_admin_rules() -> None:
    """Each kind of `admin` makes its rules; without it they depend on where the process really listens."""
    local, public = Address("127.0.0.1", 1), Address("0.0.0.0", 1)
    absent = [build_admin_rules(settings(), where) for where in (local, None, public)]
    assert [(rules.needs_credential, rules.checks_host) for rules in absent] == [
        (False, True),
        (False, True),
        (True, False),
    ]
    everybody = build_admin_rules(settings(admin="open"), public)
    assert (everybody.needs_credential, everybody.checks_host, everybody.are_metrics_open) == (False, False, True)
    some = build_admin_rules(settings(admin={"tokens": [OPS], "metrics": "token"}), local)
    assert (some.needs_credential, some.are_metrics_open, some.tokens[0].digest.hex()) == (True, False, A)
