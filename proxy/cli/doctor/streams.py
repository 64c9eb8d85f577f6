"""Checks of streams: whether events come as they are sent, whether leaving is noticed, how long a silence may be."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

from proxy.cli.doctor.arrivals import pattern_of
from proxy.cli.doctor.verdict import Verdict, fail, ok, warn
from proxy.cli.doctor.way import LIMITED, NoAnswerError, RefusedError, why

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from proxy.cli.doctor.arrivals import Pattern
    from proxy.cli.doctor.way import Echo, Way

EVENTS: Final = 10
# Each attempt is slower than the one before: what holds events does so at every pace, what is only noise does not.
INTERVALS_MS: Final = (100, 250, 500)
# How long after its client left the proxy is asked whether it knows: at first, and at last.
LEFT_FOR_S: Final = (1.0, 5.0)
# So that also hops that notice only when they write do so soon.
_LEFT_INTERVAL_MS: Final = 200
_HEAD_S: Final = 3.0
_IDENTITY: Final = {"Accept-Encoding": "identity"}
_OK: Final = 200


async def check_stream(way: Way, *, intervals_ms: Sequence[int] = INTERVALS_MS) -> list[Verdict]:
    """Take timed streams, and say whether and by what kind of hop they are held."""
    try:
        echo, pattern = await _best(way, intervals_ms)
    except NoAnswerError as exc:
        return [fail("stream", "broken", f"No answer to a stream: {exc}.", way.hops)]
    except _BrokenError as exc:
        return [fail("stream", exc.fault, str(exc), way.hops)]
    coding = echo.coding
    verdicts: list[Verdict] = []
    if coding is not None:
        identity = pattern
        if pattern.is_held:
            try:
                echo, identity = await _best(way, intervals_ms, _IDENTITY)
            except (NoAnswerError, _BrokenError):
                identity = pattern
        if pattern.is_held and not identity.is_held:
            says = f"A hop compresses the stream ({coding}), and holds its events for that; without it they stream."
            verdicts.append(fail("compression", "holds", says, way.hops))
        else:
            says = f"A hop compresses the stream ({coding}), though the proxy asks it not to."
            verdicts.append(warn("compression", "compresses", says, way.hops))
        pattern = identity
    else:
        verdicts.append(ok("compression", "The stream is not compressed."))
    verdicts.insert(0, _judge(way, echo, pattern))
    return verdicts


def _judge(way: Way, echo: Echo, pattern: Pattern) -> Verdict:
    if not pattern.is_held:
        took_ms = pattern.jitter_s * 1000
        return ok("stream", f"{pattern.events} events came as they were sent, give or take {took_ms:.0f} ms.")
    manner = "all at once" if pattern.is_at_once else f"in {pattern.lumps} lumps"
    says = f"{pattern.events} events that were sent over {pattern.sent_span_s:.1f} s came {manner}"
    if "Content-Length" in echo.answer.headers:
        return fail("stream", "whole", f"{says}, with a Content-Length: a hop read the answer to its end.", way.hops)
    return fail("stream", "buffering", f"{says}: a hop buffers.", way.hops)


class _BrokenError(Exception):
    """A stream did not come whole."""

    def __init__(self, fault: str, says: str) -> None:
        super().__init__(says)
        self.fault = fault


async def _best(way: Way, intervals_ms: Sequence[int], headers: dict[str, str] | None = None) -> tuple[Echo, Pattern]:
    """The attempt in which the fewest events were held; the first that is not held is the last.

    Raises:
        NoAnswerError, _BrokenError: an attempt has no answer, or not the whole one.
    """
    found: list[tuple[Echo, Pattern]] = []
    for interval_ms in intervals_ms:
        echo = await way.echo(events=EVENTS, interval_ms=interval_ms, headers=headers)
        if not echo.is_whole:
            raise _broken(echo)
        found.append((echo, pattern_of(echo.arrivals)))
        if not found[-1][1].is_held:
            break
    return min(found, key=lambda one: one[1].together)


def _broken(echo: Echo) -> _BrokenError:
    if echo.answer.status == LIMITED and echo.answer.is_ours:
        return _BrokenError("limited", f"The token's user is limited ({echo.answer.code}).")
    if echo.answer.status != _OK:
        by = f"the proxy's {echo.answer.code}" if echo.answer.is_ours else "not the proxy's"
        return _BrokenError("broken", f"A stream was answered with status {echo.answer.status}, {by}.")
    if echo.problem is not None:
        return _BrokenError("broken", f"A stream broke off after {echo.ended_s:.1f} s: {echo.problem}.")
    return _BrokenError("changed", f"A stream's events were changed: {len(echo.arrivals)} of {EVENTS} can be read.")


async def check_leaving(way: Way, *, left_for_s: Sequence[float] = LEFT_FOR_S) -> list[Verdict]:
    """Leave streams in the middle, and ask the proxy whether they still run."""
    try:
        if not await _is_found(way):
            says = "A stream that runs cannot be stopped by its id."
            return [warn("leaving", "elsewhere", says, way.hops)]
        for wait_s in left_for_s:
            if await _is_gone(way, wait_s):
                if wait_s == left_for_s[0]:
                    return [ok("leaving", f"A stream ends within {wait_s:g} s when its client leaves.")]
                says = f"A stream ends between {left_for_s[0]:g} and {wait_s:g} s after its client left."
                return [warn("leaving", "late", says, way.hops)]
    except RefusedError as exc:
        return [warn("leaving", "limited", f"A stream was refused: {exc}.", way.hops)]
    except NoAnswerError as exc:
        return [warn("leaving", "elsewhere", f"A stream cannot be stopped by its id: {exc}.", way.hops)]
    says = f"A stream still runs {left_for_s[-1]:g} s after its client left."
    return [fail("leaving", "unnoticed", says, way.hops)]


@contextlib.asynccontextmanager
async def _running(way: Way) -> AsyncIterator[str]:
    """The id of a stream that runs until this is left."""
    asked = f"doctor-{secrets.token_hex(12)}"
    async with way.open_echo(asked, interval_ms=_LEFT_INTERVAL_MS) as head:
        await asyncio.wait([head], timeout=_HEAD_S)
        yield _result(head) or asked


async def _is_found(way: Way) -> bool:
    """Whether a stream whose client is there is found: else nothing can be told of one whose client is not.

    A hop that holds the head until the end hides the stream's id; then it is the one that was asked for.
    """
    async with _running(way) as id_:
        return await _stop(way, id_)


async def _is_gone(way: Way, wait_s: float) -> bool:
    async with _running(way) as id_:
        pass
    await asyncio.sleep(wait_s)
    return not await _stop(way, id_)


def _result(head: asyncio.Task[str | None]) -> str | None:
    """The stream's id, where its head has come.

    Raises:
        RefusedError: there is no stream.
        NoAnswerError: there is no answer.
    """
    if not head.done() or head.cancelled():
        return None
    error = head.exception()
    if error is not None and not isinstance(error, RefusedError):
        raise NoAnswerError(why(error))
    return head.result()


async def _stop(way: Way, id_: str) -> bool:
    """Stop a stream: whether there was one.

    Raises:
        NoAnswerError: that cannot be told.
    """
    answer = await way.ask("DELETE", f"/forward-sse/streams/{id_}", way.fields())
    if answer.status == 204:  # noqa: PLR2004 - contract §3
        return True
    if answer.status == 404 and answer.is_ours:  # noqa: PLR2004 - as above
        return False
    raise NoAnswerError(f"DELETE is answered with status {answer.status}")


async def check_silence(way: Way, *, silence_s: float) -> list[Verdict]:
    """Be silent in a stream for that long, and see whether it is cut."""
    try:
        echo = await way.echo(events=2, interval_ms=0, silence_ms=int(silence_s * 1000))
    except NoAnswerError as exc:
        return [fail("silence", "cut", f"The connection was cut after {exc.after_s:.1f} s: {exc}.", way.hops)]
    if echo.is_whole:
        return [ok("silence", f"{silence_s:g} s of silence pass.")]
    if echo.answer.status != _OK and echo.answer.is_ours:
        broken = _broken(echo)
        return [fail("stream", broken.fault, str(broken), way.hops)]
    cause = echo.problem or f"status {echo.answer.status}"
    return [fail("silence", "cut", f"The stream was cut after {echo.ended_s:.1f} s of silence: {cause}.", way.hops)]
