"""`python -m tests.soak`: a mixed load on real processes for a chosen time, then what must hold afterwards."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.mock.server import MockVendor
from tests.conftest import CONFIG, SECRET
from tests.limits.redis_support import RedisServer
from tests.soak.ledger import Ledger
from tests.soak.load import NARROW_QUOTA, NARROW_WINDOW_S, Load
from tests.soak.service import Service
from tests.soak.watch import Memory
from tests.whole.leavers import blackhole
from tests.whole.nodes import descriptors, total

if TYPE_CHECKING:
    from collections.abc import Sequence

PLANS = f"""plans:
  default: {{requests: [100000/1m], concurrent_streams: 500}}
  narrow: {{requests: [{NARROW_QUOTA}/{NARROW_WINDOW_S}s], concurrent_streams: 2}}
"""
# Caches and arenas fill first; what grows after that goes on growing.
WARM_SHARE, WARM_LEAST_S, WARM_MOST_S = 0.3, 20.0, 300.0
# A leak of 100 bytes a request would be 0.5 MiB a minute at the pace of this load.
MOST_GROWTH_MIB_PER_MIN = 0.3
# Below that the slope is all noise.
SHORTEST_JUDGED_S = 240.0
# The lease of a worker that died.
LEASE_S = 30.0


def configuration(vendor: MockVendor, hole: str, store: str, workers: int) -> str:
    """The file of the service under test."""
    text = CONFIG.format(secret=SECRET, url=f"http://127.0.0.1:{vendor.port}", key="mock-key")
    more = f"""  mock: {{url: 'http://127.0.0.1:{vendor.port}', dialect: openai, api_key: mock-key}}
  hole: {{url: '{hole}', dialect: openai, api_key: none}}
