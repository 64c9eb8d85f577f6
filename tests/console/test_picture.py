"""The parts of several workers as one picture, whole and as what has changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy.console import Choice, Parts
from proxy.console.picture import Picture, Tally, common_of, sums_of
from tests.console.made_up import made_up

if TYPE_CHECKING:
    from collections.abc import Sequence


def part(rows: Sequence[dict[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    return {
        "chosen": [{"rows": [dict(row) for row in rows], "sums": sums_of(rows)}],
        "streams": len(rows),
        "counters": {"endings": {}, "refusals": {}, "attempts": {}, "retries": {}},
        "limits": {"state": "ok", "problem": None},
        "is_draining": False,
        "reasons": [],
        "limping": [],
        **changes,
    }


def picture(parts: Parts, at_ms: int = 1) -> Picture:
    return Picture.of(Choice(), 0, parts, at_ms=at_ms, common=common_of(parts))


def told(event: bytes) -> tuple[str, dict[str, Any]]:
    name, data, rest = event.decode().split("\n", 2)
    assert rest == "\n"
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_picture_of_two_workers() -> None:
    """Streams of all workers are shown, with keys of their own although ids may be the same; sums are over all."""
    parts = Parts({"7-0": part([made_up(1)]), "7-1": part([made_up(1), made_up(2)])}, frozenset({"7-2"}), [])
    name, whole = told(picture(parts).snapshot())
    assert name == "snapshot"
    assert {row["key"]: row["worker"] for row in whole["streams"]} == {"7-0-1": "7-0", "7-1-1": "7-1", "7-1-2": "7-1"}
    assert whole["totals"]["count"] == 3
    assert whole["totals"]["tokens_in"] == 121 + 121 + 122
    assert whole["totals"]["phases"] == {"streaming": 3}
    assert whole["totals"]["cost_usd"] == "0.003994"
    assert whole["streams"][0]["cost_usd"] == "0.001372"
    assert "cost_nano" not in whole["streams"][0]
    assert [(one["name"], one["state"], one["streams"]) for one in whole["workers"]] == [
        ("7-0", "answering", 1),
        ("7-1", "answering", 2),
        ("7-2", "silent", None),
    ]


def test_picture_delta() -> None:
    """What has changed is told: the members of a known stream, a new one whole, the keys of those that are gone."""
    before = picture(Parts({"w": part([made_up(1), made_up(2)])}, frozenset(), []))
    after = picture(Parts({"w": part([made_up(2, bytes=5000, phase="paused"), made_up(3)])}, frozenset(), []), at_ms=2)
    name, delta = told(after.delta(before))
    assert name == "delta"
    assert delta["at_ms"] == 2
    assert delta["gone"] == ["w-1"]
    new, changed = sorted(delta["streams"], key=len, reverse=True)
    assert (new["key"], new["user"]) == ("w-3", "dora-0")
    assert changed == {"key": "w-2", "bytes": 5000, "phase": "paused"}
    # Members that are as they were are not told again.
    assert set(delta) == {"at_ms", "gone", "streams", "totals"}
    assert told(
        picture(Parts({"w": part()}, frozenset(), [])).delta(picture(Parts({"w": part()}, frozenset(), [])))
    ) == (
        "delta",
        {"at_ms": 1},
    )


def test_common_limits_and_problems() -> None:
    """The worst state of the limits store is shown, and each problem once; a worker that drains has no say in it."""
    down = {"state": "down", "problem": "does not answer"}
    parts = Parts(
        {
            "a": part(limping=["auth: old keys"], limits={"state": "limping", "problem": "of some"}),
            "b": part(limping=["auth: old keys"], limits=down),
            "c": part(reasons=["draining"], is_draining=True),
        },
        frozenset(),
        [],
    )
    common = common_of(parts)
    assert common["limits"] == down
    assert common["problems"] == {"reasons": [], "limping": ["auth: old keys"]}
    assert [worker["state"] for worker in common["workers"]] == ["answering", "answering", "draining"]


def counted(complete: int, attempts: int = 0) -> dict[str, Any]:
    counters = {
        "endings": {"complete": complete},
        "refusals": {},
        "attempts": {"main": {"ok": attempts}},
        "retries": {},
    }
    return part(counters=counters)


def test_tally_only_grows() -> None:
    """A worker that is silent for a moment, is replaced, or is new, makes no sum smaller, and nothing counts twice."""
    tally = Tally()
    sums = []
    for given, silent in (
        ({"a": counted(10, 10), "b": counted(5, 5)}, frozenset[str]()),
        ({"a": counted(12, 12)}, frozenset({"b"})),
        ({"a": counted(12, 12), "b": counted(8, 8)}, frozenset[str]()),
        ({"a": counted(13, 13)}, frozenset[str]()),
        ({"a": counted(13, 13), "b": counted(1, 1)}, frozenset[str]()),
    ):
        tally.add(Parts(given, silent, []))
        told_now = tally.as_json()
        sums.append((told_now["endings"]["complete"], told_now["attempts"]["main"]["ok"]))
    assert sums == [(15, 15), (17, 17), (20, 20), (21, 21), (22, 22)]
