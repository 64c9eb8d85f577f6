"""What the runner does where the host takes the machine away; peers, loads and the host are of the test."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from benchmarks import runner
from benchmarks.native import LoadFailed
from benchmarks.peers.peer import Peer, Site, Started
from benchmarks.progress import Progress
from benchmarks.results import Sample
from benchmarks.scenarios import Bench, Scenario
from benchmarks.sizes import SMOKE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.runner import Contender

_S = 1_000_000_000
_CORES = 2
# Each load lasts a second of the test's clock.
_LOAD_NS = _S


class Machine:
    """A clock and a host: `takes` are the shares of the machine that it takes away during each load in turn."""

    def __init__(self, takes: list[float]) -> None:
        self.takes = takes
        self.loads = 0
        self.now_ns = 0
        self.stolen_ns = 0.0

    def run(self, _bench: Bench, _peer: Peer, _started: Started) -> Sample:
        """One load, which measures its own number."""
        self.stolen_ns += self.takes[self.loads] * _LOAD_NS * _CORES
        self.now_ns += _LOAD_NS
        self.loads += 1
        return Sample({"number": float(self.loads)})


class _OnePeer(Peer):
    name = "one"
    title = "one"

    def absence(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def start(self, site: Site) -> Started:
        del site
        return Started(1, ())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Contender, int]]:
    """Run one round of one scenario on a machine: what came of it, and how many loads were repeated."""

    def go(
        machine: Machine, load: Any = None, *, repeats: int = 2, until_s: float = 100.0, needs_fresh: bool = False
    ) -> tuple[Contender, int]:
        clock = SimpleNamespace(monotonic_ns=lambda: machine.now_ns, monotonic=lambda: machine.now_ns / _S)
        monkeypatch.setattr(runner, "time", clock)
        monkeypatch.setattr(runner, "stolen_ns", lambda: int(machine.stolen_ns))
        monkeypatch.setattr(runner, "os", SimpleNamespace(cpu_count=lambda: _CORES))
        monkeypatch.setattr(runner, "warm_up", lambda *_: None)
        sizes = replace(
            SMOKE, rounds={"load": 1}, repeats=repeats, stolen_limit=0.03, repeat_until_s=until_s, restart_limit_s=-1.0
        )
        bench = Bench(sizes, *cast("Any", (None, _Upstream(), 0)))
        progress = Progress(1)
        running = runner.Runner(bench, cast("Any", None), tmp_path, progress)
        scenario = Scenario("load", "load", load or machine.run, needs_fresh=needs_fresh)
        (contender,) = running.run([_OnePeer()], [scenario])
        progress.close()
        return contender, running.repeated

    return go


class _Upstream:
    port = 1


@pytest.mark.parametrize(
    ("takes", "counts", "repeated"),
    [
        pytest.param([0.0], 1, 0, id="undisturbed"),
        pytest.param([0.03], 1, 0, id="at the limit"),
        pytest.param([0.5, 0.01], 2, 1, id="better the second time"),
        pytest.param([0.2, 0.5, 0.4], 1, 2, id="always disturbed"),
        pytest.param([0.5, 0.4, 0.2], 3, 2, id="least the last time"),
    ],
)
def test_repeats(run: Callable[..., Any], takes: list[float], counts: int, repeated: int) -> None:
    """A load that the host disturbed is run again, at most so often; the least disturbed counts, with its share."""
    machine = Machine(takes)
    contender, again = run(machine)
    (sample,) = contender.samples["load"]
    assert sample.figures == {"number": counts}
    assert sample.stolen == pytest.approx(takes[counts - 1])
    assert (machine.loads, again) == (len(takes), repeated)


@pytest.mark.parametrize("options", [{"repeats": 0}, {"until_s": 0.5}, {"needs_fresh": True}])
def test_no_repeats(run: Callable[..., Any], options: dict[str, Any]) -> None:
    """Not in a quick run, not once the run has lasted too long, and not of memory, which the host does not disturb."""
    machine = Machine([0.5])
    contender, again = run(machine, **options)
    assert (machine.loads, again, contender.samples["load"][0].figures) == (1, 0, {"number": 1.0})


def test_wrong_answers_of_a_disturbed_load_count(run: Callable[..., Any]) -> None:
    """What went wrong in a load that does not count makes the cell unsound all the same."""
    machine = Machine([0.5, 0.0])

    def load(*arguments: Any) -> Sample:
        sample = machine.run(*arguments)
        if machine.loads == 1:
            raise LoadFailed("the peer was gone")
        return sample

    contender, again = run(machine, load)
    (sample,) = contender.samples["load"]
    assert (sample.figures, sample.failures, again) == ({"number": 2.0}, {"the peer was gone": 1}, 1)
    assert not contender.result().cells["load"].is_sound
