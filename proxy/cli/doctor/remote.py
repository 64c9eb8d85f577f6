"""The doctor from anywhere: every check of the way to the public address, in the order in which each needs the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.cli.doctor import access, reach, streams
from proxy.cli.doctor.way import Way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from proxy.cli.doctor.verdict import Verdict


@dataclass(frozen=True)
class Examination:
    """What is examined, and how patiently; `silence_s` None leaves that check out, `origin` and `upstream` theirs."""

    url: str
    token: str | None = None
    upstream: str | None = None
    origin: str | None = None
    silence_s: float | None = None
    intervals_ms: Sequence[int] = streams.INTERVALS_MS
    left_for_s: Sequence[float] = streams.LEFT_FOR_S
    body_sizes: Sequence[int] = access.BODY_SIZES
    patience_s: float = access.PATIENCE_S


async def examine(asked: Examination) -> AsyncIterator[Verdict]:
    """Yield the verdicts, each as soon as it is known; some twelve requests are charged to the token's user.

    Raises:
        ValueError: the address is none.
    """
    async with Way(asked.url, asked.token) as way:
        async for verdicts in _reach(way, asked):
            for verdict in verdicts:
                yield verdict


async def _reach(way: Way, asked: Examination) -> AsyncIterator[list[Verdict]]:
    """What needs no token; then the rest, where there is one or none is needed."""
    for check in (reach.check_name, reach.check_tls):
        verdicts = await check(way)
        yield verdicts
        if verdicts[0].verdict == "fail":
            return
    verdicts, answer = await reach.check_proxy(way)
    yield verdicts
    if answer is None:
        return
    yield await access.check_inspection(way, patience_s=asked.patience_s)
    if asked.origin is not None:
        yield await access.check_cors(way, asked.origin)
    if asked.token is None and answer.status != 200:  # noqa: PLR2004 - RFC 9110 §15.3.1
        yield reach.check_date(answer)
        yield await access.check_body(way, sizes=asked.body_sizes, patience_s=asked.patience_s)
        return
    async for verdicts in _stream(way, asked):
        yield verdicts


async def _stream(way: Way, asked: Examination) -> AsyncIterator[list[Verdict]]:
    verdicts, may_stream = await access.check_token(way)
    yield verdicts
    if not may_stream:
        return
    if asked.upstream is not None:
        yield await access.check_upstream(way, asked.upstream)
    yield await streams.check_stream(way, intervals_ms=asked.intervals_ms)
    yield await access.check_body(way, sizes=asked.body_sizes, patience_s=asked.patience_s)
    yield await streams.check_leaving(way, left_for_s=asked.left_for_s)
    if asked.silence_s is not None:
        yield await streams.check_silence(way, silence_s=asked.silence_s)
