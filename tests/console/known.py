"""The operators of the console's tests."""

from __future__ import annotations

import hashlib

from proxy.auth.operators import AdminRules, Operators, OperatorToken, Role

# As `key new --admin` makes them, but for the random part.
OPERATE, VIEW = "fssa_operate-token-canary", "fssa_view-token-canary"


def _token(name: str, text: str, role: Role) -> OperatorToken:
    return OperatorToken(name, hashlib.sha256(text.encode()).digest(), role)


RULES = AdminRules(
    (_token("otto", OPERATE, "operate"), _token("vera", VIEW, "view")), needs_credential=True, checks_host=False
)


def operators() -> Operators:
    """Otto, who may operate, and Vera, who may view."""
    return Operators(RULES, secret=b"s" * 32)
