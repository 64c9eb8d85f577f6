"""The benchmark's harness: what it counts, what it concludes, and that it leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from benchmarks.native import Load, Upstream
from benchmarks.peers import ALL
from benchmarks.peers.peer import REPOSITORY, Peer, Started
from benchmarks.processes import Program, Programs, StartFailed, free_port
from benchmarks.progress import Progress
from benchmarks.results import Sample
from benchmarks.runner import Runner
from benchmarks.scenarios import SCENARIOS, Bench, Scenario, scaled
from benchmarks.sizes import SMOKE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.peer import Site

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the harness reads Linux's /proc")

WAIT_S = 120


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def children_in(directory: Path) -> list[str]:
    """The processes that work below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cwd = (process / "cwd").readlink()
        except OSError:
            continue
        if cwd.is_relative_to(directory):
            found.append(f"{process.name}: {cwd}")
    return found


class _Faulty(Peer):
    """A peer that says why and ends."""

    name: ClassVar[str] = "faulty"
    title: ClassVar[str] = "Faulty"
    share: ClassVar[float] = 0.1

    def absence(self) -> str | None:
        return None

    def version(self) -> str:
        return "0"

    def start(self, site: Site) -> Started:
        program = site.start("faulty", ["sh", "-c", "echo the reason; exit 3"])
        program.wait_for_port(free_port(), deadline_s=WAIT_S)
        raise AssertionError("it cannot come here")


class _Absent(_Faulty):
    """A peer that is not on this machine."""

    name: ClassVar[str] = "absent"

    def absence(self) -> str | None:
        return "not installed"


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """A runner whose peers never come so far that they would need an upstream or a load."""
    with Programs() as programs:
        upstream = Upstream(Program(subprocess.Popen(["true"]), tmp_path / "log"), 1)
        bench = Bench(SMOKE, Load(Path("/nowhere")), upstream, 1_024)
        yield Runner(bench, programs, tmp_path, Progress(1, io.StringIO()))
        upstream.program.end()


def test_runner_goes_on_without_the_absent_and_the_failed(runner: Runner) -> None:
    """A peer that does not start is failed with the tail of its log, an absent one is absent, and nothing is raised."""
    faulty, absent = (one.result() for one in runner.run([_Faulty(), _Absent()], SCENARIOS))
    assert (faulty.state, absent.state, absent.reason) == ("failed", "absent", "not installed")
    assert "ended with 3" in faulty.reason
    assert "the reason" in faulty.reason
    assert faulty.cells == absent.cells == {}


def test_share_scales_and_never_exceeds() -> None:
    """A peer's share scales a count, down to what still says something, never above the count."""
    assert [scaled(count, _Faulty(), least=8) for count in (1_000, 40, 4)] == [100, 8, 4]


