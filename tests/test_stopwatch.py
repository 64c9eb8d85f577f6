"""The stopwatch of the tests: by it, a machine that stands still is not late, and a proxy that waits is."""

from __future__ import annotations

import asyncio
import time

from tests.peers import WAIT_S
from tests.stopwatch import Stopwatch


async def test_stopwatch_leaves_out_a_standstill() -> None:
    """What the loop could not run in is not counted, and is told."""
    with Stopwatch() as watch:
        time.sleep(0.3)  # noqa: ASYNC251 - as said
        assert watch.elapsed_s < 0.1
        assert not watch.is_true


async def test_stopwatch_counts_a_wait() -> None:
    """What is waited for while the loop runs is counted, and never more than has passed."""
    began_s = time.monotonic()
    with Stopwatch() as watch:
        async with asyncio.timeout(WAIT_S):
            while watch.elapsed_s < 0.3:  # noqa: ASYNC110 - the wait is what is measured
                await asyncio.sleep(0.1)
        assert watch.elapsed_s <= time.monotonic() - began_s + 0.01
