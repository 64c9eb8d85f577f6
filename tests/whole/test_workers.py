"""Several workers as processes: they start, serve and end as one, and one that dies takes only its own with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import WAIT_S, Upstream, connect, request
from tests.whole.several import (
    BODY,
    NO_BOUND,
    SERVE,
    WORKERS,
    Several,
    address_of,
    one_in_each,
    several,
    with_store,
)
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the arbiter is run on Linux")

UNUSABLE = "limits.store: its ca_file cannot be used as a file of authorities"
# Given up after so many seconds instead of a minute: the one number that a test cannot wait for.
IMPATIENT = (
    "from proxy.server.workers import arbiter; vars(arbiter)['STUCK_S'] = 4; "
    "from proxy.cli.commands import main; main()"
)


async def until_metric(served: Several, name: str, value: float) -> dict[str, float]:
    """Scrape until a figure is as awaited: settling is not announced to the outside."""
    async with asyncio.timeout(WAIT_S):
        while True:
            scraped = await served.metrics()
            if scraped.get(name) == value:
                return scraped


async def test_workers_all_serve_and_drain_as_one(tmp_path: Path, upstream: Upstream) -> None:
    """Every worker takes requests; on SIGTERM all streams run to their end, readiness is 503, the exit code 0."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        assert (await served.ask("/readyz")).status == 200

        served.signal(signal.SIGTERM)
        for _ in held:
            await served.line("drain.started")
        readiness = await served.ask("/readyz")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*served.address)
        ends = [await stream.ends_well() for stream in held.values()]
        lines = await served.rest()

    assert (readiness.status, readiness.json["reasons"]) == (503, ["draining"])
    assert ends == [True] * WORKERS
    assert served.process.returncode == 0
    endings = [line["ending"] for line in lines if line["event"] == "exchange.settled"]
    assert set(endings) == {"complete"}
    assert [line["event"] for line in lines].count("server.stopped") == 1
    assert not [line for line in lines if line["level"] in {"warning", "error"}]


async def test_workers_end_streams_on_a_second_signal(tmp_path: Path, upstream: Upstream) -> None:
    """Who asks twice does not wait, whichever the signals: streams end as `drained` in every worker."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        served.signal(signal.SIGINT)
        for _ in held:
            await served.line("drain.started")
        served.signal(signal.SIGTERM)
        cuts = [await stream.is_cut() for stream in held.values()]
        lines = await served.rest()

    assert cuts == [True] * WORKERS
    assert served.process.returncode == 0
    assert [line["ending"] for line in lines if line["event"] == "exchange.settled"].count("drained") == WORKERS


async def test_workers_signals_to_all_processes_drain_once(tmp_path: Path, upstream: Upstream) -> None:
    """A service manager that signals every process of the service does not thereby hurry it."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        for pid in served.pids.values():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGTERM)
        for _ in held:
            await served.line("drain.started")
        served.signal(signal.SIGTERM)
        ends = [await stream.ends_well() for stream in held.values()]
        await served.rest()

    assert ends == [True] * WORKERS
    assert served.process.returncode == 0


async def test_workers_one_killed(tmp_path: Path, upstream: Upstream) -> None:
    """Its streams are cut, nobody else's; it is replaced, and nothing that was counted is lost or counted twice."""
    total = 'forward_sse_active_streams{upstream="main"}'
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        for _ in range(12):
            async with await connect(served.address) as client:
                client.write(request(body=BODY))
                assert (await client.read_message()).status == 401
        before = await until_metric(served, 'forward_sse_refusals_total{code="missing_token"}', 12)
        victim = min(held)
        streams = await served.streams()

        os.kill(served.pids[victim], signal.SIGKILL)
        assert await held[victim].is_cut()
        while_gone = await served.metrics()
        others = [await stream.goes_on() for name, stream in held.items() if name != victim]
        ended = await served.line("worker.ended")
        successor = await served.worker_up()
        after = await served.metrics()
        survivors = await served.streams()

    assert others == [True] * (WORKERS - 1)
    assert (ended["worker"], ended["exit_code"], ended["level"]) == (victim, -signal.SIGKILL, "error")
    assert successor == victim
    assert before[total] == WORKERS
    assert after[total] == WORKERS - 1
    assert survivors == {id_: name for id_, name in streams.items() if name != victim}
    counts = [name for name in before if "_total{" in name or "_bucket{" in name or "_count{" in name]
    assert counts
    for name in counts:
        if "_cpu_seconds" in name:
            # Taken by being asked, too; its successor adds its own.
            assert before[name] <= while_gone[name] <= after[name], name
        else:
            assert before[name] == while_gone[name] == after[name], name
    assert after['forward_sse_workers{state="answering"}'] == WORKERS


