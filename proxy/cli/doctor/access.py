"""Checks of what the proxy lets in: the token, an upstream, bodies, pages of another origin; and what hops do to it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from proxy.cli.doctor.bodies import send
from proxy.cli.doctor.reach import clock_verdict
from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.cli.doctor.way import CODE, ECHO, ID, NoAnswerError
from proxy.dialects import DIALECTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.cli.doctor.way import Echo, Way

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
# Around the limits that hops have by default; the last is the proxy's own default.
BODY_SIZES: Final = (64 * _KIB, 900 * _KIB, 8 * _MIB, 32 * _MIB)
PATIENCE_S: Final = 3.0
_OK: Final = 200
_TOO_LARGE: Final = 413
_HELD_BYTES: Final = 4096

# What is said of each of the proxy's refusals of a token.
_REFUSALS: Final[Mapping[str, tuple[str, str]]] = {
    "missing_token": ("removed", "A hop removes the token: the proxy sees none."),
    "invalid_token": ("refused", "The token is not valid here."),
    "expired_token": ("refused", "The token has expired."),
    "insufficient_scope": ("forbidden", "The token lacks a scope."),
    "auth_unavailable": ("unavailable", "The proxy has no keys to check the token with."),
    "limits_unavailable": ("unavailable", "The proxy's limits server is away."),
}
_LIMITED: Final = frozenset({"rate_limit_exceeded", "too_many_streams", "insufficient_quota", "too_many_failures"})


async def check_token(way: Way) -> tuple[list[Verdict], bool]:
    """Ask for one event with the token, twice: the token's verdict, the clock's, and whether somebody caches.

    The second is whether streams can be asked for.
    """
    try:
        began_at = time.time()
        first = await way.echo(events=1, interval_ms=0)
        took_s = time.time() - began_at
        if first.answer.status != _OK or not first.arrivals:
            return [_refused(way, first)], False
        again = await way.echo(events=1, interval_ms=0)
    except NoAnswerError as exc:
        return [fail("stream", "broken", f"No answer to a stream: {exc}.", way.hops)], False
    if way.token is None:
        token = warn("token", "open", "The proxy asks for no token.")
    else:
        token = ok("token", f"The token is good{_left(first)}.")
    offset_s = first.arrivals[0].sent_s - (began_at + took_s / 2)
    verdicts = [token, clock_verdict(offset_s, took_s / 2, "The proxy's")]
    if again.answer.status == _OK:
        verdicts.append(_caching(way, first, again))
    return verdicts, True


def _left(echo: Echo) -> str:
    headers = echo.answer.headers
    left, limit = headers.get("x-ratelimit-remaining-requests"), headers.get("x-ratelimit-limit-requests")
    return f"; {left} of {limit} requests are left" if left and limit else ""


def _refused(way: Way, echo: Echo) -> Verdict:
    answer = echo.answer
    code = answer.code or ""
    if code in _REFUSALS:
        fault, says = _REFUSALS[code]
        return fail("token", fault, says, way.hops)
    if code in _LIMITED:
        after = answer.headers.get("Retry-After")
        more = f" for {after} s" if after else ""
        return fail("token", "limited", f"The token's user is limited ({code}){more}: nothing more can be checked.")
    told = f"the proxy's {code}" if answer.is_ours else "not the proxy's"
    return fail("stream", "broken", f"A stream was answered with status {answer.status}, {told}.", way.hops)


def _caching(way: Way, first: Echo, again: Echo) -> Verdict:
    is_same = bool(again.arrivals) and again.arrivals[0].sent_s == first.arrivals[0].sent_s
    is_same_id = again.answer.headers.get(ID) == first.answer.headers.get(ID)
    if way.is_cached or (is_same and is_same_id):
        return fail("caching", "repeats", "A hop answers from its cache.", way.hops)
    return ok("caching", "Two requests have two answers.")


async def check_upstream(way: Way, name: str) -> list[Verdict]:
    """Ask an upstream for its models, which costs nothing; the first path that is one of its dialect's counts."""
    paths = dict.fromkeys(
        variant
        for dialect in DIALECTS.values()
        if dialect.models_path is not None
        for variant in (dialect.models_path, "/" + dialect.models_path.rpartition("/")[2])
    )
    code: str | None = None
    for path in paths:
        try:
            answer = await way.ask("GET", f"/{name}{path}", way.fields())
        except NoAnswerError as exc:
            return [fail("upstream", "unreachable", f"{name}: no answer: {exc}.")]
        code = answer.code
        if code is None and answer.status == _OK:
            return [ok("upstream", f"{name}: the vendor answers, and accepts the key.")]
        if code in {"unknown_upstream", "not_found"}:
            return [fail("upstream", "unknown", f"{name}: there is no such upstream.")]
        if code == "upstream_not_allowed":
            return [fail("upstream", "not_allowed", f"{name}: the user's plan does not include it.")]
        if code == "upstream_credentials_exhausted":
            return [fail("upstream", "credentials", f"{name}: the vendor refuses the proxy's key.")]
        if code is not None and code != "path_not_allowed":
            return [fail("upstream", "unreachable", f"{name}: {code}.")]
    return [warn("upstream", "unjudged", f"{name}: it is there; whether the vendor answers is not told by its models.")]