"""
    limits = f"limits: {{store: '{store}'}}\n" if workers > 1 else ""
    return text.replace("default_upstream:", f"{more}default_upstream:") + PLANS + limits


async def trouble(service: Service, ledger: Ledger, store: RedisServer, done: Counter[str], seed: int) -> None:
    """Reload, kill a worker, hold the limits server up, by turns, until cancelled."""
    chance = random.Random(seed)
    while True:
        await asyncio.sleep(chance.uniform(4, 8))
        act = chance.choice(
            ("reload", "reload", "reload", "hold up", "hold up", "kill") if service.workers > 1 else ("reload",)
        )
        done[act] += 1
        if act == "reload":
            service.config.write_text(f"{service.text}heartbeat: {chance.choice(('off', '10s', '15s'))}\n")
            service.signal(signal.SIGHUP)
        elif act == "hold up":
            store.stop()
            await asyncio.sleep(1.0)
            store.go_on()
        else:
            # The others are spared: who is killed all the time never gets to leak.
            ledger.deaths_s.append(time.monotonic())
            with contextlib.suppress(ProcessLookupError):
                os.kill(service.pids[max(service.pids)], signal.SIGKILL)


async def soak(options: argparse.Namespace, room: Path) -> bool:
    """Run it, print the summary, and say whether all was well."""
    ledger, memory, done = Ledger(), Memory(), Counter[str]()
    async with MockVendor(kept_requests=10) as vendor:
        store = RedisServer()
        with blackhole() as hole, contextlib.closing(store):
            await store.start()
            text = configuration(vendor, hole, f"unix://{store.path}", options.workers)
            service = Service(room, text, options.workers)
            await service.start()
            try:
                load = Load(service.address, ledger, options.seed)
                for _ in range(3):
                    await load.each()
                await service.quiet()
                open_before = max(len(descriptors(pid)) for pid in service.pids.values())

                began_s = time.monotonic()
                watching = asyncio.create_task(memory.watch(service.all_pids))
                troubling = asyncio.create_task(trouble(service, ledger, store, done, options.seed))
                loading = asyncio.create_task(load.run(options.clients))
                await _progress(options.minutes * 60, ledger, service, memory)
                troubling.cancel()
                store.go_on()
                load.is_over = True
                await loading
                lasted_s = time.monotonic() - began_s

                figures = await _afterwards(service, store, vendor, ledger, open_before)
                watching.cancel()
                await asyncio.gather(watching, troubling, return_exceptions=True)
            finally:
                code = await service.stop()
            if code != 0:
                ledger.wrong("exit", f"the service ended with {code}")
    counts = ledger.check_lines(service.log)
    counted = figures["counted"]
    lost = sum(ledger.may_be_lost(sent) for sent in ledger.sent.values())
    if abs(counted - counts["exchange.settled"]) > lost:
        ledger.wrong(
            "figures", f"{counted:.0f} requests counted, {counts['exchange.settled']} lines, {lost} may be lost"
        )
    allowed = NARROW_QUOTA * (1 + (time.monotonic() - load.narrow.since_s) / NARROW_WINDOW_S)
    if load.narrow.count > allowed:
        ledger.wrong("limit", f"{load.narrow.count} admitted of at most {allowed:.0f}")
    warm_s = began_s + min(WARM_MOST_S, max(WARM_LEAST_S, lasted_s * WARM_SHARE))
    _judge_memory(memory, ledger, service, warm_s)
    _summary(options, ledger, counts, done, lasted_s, figures, load)
    for pid, name in sorted(service.names().items(), key=lambda one: one[1]):
        grown = memory.growth(pid, warm_s)
        if grown is not None and memory.samples[pid][-1][0] - warm_s > SHORTEST_JUDGED_S / 2:
            _say(f"memory {name:>12}   {grown[0]:.1f} -> {grown[1]:.1f} MiB since warm, {grown[2]:+.3f} MiB/min")
    for verdict in ledger.verdicts():
        _say(f"WRONG  {verdict}")
    _say("all is well" if not ledger.faults else f"NOT WELL: log in {service.log}")
    return not ledger.faults


async def _progress(for_s: float, ledger: Ledger, service: Service, memory: Memory) -> None:
    until_s = time.monotonic() + for_s
    while (left_s := until_s - time.monotonic()) > 0:
        await asyncio.sleep(min(30.0, left_s))
        last = {service.names().get(pid, str(pid)): round(samples[-1][1], 1) for pid, samples in memory.samples.items()}
        left = f"{max(0.0, until_s - time.monotonic()):.0f} s left"
        _say(f"... {left}, {len(ledger.sent)} requests, {len(ledger.faults)} faults, MiB {last}")


async def _afterwards(
    service: Service, store: RedisServer, vendor: MockVendor, ledger: Ledger, open_before: int
) -> dict[str, float]:
    """What is left when everybody has gone; each must come to nothing within its own time."""
    await service.quiet()
    if await service.streams():
        ledger.wrong("streams", str(await service.streams()))
    leases, until_s = await store.leases(), time.monotonic() + LEASE_S
    while leases and time.monotonic() < until_s:
        await asyncio.sleep(0.5)
        # Those of a dead worker are not removed, they lapse: asked is what a user could notice.
        now_s = time.time()
        leases = sum([await store.ask("ZCOUNT", key, int(now_s * 1e6), "+inf") for key in await store.keys("*:leases")])
    if leases:
        ledger.wrong("leases", f"{leases} are left")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            await vendor.wait_for(lambda stats: stats.active == 0)
    if vendor.stats.active:
        ledger.wrong("vendor", f"{vendor.stats.active} answers still run")
    scraped = await service.quiet()
    kept = total(scraped, "upstream_connections", 'state="idle"')
    # One worker's figure is not told apart: all that are kept may be kept by one. The summary shows how few there are.
    still_open = max(len(descriptors(pid)) for pid in service.pids.values())
    if still_open > open_before + kept + 2:
        ledger.wrong("descriptors", f"{still_open} are open, {open_before} were, {kept:.0f} connections are kept")
    return {"open": still_open, "open_before": open_before, "kept": kept, "counted": total(scraped, "requests_total")}


def _judge_memory(memory: Memory, ledger: Ledger, service: Service, warm_s: float) -> None:
    for pid, name in service.names().items():
        samples = memory.samples.get(pid)
        grown = memory.growth(pid, warm_s)
        if not samples or grown is None or samples[-1][0] - warm_s < SHORTEST_JUDGED_S or samples[0][0] > warm_s:
            # Too short a life: a worker that was killed, or one that came late.
            continue
        if grown[2] > MOST_GROWTH_MIB_PER_MIN:
            ledger.wrong("memory", f"{name} grows by {grown[2]:.2f} MiB a minute")


def _summary(
    options: argparse.Namespace,
    ledger: Ledger,
    counts: Counter[str],
    done: Counter[str],
    lasted_s: float,
    figures: dict[str, float],
    load: Load,
) -> None:
    endings = {name.removeprefix("ending "): count for name, count in counts.items() if name.startswith("ending ")}
    kinds = Counter(sent.kind for sent in ledger.sent.values())
    _say(f"\nsoak: {lasted_s / 60:.1f} min, {options.workers} workers, {options.clients} clients, seed {options.seed}")
    settled = counts["exchange.settled"]
    _say(f"requests {settled} ({settled / lasted_s:.0f}/s), counted {figures['counted']:.0f}")
    _say(f"endings  {dict(sorted(endings.items()))}")
    _say(f"kinds    {dict(sorted(kinds.items()))}, and {load._leavers} who left")
    _say(f"trouble  {dict(done)}; {len(ledger.deaths_s)} workers killed")
    _say(f"narrow   {load.narrow.count} admitted")
    still, before, kept = (f"{figures[name]:.0f}" for name in ("open", "open_before", "kept"))
    _say(f"open     {still} descriptors in a worker at most (before: {before}), {kept} connections kept in all")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run by `make soak`."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    room = Path(tempfile.mkdtemp(prefix="soak-"))
    return 0 if asyncio.run(soak(options, room)) else 1


if __name__ == "__main__":
    sys.exit(main())
