"""`python -m proxy.ledger.ship`: the node's shipper, which a worker starts; not for operators.

The worker writes lines of JSON to standard input: first `url`, `spool` and `retention_s`, later a new `retention_s`. On
standard output are lines of JSON for the worker: events for its log, and counts. When standard input is at its end the
worker is gone: what is in the spool is shipped, for some seconds, and the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import orjson

from proxy.ledger.postgres.answering import Answerer
from proxy.ledger.postgres.database import Database
from proxy.ledger.postgres.keeper import END_S
from proxy.ledger.postgres.place import SpoolPlace
from proxy.ledger.postgres.shipper import Shipper

_COUNTS_S: Final = 1.0


def tell(message: dict[str, Any]) -> None:
    """Write one line to the worker; it is lost where the worker does not read."""
    line = orjson.dumps(message, default=str) + b"\n"
    # Up to PIPE_BUF a pipe takes all of it or nothing.
    if len(line) <= select.PIPE_BUF:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), line)


def log(event: str, level: str, **fields: Any) -> None:
    """Have the worker write a line to its log."""
    tell({"event": event, "level": level, **fields})


async def run() -> None:
    """Ship until the worker is gone, and a little longer."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    first = await reader.readline()
    if not first:
        return
    order = orjson.loads(first)
    place, database = SpoolPlace(Path(order["spool"])), Database(order["url"])
    shipper = Shipper(place.file(), database, log, retention_s=order["retention_s"])
    gone = asyncio.Event()
    listening = asyncio.create_task(_listen(reader, shipper, gone))
    async with Answerer(place, database, shipper, log):
        shipping = asyncio.create_task(_ship(shipper, gone))
        waiting = asyncio.create_task(gone.wait())
        await asyncio.wait({shipping, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({shipping}, timeout=END_S)
        listening.cancel()
        waiting.cancel()
        if shipping.done():
            shipping.result()


async def _listen(reader: asyncio.StreamReader, shipper: Shipper, gone: asyncio.Event) -> None:
    try:
        while line := await reader.readline():
            shipper.set_retention(orjson.loads(line)["retention_s"])
    finally:
        gone.set()


async def _ship(shipper: Shipper, gone: asyncio.Event) -> None:
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "ship")
    next_counts_s = 0.0
    while True:
        # What the worker wrote before it went is in the spool; a look that began earlier may have missed it.
        is_last = gone.is_set()
        pause_s = await loop.run_in_executor(thread, shipper.step)
        if time.monotonic() >= next_counts_s or is_last:
            next_counts_s = time.monotonic() + _COUNTS_S
            tell({"waiting": await loop.run_in_executor(thread, shipper.waiting), "errors": shipper.errors})
        if pause_s:
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), pause_s)


def main() -> None:
    """Run, and end at once: a thread may wait for a database that does not answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A service manager may send them to every process; the end of standard input is what counts.
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(sys.stdout.fileno(), False)
    status = 0
    try:
        asyncio.run(run())
    except Exception as exc:  # noqa: BLE001 - a defect of ours: where it was, never its text, which may repeat a row
        status, frames, trace = 1, [], exc.__traceback__
        while trace is not None:
            frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        log("ledger.shipper_failed", "error", error=type(exc).__name__, frames=frames[-8:])
    os._exit(status)


if __name__ == "__main__":
    main()