async def check_inspection(way: Way, *, patience_s: float = PATIENCE_S) -> list[Verdict]:
    """Begin a request that the proxy refuses by its head, and see whether a hop waits for the body."""
    try:
        sent = await send(way, ECHO, _HELD_BYTES, headers={}, patience_s=patience_s, hold=True)
    except NoAnswerError as exc:
        return [warn("inspection", "unanswered", f"A request with a body is not answered: {exc}.", way.hops)]
    if sent.before_end:
        return [ok("inspection", "Requests reach the proxy while they are being sent.")]
    return [warn("inspection", "holds", "A request reaches the proxy only when its whole body was sent.", way.hops)]


async def check_body(way: Way, *, sizes: Sequence[int] = BODY_SIZES, patience_s: float = PATIENCE_S) -> list[Verdict]:
    """Send ever larger bodies in requests that the proxy refuses: no vendor is reached, and nothing stays charged.

    With a token it is an empty list, which is read to its end and refused by its content; without, a method that is
    refused by its head.
    """
    path = ECHO if way.token is None else "/forward-sse"
    passed = 0
    for size in sizes:
        try:
            sent = await send(way, path, size, headers=way.fields(), patience_s=patience_s)
        except NoAnswerError as exc:
            return [warn("body", "unanswered", f"A body of {_size(size)} is not answered: {exc}.", way.hops)]
        is_ours = CODE in sent.headers
        if sent.status == _TOO_LARGE:
            fault, whose = ("proxy", "the proxy") if is_ours else ("hop", "a hop")
            says = f"{_size(passed)} pass, {_size(size)} are refused by {whose}."
            return [(warn if is_ours or passed >= _MIB else fail)("body", fault, says, way.hops)]
        if not is_ours:
            says = f"A body of {_size(size)} is answered with status {sent.status}, not by the proxy."
            return [fail("body", "hop", says, way.hops)]
        passed = size
        # So that a run of large bodies is no flood.
        await asyncio.sleep(0)
    return [ok("body", f"Bodies of {_size(passed)} pass.")]


def _size(size: int) -> str:
    return f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"


async def check_cors(way: Way, origin: str) -> list[Verdict]:
    """Ask as a page of that origin would: a preflight, and then a request whose refusal it must be able to read."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    try:
        preflight = await way.ask("OPTIONS", "/forward-sse", asked)
        answer = await way.ask("GET", f"{ECHO}?events=1", {"Origin": origin})
    except NoAnswerError as exc:
        return [fail("cors", "preflight", f"A preflight is not answered: {exc}.", way.hops)]
    if not preflight.is_ours:
        says = f"The preflight is answered with status {preflight.status}, not by the proxy."
        return [fail("cors", "preflight", says, way.hops)]
    name = "Access-Control-Allow-Origin"
    for headers in (preflight.headers, answer.headers):
        allowed = headers.getall(name, [])  # type: ignore[attr-defined]  # aiohttp's are a multidict
        if len(allowed) > 1 or any("," in value for value in allowed):
            return [fail("cors", "twice", f"{name} comes twice: browsers refuse that.", way.hops)]
    if preflight.headers.get(name) not in {origin, "*"}:
        return [fail("cors", "origin", f"Pages of {origin} may not use the proxy.", way.hops)]
    if answer.headers.get(name) not in {origin, "*"}:
        says = f"Pages of {origin} may ask, but cannot read the answer: a hop removes {name}."
        return [fail("cors", "fields", says, way.hops)]
    granted = _names(preflight.headers.get("Access-Control-Allow-Headers", ""))
    if not {"authorization", "content-type"} <= granted or "post" not in _names(
        preflight.headers.get("Access-Control-Allow-Methods", "")
    ):
        return [fail("cors", "fields", f"Pages of {origin} may not send a token, or not POST.", way.hops)]
    return [ok("cors", f"Pages of {origin} may use the proxy, and read its answers.")]


def _names(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}
