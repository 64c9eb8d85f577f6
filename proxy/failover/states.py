"""What one worker knows of its upstreams: who is out, who is off, which keys rest. It outlives a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from proxy.failover.breaker import Breaker
from proxy.failover.keys import REFUSED, Key, KeyPool, keys_of
from proxy.failover.policy import FAULTS, OK, Outcome
from proxy.model import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from proxy.model import Origin, Upstream

# Endings of an answer that had begun, for which the upstream is to blame.
_BROKEN = frozenset({Ending.UPSTREAM_CLOSED, Ending.TIMEOUT_IDLE})


class Listener(Protocol):
    """Who is told of changes, for the log. Must not wait or raise."""

    def upstream_out(self, upstream: str, out_for_s: float | None) -> None:
        """An upstream is left out for that long; None where it is back."""
        ...

    def key_rests(self, upstream: str, key: str, status: int, rest_s: float, *, is_only: bool) -> None:
        """A key rests for that long, because of that status; `is_only`: the upstream has no other."""
        ...

    def upstream_switched(self, upstream: str, *, is_off: bool) -> None:
        """An operator has turned an upstream off or on."""
        ...


class UpstreamState:
    """One upstream's breaker, keys, and whether an operator has turned it off.

    Attributes:
        running: How many requests it is asked now, streams included.
    """

    __slots__ = ("_listener", "_now", "breaker", "is_off", "keys", "name", "origin", "running")

    def __init__(self, upstream: Upstream, *, now: Callable[[], float], listener: Listener) -> None:
        self.name = upstream.name
        self.origin: Origin = upstream.origin
        self.is_off = False
        self.running = 0
        self._now = now
        self._listener = listener
        self.keys = KeyPool(keys_of(upstream), upstream.key_rules, now)
        self.breaker = self._new_breaker(upstream)

    def begin(self, key: Key | None) -> Lease:
        """An attempt begins, with that key; the lease must be released."""
        return Lease(self, key, self._now())

    def change(self, upstream: Upstream, *, wakes: bool) -> None:
        """Take over another configuration of the same upstream: keys that are still there keep their state.

        `wakes`: keys that were refused are used again, as after a reload, by which an operator says that they are well.
        """
        known = {key.digest: key for key in self.keys.keys}
        keys = []
        for new in keys_of(upstream):
            key = known.get(new.digest, new)
            if key.field != new.field:
                key = new
            key.weight = new.weight
            if wakes and key.refused_with in REFUSED:
                key.wake()
            keys.append(key)
        self.keys = KeyPool(keys, upstream.key_rules, self._now)
        if self.origin != upstream.origin or self.breaker.rules != upstream.health:
            self.breaker = self._new_breaker(upstream)
            self.origin = upstream.origin

    def switch(self, *, is_off: bool) -> None:
        """Turn it off for new requests, or on, in which case it is no longer out either, and no key rests."""
        if is_off != self.is_off:
            self.is_off = is_off
            self._listener.upstream_switched(self.name, is_off=is_off)
        if not is_off:
            self.breaker.reset()
            for key in self.keys.keys:
                key.wake()

    def key_refused(self, key: Key, status: int, rest_s: float | None) -> None:
        """The vendor refused the key."""
        rested_s = key.refused(status, rest_s, self._now(), self.keys.rules.cooldown_s)
        if rested_s is not None:
            self._listener.key_rests(self.name, key.name, status, rested_s, is_only=not self.keys.is_choice)

    def report(self) -> dict[str, Any]:
        """What an operator is shown: no secret, nothing of a user's."""
        now_s = self._now()
        breaker = self.breaker
        state = "off" if self.is_off else "out" if breaker.is_out else "on"
        out_for_s = None if breaker.out_until_s is None else round(max(0.0, breaker.out_until_s - now_s), 1)
        return {
            "name": self.name,
            "state": state,
            "running": self.running,
            "failures": breaker.failures,
            "out_for_s": out_for_s,
            "keys": [
                {
                    "key": key.name,
                    "running": key.running,
                    "resting": key.rests(now_s),
                    "rests_for_s": round(max(0.0, key.resting_until_s - now_s), 1),
                    "refused_with": key.refused_with,
                }
                for key in self.keys.keys
            ],
        }

    def problem(self) -> str | None:
        """Why it is not served as usual, in a few words; None where it is."""
        if self.is_off:
            return "is off"
        if self.breaker.is_out:
            return "is left out"
        return "every key rests" if self.keys.all_rest else None

    def _new_breaker(self, upstream: Upstream) -> Breaker:
        name, listener = self.name, self._listener
        return Breaker(
            upstream.health, now=self._now, on_change=lambda out_for_s: listener.upstream_out(name, out_for_s)
        )


class Lease:
    """One attempt's part of an upstream and a key, from its beginning to the end of its answer."""

    __slots__ = ("_begun_s", "_breaker", "_has_verdict", "_is_probe", "_state", "key")

    def __init__(self, state: UpstreamState, key: Key | None, begun_s: float) -> None:
        self.key = key
        self._state: UpstreamState | None = state
        self._begun_s = begun_s
        # That of the beginning: a reload may make another one.
        self._breaker = breaker = state.breaker
        self._is_probe = breaker.out_until_s is not None and breaker.begin()
        self._has_verdict = False
        state.running += 1
        if key is not None:
            key.running += 1

    def judge(self, outcome: Outcome) -> None:
        """Take note of how the attempt came out."""
        if outcome is OK:
            self._has_verdict = True
            self._breaker.succeeded(self._begun_s, is_probe=self._is_probe)
            if self.key is not None:
                self.key.accepted(self._begun_s)
        elif outcome in FAULTS:
            self._breaker.failed(is_probe=self._is_probe)
        if self._is_probe:
            self._is_probe = False
            self._breaker.end_probe()

    def release(self, ending: Ending | None = None) -> None:
        """The attempt is over, or its answer, which ended so; idempotent."""
        state, self._state = self._state, None
        if state is None:
            return
        state.running -= 1
        if self.key is not None:
            self.key.running -= 1
        if self._is_probe:
            self._breaker.end_probe()
        if self._has_verdict and ending in _BROKEN:
            self._breaker.broke()


class UpstreamStates:
    """The states of all upstreams of one worker, by name."""

    def __init__(self, *, now: Callable[[], float], listener: Listener) -> None:
        """`now` gives the loop's time, in seconds."""
        self.now = now
        self._listener = listener
        self._states: dict[str, UpstreamState] = {}

    def configure(self, upstreams: Iterable[Upstream], *, wakes: bool = True) -> Mapping[str, UpstreamState]:
        """Return the states of these upstreams; those that were known under the same name are the same objects."""
        states: dict[str, UpstreamState] = {}
        for upstream in upstreams:
            state = self._states.get(upstream.name)
            if state is None:
                state = UpstreamState(upstream, now=self.now, listener=self._listener)
            else:
                state.change(upstream, wakes=wakes)
            states[upstream.name] = state
        self._states = states
        return states

    def reports(self) -> list[dict[str, Any]]:
        """Return what an operator is shown of each."""
        return [state.report() for state in self._states.values()]

    def problems(self) -> list[str]:
        """Return what is not served as usual, a line for each upstream."""
        named = ((state.name, state.problem()) for state in self._states.values())
        return [f"upstream {name}: {problem}" for name, problem in named if problem is not None]

    def switch(self, name: str, *, is_off: bool) -> bool:
        """Turn an upstream off or on, and return whether there is one of that name."""
        state = self._states.get(name)
        if state is not None:
            state.switch(is_off=is_off)
        return state is not None
