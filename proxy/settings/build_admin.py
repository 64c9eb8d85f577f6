"""Builds from settings the rules of the operator's listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.auth.operators import AdminRules, OperatorToken
from proxy.protocol.client_address import ClientAddresses
from proxy.settings.scalars import is_loopback

if TYPE_CHECKING:
    from proxy.settings import Address, Settings


def build_admin_rules(settings: Settings, listens_on: Address | None) -> AdminRules:
    """Build the rules; `listens_on` is where the process really listens, which a reload does not change.

    A file that was read again may lack `admin` because it has moved the listener to loopback. Until the restart that
    takes, nobody gets in at the old address.
    """
    clients = ClientAddresses(settings.trusted_proxies or ())
    admin = settings.admin
    if admin is None:
        is_local = listens_on is None or is_loopback(listens_on.host)
        return AdminRules(needs_credential=not is_local, checks_host=is_local, clients=clients)
    if admin.is_open:
        return AdminRules(checks_host=False, clients=clients)
    return AdminRules(
        tuple(OperatorToken(token.name, bytes.fromhex(token.sha256), token.role) for token in admin.tokens),
        needs_credential=True,
        checks_host=False,
        are_metrics_open=admin.metrics == "open",
        clients=clients,
    )