async def test_workers_metrics_are_summed(tmp_path: Path, upstream: Upstream) -> None:
    """A scrape says the same whichever worker answers it, and what workers counted before they died stays counted."""
    refusals = 'forward_sse_refusals_total{code="missing_token"}'
    async with several(tmp_path, upstream) as served:
        for _ in range(30):
            async with await connect(served.address) as client:
                client.write(request(body=BODY))
                assert (await client.read_message()).status == 401
        await until_metric(served, refusals, 30)
        seen = {(await served.metrics())[refusals] for _ in range(10)}
        for name in sorted(served.pids):
            os.kill(served.pids[name], signal.SIGKILL)
            await served.worker_up()
        after = await served.metrics()

    assert seen == {30.0}
    assert after[refusals] == 30


async def test_workers_streams_are_stopped_wherever_they_run(tmp_path: Path, upstream: Upstream) -> None:
    """The operator and the stream's user stop it through whichever worker answers; another user cannot."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        first, second, third = held.values()
        assert (await served.ask(f"/admin/streams/{first.id}", "DELETE")).status == 204
        assert await first.is_cut()
        assert (await served.ask("/admin/streams/nobodys", "DELETE")).status == 404

        statuses = []
        for user, stream in (("mallory", second), ("alice", second), ("alice", second)):
            async with await connect(served.address) as client:
                client.write(request(f"/forward-sse/streams/{stream.id}", method="DELETE", token=token(user)))
                statuses.append((await client.read_message()).status)
        assert await second.is_cut()
        assert await third.goes_on()
        streams = await served.streams()

    assert statuses == [404, 204, 404]
    assert streams == {third.id: third.worker}


async def test_workers_reload(tmp_path: Path, upstream: Upstream) -> None:
    """A good file holds in every worker, for new requests; a faulty one changes nothing and is told in one line."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        text = served.config.read_text()
        served.config.write_text(text.replace("dialect: openai", "dialect: opnai"))
        served.signal(signal.SIGHUP)
        refused = await served.line("configuration.refused")
        served.config.write_text(text.replace(NO_BOUND, "plans: {default: {upstreams: []}}\n"))
        served.signal(signal.SIGHUP)
        reloaded = {(await served.line("configuration.reloaded"))["worker"] for _ in held}
        refusing = await _who_refuses(served, set(held))
        assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS
        # A worker that comes later serves by the same.
        victim = min(held)
        os.kill(served.pids[victim], signal.SIGKILL)
        await served.worker_up()
        refusing_later = await _who_refuses(served, {victim})
        lines = list(served.lines)

    assert "did you mean openai?" in str(refused["faults"])
    assert [line["event"] for line in lines].count("configuration.refused") == 1
    assert reloaded == set(held)
    assert refusing == set(held)
    assert victim in refusing_later


async def _who_refuses(served: Several, until: set[str]) -> set[str]:
    """Ask for what no plan allows until all of these workers have refused it; nobody may allow it."""
    workers: set[str] = set()
    for _ in range(200):
        async with await connect(served.address) as client:
            client.write(request(body=BODY, token=token()))
            assert (await client.read_message()).get("x-forward-sse-code") == "upstream_not_allowed"
        workers.add((await served.line("exchange.settled"))["worker"])
        if until <= workers:
            break
    return workers


