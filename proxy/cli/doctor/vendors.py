"""Checks of the upstreams, from the proxy's machine: name, connection, TLS, and whether the vendor accepts the key.

A vendor is asked for its list of models, which costs nothing; with `--paid` also for one token.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from pydantic import SecretStr

from proxy.auth.egress_connector import EgressConnector
from proxy.cli.doctor.reach import clock_verdict, date_of
from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.cli.doctor.way import read, why
from proxy.dialects import DIALECTS
from proxy.errors import ProxyError
from proxy.protocol.paths import below
from proxy.settings.build_prices import is_plain
from proxy.settings.build_ways import way_of
from proxy.upstream.tls import make_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.model import Way
    from proxy.settings import Settings, UpstreamSettings

_WITHIN_S: Final = 15.0
_PAID_S: Final = 60.0
_AT_ONCE: Final = 4
_MAX_BYTES: Final = 4 * 1024 * 1024
_PORTS: Final = {"http": 80, "https": 443}
_REFUSED: Final = frozenset({401, 403})
_OK, _LIMITED, _SERVER_ERROR = 200, 429, 500


class _Reply(NamedTuple):
    """A vendor's answer; `offset_s` is how far its clock is ahead, up to `doubt_s`; None where it does not say."""

    status: int
    value: Any
    took_s: float
    offset_s: float | None
    doubt_s: float


