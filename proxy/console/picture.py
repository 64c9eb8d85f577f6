"""The picture: the parts of all workers put together for one choice, told whole or as what has changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from proxy.console.choice import Choice, Row

# One worker's part: `streams`, how many run; `chosen`, for each choice its `rows` and `sums`; `counters`, `reasons` and
# `limping` as in `/readyz`, `limits` and `is_draining`.
Part = dict[str, Any]
_SUMMED: Final = ("count", "bytes", "events_per_s", "tokens_in", "tokens_out", "cost_nano")
# The worst last.
_LIMITS: Final = ("ok", "limping", "down")


class Parts(NamedTuple):
    """What all workers answered, by their names; those that did not; and the upstreams over all of them."""

    given: Mapping[str, Part]
    silent: frozenset[str]
    upstreams: Sequence[dict[str, Any]]


def sums_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The sums over rows, those that are not sent included."""
    return {
        "count": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "events_per_s": sum(row["events_per_s"] or 0 for row in rows),
        "tokens_in": sum(row["tokens_in"] for row in rows),
        "tokens_out": sum(row["tokens_out"] for row in rows),
        "cost_nano": sum(row["cost_nano"] or 0 for row in rows),
        "phases": dict(Counter(row["phase"] for row in rows)),
    }


class Tally:
    """Counters that only grow: a worker that is replaced or does not answer takes nothing away.

    Each worker is counted by what it adds from one time to the next; one that is seen for the first time, with all that
    it has.
    """

    def __init__(self) -> None:
        self._last: dict[str, dict[tuple[str, ...], int]] = {}
        self._total: Counter[tuple[str, ...]] = Counter()

    def add(self, parts: Parts) -> None:
        """Take what the workers have counted."""
        for worker, part in parts.given.items():
            new = dict(_flat(part["counters"]))
            old = self._last.get(worker, {})
            for name, count in new.items():
                self._total[name] += max(0, count - old.get(name, 0))
            self._last[worker] = new
        for gone in self._last.keys() - parts.given.keys() - parts.silent:
            del self._last[gone]

    def as_json(self) -> dict[str, Any]:
        """The sums, in the form of each worker's own counters."""
        told: dict[str, Any] = {"endings": {}, "refusals": {}, "attempts": {}, "retries": {}}
        for (*path, last), count in self._total.items():
            at = told
            for name in path:
                at = at.setdefault(name, {})
            at[last] = count
        return told


def _flat(counters: Mapping[str, Any], *path: str) -> Iterable[tuple[tuple[str, ...], int]]:
    for name, value in counters.items():
        if isinstance(value, dict):
            yield from _flat(value, *path, name)
        else:
            yield ((*path, name), value)


def common_of(parts: Parts) -> dict[str, Any]:
    """What every console is shown, whatever its choice."""
    reasons: list[str] = []
    limping: list[str] = []
    limits = {"state": _LIMITS[0], "problem": None}
    for part in parts.given.values():
        if not part["is_draining"]:
            reasons += [text for text in part["reasons"] if text not in reasons]
            limping += [text for text in part["limping"] if text not in limping]
        limits = max(limits, part["limits"], key=lambda one: _LIMITS.index(one["state"]))
    workers = [
        {"name": name, "state": "draining" if part["is_draining"] else "answering", "streams": part["streams"]}
        for name, part in parts.given.items()
    ]
    workers += [{"name": name, "state": "silent", "streams": None} for name in parts.silent]
    return {
        "streams_running": sum(part["streams"] for part in parts.given.values()),
        "workers": sorted(workers, key=lambda worker: worker["name"]),
        "limits": limits,
        "problems": {"reasons": reasons, "limping": limping},
        "upstreams": list(parts.upstreams),
    }


class Picture:
    """What one choice shows at one time: `rows` by their keys, and further members of the event."""

    def __init__(self, at_ms: int, rows: dict[str, Row], members: dict[str, Any]) -> None:
        self.at_ms = at_ms
        self.rows = rows
        self.members = members

    @classmethod
    def of(cls, choice: Choice, index: int, parts: Parts, *, at_ms: int, common: Mapping[str, Any]) -> Picture:
        """Put together the parts' answers to the choice, which is the one at that index."""
        rows: list[Row] = []
        sums: dict[str, Any] = dict.fromkeys(_SUMMED, 0)
        phases: Counter[str] = Counter()
        for worker, part in parts.given.items():
            if index >= len(part["chosen"]):
                continue
            chosen = part["chosen"][index]
            rows += [{**row, "key": f"{worker}-{row['key']}", "worker": worker} for row in chosen["rows"]]
            for name in _SUMMED:
                sums[name] += chosen["sums"][name]
            phases.update(chosen["sums"]["phases"])
        shown = {row["key"]: _priced(row) for row in choice.first(rows)}
        totals = _priced({**sums, "events_per_s": round(sums["events_per_s"], 1), "phases": phases})
        return cls(at_ms, shown, {"totals": totals, **common})

    def snapshot(self) -> bytes:
        """The event of the whole picture."""
        return _event("snapshot", {"at_ms": self.at_ms, "streams": list(self.rows.values()), **self.members})

    def delta(self, before: Picture) -> bytes:
        """The event of what has changed: new streams whole, of others the members that differ, `gone` by their keys.

        Each further member is there where it is not the same, and whole then.
        """
        changed: list[Row] = []
        for key, row in self.rows.items():
            old = before.rows.get(key)
            if old is None:
                changed.append(row)
            elif old != row:
                changed.append({"key": key} | {name: value for name, value in row.items() if old[name] != value})
        told: dict[str, Any] = {"at_ms": self.at_ms}
        if changed:
            told["streams"] = changed
        if gone := [key for key in before.rows if key not in self.rows]:
            told["gone"] = gone
        told |= {name: value for name, value in self.members.items() if before.members.get(name) != value}
        return _event("delta", told)


def _priced(row: Row) -> Row:
    cost_nano = row.pop("cost_nano")
    row["cost_usd"] = None if cost_nano is None else usd_text(cost_nano)
    return row


def _event(name: str, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))