async def test_workers_upgrade_refuses_nobody(tmp_path: Path, upstream: Upstream) -> None:
    """SIGUSR2: the next generation takes over while clients connect; running streams end in the old one, whole."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        is_over = asyncio.Event()
        served_requests = 0

        async def knock() -> None:
            nonlocal served_requests
            while not is_over.is_set():
                async with await connect(served.address) as client:
                    client.write(request("/healthz", method="GET"))
                    assert (await client.read_message()).status == 200
                served_requests += 1

        knocking = [asyncio.create_task(knock()) for _ in range(4)]
        before = await served.metrics()
        old = dict(served.pids)
        served.signal(signal.SIGUSR2)
        started = await served.line("server.started")
        for _ in range(WORKERS):
            await served.line("drain.started")
        count = served_requests
        async with asyncio.timeout(WAIT_S):
            while served_requests < count + 50:  # noqa: ASYNC110 - counted by the knocking
                await asyncio.sleep(0.01)
        readiness = await served.ask("/readyz")
        streams = await served.streams()
        during = await served.metrics()
        ends = [await stream.ends_well() for stream in held.values()]
        async with asyncio.timeout(WAIT_S):
            assert await served.process.wait() == 0
        count = served_requests
        async with asyncio.timeout(WAIT_S):
            while served_requests < count + 50:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)
        is_over.set()
        await asyncio.gather(*knocking)
        after = await served.metrics()
        os.kill(started["pid"], signal.SIGTERM)
        lines = await served.rest()

    assert started["after"] == served.process.pid
    assert address_of(started["listen"]) == served.address
    assert readiness.status == 200
    assert streams == {stream.id: stream.worker for stream in held.values()}
    assert ends == [True] * WORKERS
    new = {line["worker"]: line["pid"] for line in lines if line["event"] == "worker.started"}
    assert len(new) == 2 * WORKERS
    assert old.items() <= new.items()
    active = 'forward_sse_active_streams{upstream="main"}'
    relayed = 'forward_sse_relayed_events_total{upstream="main"}'
    assert (before[active], during[active], after.get(active, 0)) == (WORKERS, WORKERS, 0)
    assert after[relayed] == before.get(relayed, 0) + WORKERS
    assert not [line for line in lines if line["level"] in {"warning", "error"}]


async def test_workers_upgrade_that_cannot_start_changes_nothing(tmp_path: Path, upstream: Upstream) -> None:
    """A faulty file, or a generation that does not come up: one line, and the old one serves on."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        text = served.config.read_text()
        served.config.write_text(text + "plan: {}\n")
        served.signal(signal.SIGUSR2)
        await served.line("configuration.refused")
        served.config.write_text(text)
        served.config.write_text(text.partition("limits:")[0] + with_store(_no_store(tmp_path, "no certificate")))
        served.signal(signal.SIGUSR2)
        failed = await served.line("upgrade.failed")
        assert [await stream.goes_on() for stream in held.values()] == [True] * WORKERS
        assert (await served.ask("/readyz")).status == 200
        assert (await served.metrics())['forward_sse_workers{state="answering"}'] == WORKERS

    assert failed["exit_code"] == 1


async def test_workers_log_lines_are_whole(tmp_path: Path, upstream: Upstream) -> None:
    """However many workers write at once, and however long a line is, each line is read as it was written."""
    long_user = token("\u6f22" * 256)
    async with several(tmp_path, upstream) as served:

        async def load(number: int) -> None:
            for _ in range(40):
                async with await connect(served.address) as client:
                    for turn in range(5):
                        path = f"/nobody/{'x' * 200}{number}"
                        client.write(request(path, method="GET", token=long_user if turn % 2 else token()))
                        assert (await client.read_message()).status == 404

        reading = asyncio.create_task(_lines(served))
        await asyncio.gather(*map(load, range(8)))
        served.signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S * 2):
            lines = await reading

    settled = [line for line in lines if line["event"] == "exchange.settled"]
    assert len(settled) == 8 * 40 * 5
    assert len({line["worker"] for line in settled}) == WORKERS
    assert sum(line["user"] == "\u6f22" * 256 for line in settled) == 8 * 40 * 2


async def _lines(served: Several) -> list[dict[str, Any]]:
    assert served.process.stdout is not None
    return [json.loads(line) for line in (await served.process.stdout.read()).splitlines()]


async def test_workers_say_why_they_cannot_listen(tmp_path: Path, upstream: Upstream) -> None:
    """A port in use: one line on standard error, exit code 1, no worker ever made."""
    config = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY)
    text = text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: 127.0.0.1:{upstream.address[1]}")
    config.write_text(text + with_store("redis://127.0.0.1:1"))
    code, out, error = await _failing(config)
    assert code == 1
    assert error.count(b"\n") == 1
    assert b"cannot start: cannot listen on 127.0.0.1:" in error
    assert out == b""


async def test_workers_that_cannot_start_are_not_tried_for_ever(tmp_path: Path, upstream: Upstream) -> None:
    """What keeps the first workers from starting is told once, and ends the service with 1."""
    config = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url=upstream.url, key=VENDOR_KEY)
    config.write_text(text + with_store(_no_store(tmp_path, "no certificate")))
    code, out, error = await _failing(config)
    assert code == 1
    assert error.decode() == f"forward-sse: cannot start: {UNUSABLE}\n"
    assert b"worker.started" not in out