@pytest.mark.parametrize("manners", ["", "trap '' TERM;"], ids=["obeys", "ignores"])
def test_programs_end_with_their_children(manners: str, tmp_path: Path) -> None:
    """What was started ends, and what that has started, even where being asked is ignored."""
    os.mkfifo(tmp_path / "up")
    with Programs() as programs:
        child = f"{manners} echo > up; while :; do sleep 600; done"
        script = f'{manners} sh -c "{child}" & while :; do sleep 600; done'
        program = programs.start("parent", ["sh", "-c", script], tmp_path)
        # Opens once the child writes.
        (tmp_path / "up").read_text()
        assert len(children_in(tmp_path)) > 1
        program.end(grace_s=0.1)
    # A child that is killed is init's to bury: it has been told to end, not when.
    deadline_s = time.monotonic() + WAIT_S
    while (left := children_in(tmp_path)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert left == []


def test_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not exist did not start; nothing else is raised."""
    with Programs() as programs:
        # Where setpriv guards it, the program is found missing only by setpriv.
        monkeypatch.setattr(shutil, "which", lambda _name: None)
        with pytest.raises(StartFailed, match="/nowhere/at/all"):
            programs.start("none", ["/nowhere/at/all"], tmp_path)


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", "--smoke", *options]


@pytest.mark.usefixtures("native")
def test_smoke_run(directory: Path) -> None:
    """The command measures, prints the table and the targets, writes the JSON, and leaves nothing running."""
    kept = directory / "kept" / "latest.json"
    options = ["--peers", "direct,aiohttp_pipe,ours", "--results", str(kept), "--plot", str(directory / "plot.svg")]
    environment = {**os.environ, "TMPDIR": str(directory)}
    done = subprocess.run(
        _command(*options), capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=REPOSITORY, env=environment
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(kept.read_text())
    assert list(document["peers"]) == ["direct", "aiohttp_pipe", "ours"]
    for name in ("aiohttp_pipe", "ours"):
        peer = document["peers"][name]
        assert (peer["state"], peer["reason"]) == ("measured", "")
        assert set(peer["scenarios"]) == {one.name for one in SCENARIOS}
        for found in peer["scenarios"].values():
            assert found["failures"] == {}, done.stdout
    found = document["peers"]["ours"]["scenarios"]
    assert found["request"]["figures"]["cpu_us_per_request"] > 0
    assert found["paced"]["figures"]["cpu_us_per_event"] > 0
    assert found["hold"]["figures"]["kib_per_stream"] > 0
    assert found["cancel"]["figures"]["cancel_p99_us"] > 0
    assert "added_p50_us" in found["paced"]["figures"]
    assert "forward-sse" in done.stdout
    assert "not measured" in done.stdout
    assert children_in(directory) == []


@pytest.mark.usefixtures("native")
def test_interrupted_run_leaves_nothing(directory: Path) -> None:
    """Ctrl-C in the midst of a load ends every process and removes what was written."""
    options = ["--peers", "direct,aiohttp_pipe,ours", "--results", str(directory / "none.json")]
    environment = {**os.environ, "TMPDIR": str(directory)}
    with subprocess.Popen(
        _command(*options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "streams at a model's pace" in line:
                break
        assert children_in(directory)
        run.send_signal(signal.SIGINT)
        _, rest = run.communicate(timeout=WAIT_S)
    assert (run.returncode, "interrupted" in rest) == (130, True)
    assert children_in(directory) == []
    assert list(directory.iterdir()) == []


def test_every_peer_has_a_name_of_its_own() -> None:
    """Names are keys of the JSON."""
    assert len({peer.name for peer in ALL}) == len({peer.title for peer in ALL}) == len(ALL)


def test_runner_leaves_later_rounds_out_when_time_is_up(tmp_path: Path) -> None:
    """Over the budget every scenario still has its first round, on every peer, and none its second."""
    measured: list[str] = []

    def run(_bench: Bench, peer: Peer, _started: Started) -> Sample:
        measured.append(peer.name)
        return Sample({})

    class Instant(_Faulty):
        name: ClassVar[str] = "instant"

        def start(self, site: Site) -> Started:
            return Started(1, ())

    class Answering(Load):
        def run(self, *_words: Any, **_options: Any) -> dict[str, Any]:
            return {"complete": 1}

    def rounds_with(budget_s: float | None) -> int:
        measured.clear()
        sizes = replace(SMOKE, rounds={"one": 3}, budget_s=budget_s)
        directory = tmp_path / str(budget_s)
        directory.mkdir()
        with Programs() as programs:
            upstream = Upstream(Program(subprocess.Popen(["true"]), tmp_path / "log"), 1)
            bench = Bench(sizes, Answering(Path("/nowhere")), upstream, 1_024)
            (contender,) = Runner(bench, programs, directory, Progress(1, io.StringIO())).run(
                [Instant()], [Scenario("one", "one", run)]
            )
            upstream.program.end()
        assert contender.result().cells["one"].rounds == len(measured)
        return len(measured)

    assert (rounds_with(0.0), rounds_with(None)) == (1, 3)
