"""An operator's routes: which targets a request may go to, and in which order."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from proxy.errors import UpstreamOffError
from proxy.failover import Outcome, UpstreamStates
from proxy.model import DIRECT, Origin, RetryRules, Route, RouteRules, RouteTarget, Timeouts, Upstream
from proxy.routing.model_routes import ModelRoute, RouteChoices
from tests.steps import finish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.failover import UpstreamState
    from proxy.protocol.json_text import Steps


class NobodyListens:
    """For states whose changes nobody logs."""

    def upstream_out(self, upstream: str, out_for_s: float | None) -> None: ...

    def key_rests(self, upstream: str, key: str, status: int, rest_s: float, *, is_only: bool) -> None: ...

    def upstream_switched(self, upstream: str, *, is_off: bool) -> None: ...


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def states(clock: Clock, *names: str) -> Mapping[str, UpstreamState]:
    known = UpstreamStates(now=clock, listener=NobodyListens())
    return known.configure(
        Upstream(name, Origin("https", name, 443), "", "openai", None, "own", keys=(f"key-of-{name}",))
        for name in names
    )


def fail(state: UpstreamState, count: int = 5) -> None:
    for _ in range(count):
        lease = state.begin(None)
        lease.judge(Outcome.LOST)
        lease.release()


def route(clock: Clock, *targets: RouteTarget, strategy: str = "ordered") -> ModelRoute:
    rules = RouteRules(("gpt-*", "o?"), targets, strategy, RetryRules())  # type: ignore[arg-type]  # a test names it
    return ModelRoute(rules, now=clock, chance=random.Random(7))


A, B, C = (RouteTarget(name) for name in "abc")


def order(one: ModelRoute, known: Mapping[str, UpstreamState]) -> list[str]:
    return [target.upstream for target in one.order(known)[0]]


@pytest.mark.parametrize(("model", "is_found"), [("gpt-4o", True), ("o3", True), ("GPT-4o", False), ("xgpt-4", False)])
def test_route_models(model: str, *, is_found: bool) -> None:
    """A route is for the models that one of its globs matches whole."""
    assert route(Clock(), A).matches(model) == is_found


def test_route_order() -> None:
    """In the file's order; without what is off or out; last of all what has no key that is well."""
    clock = Clock()
    known, one = states(clock, *"abc"), route(clock, A, B, C)
    assert order(one, known) == ["a", "b", "c"]
    known["a"].key_refused(known["a"].keys.keys[0], 429, 60.0)
    assert order(one, known) == ["b", "c", "a"]
    fail(known["b"])
    assert order(one, known) == ["c", "a"]
    known["c"].switch(is_off=True)
    assert [target.upstream for target in one.order(known)[0]] == ["a"]


def test_route_order_all_out() -> None:
    """Where all are out, the one that failed least recently is asked first; nobody is refused by a breaker."""
    clock = Clock()
    known, one = states(clock, *"abc"), route(clock, A, B, C)
    for name in "bca":
        fail(known[name])
        clock.now_s += 1

    assert one.order(known) == ([B, C, A], True)


def test_route_order_weighted() -> None:
    """Who is first follows the weights; the others follow, each once."""
    clock = Clock()
    one = route(clock, RouteTarget("a", weight=3), RouteTarget("b"), strategy="weighted")
    known = states(clock, "a", "b")
    orders = [order(one, known) for _ in range(2000)]

    firsts = Counter(names[0] for names in orders)
    assert 1400 < firsts["a"] < 1600
    assert {len(names) for names in orders} == {2}


def test_route_choices_skip_what_became_unfit() -> None:
    """A target that others have found failing, or that was turned off, meanwhile is not asked."""
    clock = Clock()
    known = states(clock, *"abc")
    choices = RouteChoices(route(clock, A, B, C), known, build)
    first = finish(choices.first())
    fail(known["b"])

    following = finish(choices.take())
    assert first.upstream == "a"
    assert following is not None
    assert following.upstream == "c"
    assert not choices.has_more
    assert finish(choices.take()) is None


def test_route_choices_all_off() -> None:
    """With every target off the request is refused by the operator's word."""
    clock = Clock()
    known = states(clock, "a", "b")
    for state in known.values():
        state.switch(is_off=True)
    with pytest.raises(UpstreamOffError) as caught:
        finish(RouteChoices(route(clock, A, B), known, build).first())
    assert caught.value.retry_after_s == 30


def test_states_survive() -> None:
    """A reload keeps what did not change: who is off or out, which keys are limited; refused keys are used again."""
    clock = Clock()
    known = UpstreamStates(now=clock, listener=NobodyListens())

    def upstream(name: str, *keys: str, host: str = "x") -> Upstream:
        return Upstream(name, Origin("https", host, 443), "", "openai", None, "own", keys=keys)

    before = known.configure([upstream("a", "k1", "k2", "k3"), upstream("b", "k"), upstream("gone", "k")])
    state, moved = before["a"], before["b"]
    first, second, third = state.keys.keys
    state.key_refused(first, 429, 60.0)
    state.key_refused(second, 401, None)
    fail(state)
    fail(moved)
    state.is_off = True

    after = known.configure([upstream("a", "k2", "k1", "new"), upstream("b", "k", host="y")])

    assert list(after) == ["a", "b"]
    assert after["a"] is state
    assert state.is_off
    assert state.breaker.is_out
    assert not moved.breaker.is_out
    assert state.keys.keys[:2] == (second, first)
    assert state.keys.keys[2] not in {first, second, third}
    assert [key.rests(clock.now_s) for key in state.keys.keys] == [False, True, False]


def test_states_survive_a_rotated_secret() -> None:
    """A secret that was read again is no operator's word that another key is well."""
    clock = Clock()
    known = UpstreamStates(now=clock, listener=NobodyListens())
    upstream = Upstream("a", Origin("https", "x", 443), "", "openai", None, "own", keys=("k1",))
    state = known.configure([upstream])["a"]
    state.key_refused(state.keys.keys[0], 401, None)
    known.configure([upstream], wakes=False)

    assert state.keys.all_rest


def build(target: RouteTarget) -> Steps[Route]:
    """As the router does, in one piece."""
    origin = Origin("https", target.upstream, 443)
    yield from ()
    return Route(target.upstream, "openai", origin, b"x", Timeouts(), None, DIRECT, False, "POST", b"/", (), b"")