def _no_store(tmp_path: Path, authority: str) -> str:
    """A limits server that nobody reaches, by an authority file of this content: only workers read it."""
    path = tmp_path / "authority.pem"
    path.write_text(authority)
    return f"rediss://127.0.0.1:1?ca_file={path}"


async def _failing(config: Path) -> tuple[int | None, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *SERVE, "--config", str(config), "--workers", str(WORKERS)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), WAIT_S * 2)
    return process.returncode, out, error


async def test_workers_a_successor_that_cannot_start_is_tried_again(tmp_path: Path, upstream: Upstream) -> None:
    """The others serve on meanwhile; each try is a line with the reason; when the reason is gone, it comes up."""
    authority = make_authority(tmp_path).certificate.read_text()
    store = _no_store(tmp_path, authority)
    async with several(tmp_path, upstream, store=store) as served, one_in_each(served, upstream) as held:
        (tmp_path / "authority.pem").write_text("no certificate")
        victim = min(held)
        os.kill(served.pids[victim], signal.SIGKILL)
        await served.line("worker.ended")
        again = await served.line("worker.ended")
        others = [await stream.goes_on() for name, stream in held.items() if name != victim]
        (tmp_path / "authority.pem").write_text(authority)
        successor = await served.worker_up()

    assert again["reason"] == UNUSABLE
    assert again["pause_s"] > 0
    assert others == [True] * (WORKERS - 1)
    assert successor == victim


async def test_workers_one_that_is_stuck_delays_nobody(tmp_path: Path, upstream: Upstream) -> None:
    """A worker that does not answer is left out of lists, sums and readiness, and is said to be silent."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        before = await served.metrics()
        stuck = min(held)
        os.kill(served.pids[stuck], signal.SIGSTOP)
        try:
            answers: list[dict[str, float]] = []
            async with asyncio.timeout(WAIT_S):
                while len(answers) < 5:
                    # One that the stuck worker would have to take is left in the queue for the others by the system.
                    answers.append(await served.metrics())
            readiness = await served.ask("/readyz")
            streams = await served.streams()
        finally:
            os.kill(served.pids[stuck], signal.SIGCONT)

    for scraped in answers:
        assert scraped['forward_sse_workers{state="silent"}'] == 1
        assert scraped['forward_sse_active_streams{upstream="main"}'] == WORKERS - 1
        for name in before:
            if "_total{" in name:
                assert scraped[name] >= before[name]
    assert readiness.status == 200
    assert readiness.json["limping"] == ["workers: 1 did not answer"]
    assert set(streams.values()) == set(held) - {stuck}


async def test_workers_one_that_is_stuck_for_long_is_replaced(tmp_path: Path, upstream: Upstream) -> None:
    """Without a sign of life a worker is killed in the end; that its signals do not even reach it does not save it."""
    command = ("-c", IMPATIENT, "serve")
    async with several(tmp_path, upstream, command=command) as served, one_in_each(served, upstream) as held:
        stuck = min(held)
        os.kill(served.pids[stuck], signal.SIGSTOP)
        line = await served.line("worker.stuck")
        ended = await served.line("worker.ended")
        assert await served.worker_up() == stuck
        others = [await stream.goes_on() for name, stream in held.items() if name != stuck]

    assert line["worker"] == stuck
    assert (ended["worker"], ended["exit_code"]) == (stuck, -signal.SIGKILL)
    assert others == [True] * (WORKERS - 1)


async def test_workers_tell_the_service_manager(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager such as systemd learns when the service is ready, and its process id, after an upgrade too."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with several(tmp_path, upstream) as served:
            first = manager.recv(4096)
            served.signal(signal.SIGUSR2)
            after = await served.line("server.started")
            async with asyncio.timeout(WAIT_S):
                await served.process.wait()
            second = manager.recv(4096)

    assert first == b"READY=1\nMAINPID=%d" % served.process.pid
    assert second == b"READY=1\nMAINPID=%d" % after["pid"]


async def test_workers_leave_when_their_arbiter_is_gone(tmp_path: Path, upstream: Upstream) -> None:
    """A killed arbiter leaves no workers behind that nobody watches; their streams may end first."""
    async with several(tmp_path, upstream) as served, one_in_each(served, upstream) as held:
        served.process.kill()
        for _ in held:
            await served.line("arbiter.lost")
        ends = [await stream.ends_well() for stream in held.values()]
        lines = await served.rest()

    assert ends == [True] * WORKERS
    assert [line["event"] for line in lines].count("drain.finished") == WORKERS