async def check_vendors(settings: Settings, *, is_paid: bool) -> list[Verdict]:
    """Ask every upstream; then compare this machine's clock with the vendors'."""
    slots = asyncio.Semaphore(_AT_ONCE)
    clocks: list[tuple[float, float]] = []

    async def check(name: str, upstream: UpstreamSettings) -> list[Verdict]:
        async with slots:
            return await _vendor(name, upstream, way_of(settings, upstream), clocks, is_paid=is_paid)

    found = await asyncio.gather(*(check(name, upstream) for name, upstream in settings.upstreams.items()))
    verdicts = [verdict for one in found for verdict in one]
    if not clocks:
        return [*verdicts, warn("clock", "unknown", "No vendor told its time.")]
    # In the middle: one vendor may be wrong.
    offset_s, doubt_s = sorted(clocks)[len(clocks) // 2]
    return [*verdicts, clock_verdict(offset_s, doubt_s, "The vendors'")]


async def _vendor(
    name: str, upstream: UpstreamSettings, way: Way, clocks: list[tuple[float, float]], *, is_paid: bool
) -> list[Verdict]:
    parts = urlsplit(upstream.url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    # A proxy on the way looks its name up.
    if way.proxy is None:
        try:
            async with asyncio.timeout(_WITHIN_S):
                await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError):
            return [fail("vendor", "dns", f"{name}: {host} has no address.")]
    context: ssl.SSLContext | bool = True
    if parts.scheme == "https":
        try:
            context = await asyncio.to_thread(make_context, way.tls)
        except OSError as exc:
            return [fail("vendor", "tls", f"{name}: {why(exc)}.")]
    verdicts: list[Verdict] = []
    keys: list[str | None] = [key.get_secret_value() for key in upstream.keys]
    keys = keys or [None]
    async with aiohttp.ClientSession(
        connector=EgressConnector(way.proxy), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    ) as session:
        ask = partial(_ask, session, upstream, context, way.server_name)
        for number, key in enumerate(keys, 1):
            whose = f"{name}, key {number} of {len(keys)}" if len(keys) > 1 else name
            try:
                verdicts += await _with_key(ask, whose, upstream, key, clocks, is_paid=is_paid)
            except ProxyError as exc:
                return [fail("vendor", "unreachable", f"{name}: {exc.message}")]
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                is_tls = isinstance(exc, ssl.SSLError | aiohttp.ClientSSLError)
                return [fail("vendor", "tls" if is_tls else "unreachable", f"{name}: {why(exc)}.")]
    return verdicts


async def _with_key(
    ask: Callable[..., Awaitable[_Reply]],
    whose: str,
    upstream: UpstreamSettings,
    key: str | None,
    clocks: list[tuple[float, float]],
    *,
    is_paid: bool,
) -> list[Verdict]:
    dialect = DIALECTS[upstream.dialect]
    # Where a vendor lists no models, the root tells at least that somebody is there.
    path = "/" if dialect.models_path is None else _below(upstream, dialect.models_path)
    reply = await ask("GET", path, key)
    if reply.offset_s is not None:
        clocks.append((reply.offset_s, reply.doubt_s))
    verdict = _judge(whose, reply, has_key=key is not None, has_list=dialect.models_path is not None)
    if not is_paid or verdict.verdict == "fail" or key is None:
        return [verdict]
    model = _model(upstream, reply.value)
    smallest = None if model is None else dialect.smallest_request(model)
    if smallest is None:
        return [verdict, warn("vendor", "model", f"{whose}: no model is known that could be asked.")]
    path, body = smallest
    target = upstream.path or _below(upstream, path)
    paid = await ask("POST", target, key, body)
    return [verdict, _judge_paid(f"{whose}, {model}", paid)]


def _judge(whose: str, reply: _Reply, *, has_key: bool, has_list: bool) -> Verdict:
    took = f"in {reply.took_s * 1000:.0f} ms"
    if has_key and reply.status in _REFUSED and has_list:
        return fail("vendor", "key", f"{whose}: the vendor refuses the key (status {reply.status}).")
    if reply.status >= _SERVER_ERROR:
        return fail("vendor", "answer", f"{whose}: the vendor answers with status {reply.status}.")
    if not has_key:
        return ok("vendor", f"{whose}: it answers {took}; it has no key of ours.")
    if reply.status == _LIMITED:
        return warn("vendor", "limited", f"{whose}: the vendor's own limit is reached (status 429).")
    if reply.status == _OK and has_list:
        return ok("vendor", f"{whose}: it answers {took}, and accepts the key.")
    return warn("vendor", "unjudged", f"{whose}: it answers {took} with status {reply.status}.")


def _judge_paid(whose: str, reply: _Reply) -> Verdict:
    if reply.status == _OK:
        return ok("vendor", f"{whose}: it generated a token in {reply.took_s * 1000:.0f} ms.")
    if reply.status in _REFUSED:
        return fail("vendor", "key", f"{whose}: the vendor refuses the key (status {reply.status}).")
    if reply.status == _LIMITED:
        return warn("vendor", "limited", f"{whose}: the vendor's own limit is reached (status 429).")
    is_failure = reply.status >= _SERVER_ERROR
    says = f"{whose}: the smallest request is answered with status {reply.status}."
    return (fail if is_failure else warn)("vendor", "answer", says)


async def _ask(
    session: aiohttp.ClientSession,
    upstream: UpstreamSettings,
    context: ssl.SSLContext | bool,
    server_name: str | None,
    method: str,
    path: str,
    key: str | None,
    body: bytes | None = None,
) -> _Reply:
    """One request, with what the proxy adds to each."""
    base = upstream.url.rstrip("/")
    headers = dict(_fields(upstream, key))
    if body is not None:
        headers["Content-Type"] = "application/json"
    asked_at = time.time()
    async with (
        asyncio.timeout(_WITHIN_S if body is None else _PAID_S),
        session.request(
            method,
            base + path,
            headers=headers,
            data=body,
            allow_redirects=False,
            ssl=context,
            server_hostname=server_name,
        ) as response,
    ):
        took_s = time.time() - asked_at
        data = await read(response, _MAX_BYTES)
        date_s = date_of(response.headers)
        offset_s = None if date_s is None else date_s - (asked_at + took_s / 2)
        return _Reply(response.status, _json(data), took_s, offset_s, took_s / 2 + 0.5)


def _fields(upstream: UpstreamSettings, key: str | None) -> list[tuple[str, str]]:
    dialect = DIALECTS[upstream.dialect]
    fields = [(name.decode(), value.decode()) for name, value in dialect.required_fields]
    if key is not None:
        if upstream.credential_header is not None:
            fields.append((upstream.credential_header, key))
        else:
            name, value = dialect.credential_field(key)
            fields.append((name.decode(), value.decode()))
    for header, secret in upstream.headers.items():
        fields.append((header, secret.get_secret_value() if isinstance(secret, SecretStr) else secret))
    return fields


def _below(upstream: UpstreamSettings, path: str) -> str:
    return below(urlsplit(upstream.url).path.rstrip("/"), path)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _model(upstream: UpstreamSettings, value: Any) -> str | None:
    """A model to ask: the first that the file names whole, else the first of the vendor's that a glob of it matches."""
    plain = next(filter(is_plain, upstream.models), None)
    if plain is not None:
        return plain
    listed = (value.get("data") or value.get("models") or []) if isinstance(value, dict) else []
    names = [
        str(one.get("id") or one.get("name") or "").removeprefix("models/")
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict)
    ]
    # It becomes part of a path.
    usable = [name for name in names if re.fullmatch(r"[A-Za-z0-9._:-]+", name)]
    globs = upstream.models or ("*",)
    return next((name for name in usable if any(fnmatchcase(name, glob) for glob in globs)), None)
