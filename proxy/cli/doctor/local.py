"""The doctor on the proxy's own machine: what the proxy needs, before it serves or beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from proxy.cli import check_report
from proxy.cli.doctor import machine
from proxy.cli.doctor.vendors import check_vendors
from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.settings import ConfigurationError
from proxy.settings import loading as config_file
from proxy.settings.build import secrets_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.settings import Settings

_CHECKS = (
    machine.check_ports,
    machine.check_machine,
    machine.check_store,
    machine.check_ledger_file,
    machine.check_keys,
    machine.check_telemetry,
)


async def examine(config: Path | None, *, is_paid: bool) -> AsyncIterator[Verdict]:
    """Yield the verdicts, each as soon as it is known; nothing is changed, and nothing paid without `is_paid`."""
    path = config_file.path_of(config, os.environ)
    try:
        settings = config_file.load(path, os.environ)
    except ConfigurationError as error:
        for fault in str(error).splitlines():
            yield fail("configuration", "faulty", fault)
        return
    secrets = tuple(secrets_of(settings))
    for verdict in _configuration(settings, str(path)):
        yield _redacted(verdict, secrets)
    for check in _CHECKS:
        for verdict in await check(settings):
            yield _redacted(verdict, secrets)
    for verdict in await check_vendors(settings, is_paid=is_paid):
        yield _redacted(verdict, secrets)


def _configuration(settings: Settings, path: str) -> list[Verdict]:
    warnings = check_report.warnings(settings)
    if not warnings:
        return [ok("configuration", f"{path} is good.")]
    return [warn("configuration", "doubtful", warning) for warning in warnings]


def _redacted(verdict: Verdict, secrets: tuple[str, ...]) -> Verdict:
    """The verdict without a secret that a text of another's may have repeated."""
    says = verdict.says
    for secret in secrets:
        if secret:
            says = says.replace(secret, "[redacted]")
    return verdict._replace(says=says)
