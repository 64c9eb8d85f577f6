"""Runs scenarios over peers: the peers interleaved, round after round, so that a disturbance meets all."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks.accounting import stolen_ns
from benchmarks.native import LoadFailed
from benchmarks.peers.peer import Site
from benchmarks.processes import StartFailed
from benchmarks.results import PeerResult, Sample, cell
from benchmarks.scenarios import warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.peer import Peer, Started
    from benchmarks.processes import Programs
    from benchmarks.progress import Progress
    from benchmarks.scenarios import Bench, Scenario


@dataclass
class Contender:
    """A peer in the run."""

    peer: Peer
    directory: Path
    started: Started | None = None
    is_fresh: bool = False
    start_s: float = 0.0
    state: str = "measured"
    reason: str = ""
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it can be measured."""
        return self.started is not None

    def result(self) -> PeerResult:
        """What came of it."""
        peer = self.peer
        return PeerResult(
            name=peer.name,
            title=peer.title,
            state=self.state,
            version="" if self.state == "absent" else peer.version(),
            reason=self.reason,
            note=peer.note,
            cells={name: cell(samples) for name, samples in self.samples.items()},
        )


class Runner:
    """Starts the peers, runs the rounds. What it starts belongs to `programs`, which ends it."""

    def __init__(self, bench: Bench, programs: Programs, directory: Path, progress: Progress) -> None:
        self._bench = bench
        self._programs = programs
        self._directory = directory
        self._progress = progress
        self._began = time.monotonic()
        # How many loads were run again because the host took the machine away.
        self.repeated = 0

    def run(self, peers: Sequence[Peer], scenarios: Sequence[Scenario]) -> list[Contender]:
        """Every scenario in every round; a peer that is absent or falls is named, and the rest goes on."""
        self._progress.add(len(self._plan(list(peers), scenarios)) + len(peers) - 1)
        contenders = [self._enter(peer) for peer in peers]
        present = [one for one in contenders if one.is_running]
        self._progress.add(-len(self._plan([one.peer for one in contenders if not one.is_running], scenarios)))
        by_name = {one.peer.name: one for one in present}
        skipped = 0
        plan = self._plan([one.peer for one in present], scenarios)
        # All peers of a round or none, so that the medians stay those of the same moments.
        for (number, _), steps in groupby(plan, key=lambda step: (step[0], step[1].name)):
            is_too_late = number > 0 and self._is_over_budget()
            skipped += is_too_late
            for _, scenario, peer in steps:
                contender = by_name[peer.name]
                if contender.is_running and not is_too_late:
                    rounds = scenario.rounds(self._bench.sizes)
                    self._progress.now(f"{scenario.title} ({number + 1}/{rounds}): {peer.title}")
                    self._measure(contender, scenario)
                self._progress.step()
        if skipped:
            self._progress.say(f"The machine is busy: {skipped} of the later rounds were left out.")
        return contenders

    def _is_over_budget(self) -> bool:
        budget_s = self._bench.sizes.budget_s
        return budget_s is not None and time.monotonic() - self._began > budget_s

    def _plan(self, peers: Sequence[Peer], scenarios: Sequence[Scenario]) -> list[tuple[int, Scenario, Peer]]:
        """Round by round, scenario by scenario; each round begins with another peer."""
        rounds = {scenario.name: scenario.rounds(self._bench.sizes) for scenario in scenarios}
        plan = []
        for number in range(max(rounds.values(), default=0)):
            turned = [*peers[number % max(len(peers), 1) :], *peers[: number % max(len(peers), 1)]]
            plan += [
                (number, scenario, peer)
                for scenario in scenarios
                if number < rounds[scenario.name]
                for peer in turned
                if scenario.has_base or peer.name != "direct"
            ]
        return plan

    def _enter(self, peer: Peer) -> Contender:
        contender = Contender(peer, self._directory / peer.name)
        reason = peer.absence()
        if reason is not None:
            contender.state, contender.reason = "absent", reason
            self._progress.say(f"{peer.title}: absent ({reason})")
        else:
            self._progress.now(f"starting {peer.title}")
            contender.directory.mkdir()
            self._start(contender)
        self._progress.step()
        return contender

    def _start(self, contender: Contender) -> None:
        bench = self._bench
        site = Site(contender.directory, self._programs, bench.upstream.port, bench.descriptors)
        began = time.monotonic()
        try:
            contender.started = contender.peer.start(site)
            contender.start_s = time.monotonic() - began
            warm_up(bench, contender.peer, contender.started)
            contender.is_fresh = True
        except (StartFailed, LoadFailed) as exc:
            self._fall(contender, f"did not start: {exc}")

    def _measure(self, contender: Contender, scenario: Scenario) -> None:
        limit_s = self._bench.sizes.restart_limit_s
        if scenario.needs_fresh and not contender.is_fresh and (limit_s is None or contender.start_s <= limit_s):
            assert contender.started is not None
            self._programs.end(*contender.started.programs)
            contender.started = None
            self._start(contender)
        if contender.started is None:
            return
        contender.is_fresh = False
        samples = contender.samples.setdefault(scenario.name, [])
        samples.append(self._least_disturbed(contender.peer, contender.started, scenario))
        ended = [program for program in contender.started.programs if program.has_ended]
        if ended:
            self._fall(contender, f"ended during {scenario.name}: {ended[0].tail()}")

    def _least_disturbed(self, peer: Peer, started: Started, scenario: Scenario) -> Sample:
        """The load's sample; of several, where the host disturbed it, the one that it disturbed least.

        Whether a load is run again depends on the host alone, never on what was measured. A wrong answer counts in
        whichever it was.
        """
        sizes = self._bench.sizes
        tries = [self._sample(peer, started, scenario)]
        for _ in range(0 if scenario.needs_fresh else sizes.repeats):
            is_late = time.monotonic() - self._began > sizes.repeat_until_s
            has_ended = any(program.has_ended for program in started.programs)
            if is_late or has_ended or tries[-1].stolen <= sizes.stolen_limit:
                break
            self.repeated += 1
            tries.append(self._sample(peer, started, scenario))
        failures: Counter[str] = Counter()
        for one in tries:
            failures.update(one.failures)
        return replace(min(tries, key=lambda one: one.stolen), failures=dict(failures))

    def _sample(self, peer: Peer, started: Started, scenario: Scenario) -> Sample:
        began, stolen = time.monotonic_ns(), stolen_ns()
        try:
            sample = scenario.run(self._bench, peer, started)
        except LoadFailed as exc:
            sample = Sample({}, {str(exc): 1})
        cores = os.cpu_count() or 1
        return replace(sample, stolen=(stolen_ns() - stolen) / ((time.monotonic_ns() - began) * cores))

    def _fall(self, contender: Contender, reason: str) -> None:
        contender.state, contender.reason = "failed", reason
        if contender.started is not None:
            self._programs.end(*contender.started.programs)
            contender.started = None
        self._progress.say(f"{contender.peer.title}: failed: {reason}")
