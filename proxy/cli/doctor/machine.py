"""Checks of this machine and of the services beside it.

Ports, descriptors, uvloop, limits store, ledger, key sets, telemetry's collector.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import resource
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

import aiohttp

from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.ledger import Query
from proxy.settings.build import build_authenticator, build_store, redis_address
from proxy.settings.build_telemetry import ask_collector, targets_of
from proxy.settings.ledgers import check_ledger, check_ledger_url, open_book

if TYPE_CHECKING:
    from proxy.settings import Address, Settings

# Two for each stream, and some: room for two thousand streams.
_DESCRIPTORS: Final = 4096
_SLOW_S: Final = 0.02
# The oldest that the tests run.
_OLDEST_MAJOR: Final = 7
_NO_EVICTION: Final = "noeviction"
_KEYS_S: Final = 8.0
_HEALTH_S: Final = 3.0
# The exporter's words for what went wrong (docs/telemetry.md), and what the verdict says of each.
_NOT_SENT: Final = {
    "timeout": ("unreachable", "no answer in time"),
    "unreachable": ("unreachable", "no connection"),
    "tls": ("tls", "no TLS connection"),
    "not_sent": ("unsent", "an address, a proxy or a file of certificates cannot be used"),
}


async def check_ports(settings: Settings) -> list[Verdict]:
    """Try each address that would be listened on; where one is taken, whether it is by a proxy."""
    scheme = "https" if settings.tls is not None else "http"
    addresses = [(address, scheme) for address in settings.listen]
    if settings.admin_listen is not None:
        addresses.append((settings.admin_listen, "http"))
    return [await _port(address, scheme) for address, scheme in addresses]


async def _port(address: Address, scheme: str) -> Verdict:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM) as sock:
            # As servers do: what is left of an old connection is in nobody's way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            if await _is_proxy(address, scheme):
                return ok("port", f"{address}: a proxy answers there.")
            return fail("port", "taken", f"{address}: something else listens there.")
        if exc.errno in {errno.EACCES, errno.EPERM}:
            return fail("port", "forbidden", f"{address}: this user may not listen there.")
        return fail("port", "absent", f"{address}: no address of this machine.")
    return ok("port", f"{address} is free.")


async def _is_proxy(address: Address, scheme: str) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not bound
    shown = f"[{host}]" if ":" in host else host
    try:
        async with (
            asyncio.timeout(_HEALTH_S),
            aiohttp.ClientSession(trust_env=False) as session,
            # Whose certificate it is does not matter: nothing is sent.
            session.get(f"{scheme}://{shown}:{address.port}/healthz", ssl=False) as response,
        ):
            return response.status == 200 and await response.content.read(64) == b'{"status":"ok"}'  # noqa: PLR2004
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def check_machine(settings: Settings) -> list[Verdict]:
    """Descriptors as this shell has them, and uvloop."""
    del settings
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_many = soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS
    shown = "any number of" if soft == resource.RLIM_INFINITY else str(soft)
    says = f"A process of this shell may open {shown} descriptors."
    verdicts = [ok("descriptors", says) if is_many else warn("descriptors", "few", says)]
    if importlib.util.find_spec("uvloop") is not None:
        verdicts.append(ok("uvloop", "It is installed."))
    elif sys.platform == "linux":
        verdicts.append(warn("uvloop", "missing", "It is not installed."))
    return verdicts


async def check_store(settings: Settings) -> list[Verdict]:
    """Reach the limits store as a worker does, and ask each server what it is."""
    url = settings.limits.store
    if url == "memory":
        return [ok("store", "In memory: each process counts alone.")]
    from proxy.limits.redis import StoreError, inspect  # noqa: PLC0415 - only those pay for redis-py who have a server

    try:
        facts = await inspect(redis_address(url))
        store = build_store(settings, None, on_failure=lambda: None, on_change=lambda _problem: None)
        await store.open()
        try:
            problem = store.problem()
        finally:
            await store.close()
    except (OSError, StoreError) as exc:
        return [fail("store", "away", f"{url}: {exc}.")]
    if problem is not None:
        return [fail("store", "away", f"{url}: {problem}.")]
    verdicts: list[Verdict] = []
    for name, version, policy, answer_s in facts:
        says = f"{name}: version {version or 'unknown'}, {policy or 'unknown policy'}, {answer_s * 1000:.1f} ms."
        if policy not in {None, _NO_EVICTION}:
            verdicts.append(warn("store", "policy", says))
        if answer_s > _SLOW_S:
            verdicts.append(warn("store", "slow", says))
        if version is not None and _major(version) < _OLDEST_MAJOR:
            verdicts.append(warn("store", "old", says))
        if not any(verdict.says == says for verdict in verdicts):
            verdicts.append(ok("store", says))
    return verdicts


def _major(version: str) -> int:
    major = version.partition(".")[0]
    return int(major) if major.isdecimal() else _OLDEST_MAJOR


async def check_ledger_file(settings: Settings) -> list[Verdict]:
    """Whether the ledger's file, or its spool and database, can be used; nothing is changed."""
    url = settings.usage.ledger
    if url is None:
        return []
    try:
        await asyncio.to_thread(check_ledger, settings)
        if url.path is None:
            await asyncio.to_thread(_ask_database, settings)
    except OSError as exc:
        return [fail("ledger", "unusable", f"{exc}.")]
    return [ok("ledger", f"{url} can be used.")]


def _ask_database(settings: Settings) -> None:
    check_ledger_url(settings)
    book = open_book(settings)
    assert book is not None  # the caller has looked
    try:
        book.sums(Query(int(time.time() * 1000)))
    finally:
        book.close()


async def check_keys(settings: Settings) -> list[Verdict]:
    """Load every issuer's key set as a worker does."""
    if settings.auth is None:
        return []
    published = {issuer.issuer for issuer in settings.auth.jwt if issuer.source in {"jwks_url", "discovery"}}
    told: dict[str, str | None] = {}
    all_told = asyncio.Event()

    def refreshed(issuer: str, _outcome: str, reason: str | None) -> None:
        told.setdefault(issuer, reason)
        if published <= told.keys():
            all_told.set()

    authenticator = build_authenticator(settings, known={}, on_refresh=refreshed)
    assert authenticator is not None  # there is `auth`
    try:
        await authenticator.open()
        if published:
            try:
                async with asyncio.timeout(_KEYS_S):
                    await all_told.wait()
            except TimeoutError:
                pass
    finally:
        await authenticator.close()
    verdicts: list[Verdict] = []
    for issuer in settings.auth.jwt:
        if issuer.issuer not in published:
            verdicts.append(ok("keys", f"{issuer.issuer}: its key stands in the file."))
        elif issuer.issuer in told and told[issuer.issuer] is None:
            verdicts.append(ok("keys", f"{issuer.issuer}: its key set is loaded."))
        else:
            reason = told.get(issuer.issuer) or "no answer in time"
            verdicts.append(fail("keys", "unloaded", f"{issuer.issuer}: {reason}."))
    return verdicts


async def check_telemetry(settings: Settings) -> list[Verdict]:
    """Send the collector a message without spans or metrics, as each worker's exporter would."""
    # In threads, as the exporter has one: what it sends with blocks.
    asked = (asyncio.to_thread(_collector, settings, kind, one.url) for kind, one in targets_of(settings).items())
    return list(await asyncio.gather(*asked))


def _collector(settings: Settings, kind: str, url: str) -> Verdict:
    try:
        problem = ask_collector(settings, kind)
    except ImportError:
        return fail("telemetry", "not_installed", f"{url}: the extra `otel` cannot be loaded.")
    if not problem:
        return ok("telemetry", f"{url}: accepted.")
    fault, says = _NOT_SENT.get(problem, ("refused", f"refused with {problem}"))
    return fail("telemetry", fault, f"{url}: {says}.")
