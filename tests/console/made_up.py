"""What workers would tell a console: as many streams as a test wants, without any that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.console import Parts
from proxy.console.picture import sums_of
from proxy.handlers.admin import Stopped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.console import Choice
    from proxy.handlers.admin import Stream, UpstreamReport
    from proxy.handlers.service import Problems
    from proxy.ledger import Query


class MadeUp:
    """Streams that do not run: as many as a test wants, which go on a little each time they are asked for."""

    def __init__(self, rows: Sequence[dict[str, Any]], *, upstreams: Sequence[dict[str, Any]] = ()) -> None:
        self.rows = [dict(row) for row in rows]
        self.reports = list(upstreams)
        self.spent: dict[str, Any] | None = None
        self.ended = 0
        self.refused = 0
        self.cut = 0
        # How much the three grow each time.
        self.growth = (0, 0, 0)
        self.limits: dict[str, Any] = {"state": "ok", "problem": None}
        self.given: Problems = {"reasons": [], "limping": []}
        self.silent: frozenset[str] = frozenset()
        self.stopped: list[str] = []
        self.whose: list[dict[str, str]] = []
        self.asked = 0

    async def console(self, choices: Sequence[Choice]) -> Parts:
        self.asked += 1
        more = self.growth
        self.ended, self.refused, self.cut = self.ended + more[0], self.refused + more[1], self.cut + more[2]
        for row in self.rows:
            row["events"] += 20
            row["bytes"] += 4000
            row["tokens_out"] += 21
        chosen = [
            {"rows": [dict(row) for row in choice.first(found)], "sums": sums_of(found)}
            for choice in choices
            for found in [choice.of(self.rows)]
        ]
        counters = {
            "endings": {"complete": self.ended, "client_closed": 4, "timeout_idle": self.cut},
            "refusals": {"rate_limit_exceeded": self.refused},
            "attempts": {report["name"]: {"ok": 900, "429": 4} for report in self.reports},
            "retries": {report["name"]: 3 for report in self.reports},
        }
        part = {
            "chosen": chosen,
            "streams": len(self.rows),
            "counters": counters,
            "limits": self.limits,
            "is_draining": False,
            **self.given,
        }
        return Parts({"7-1": part}, self.silent, [dict(report) for report in self.reports])

    async def spend(self) -> dict[str, Any] | None:
        return self.spent

    async def metrics(self, *, is_openmetrics: bool = False) -> bytes:
        return b""

    async def streams(self) -> list[Stream]:
        return [dict(row) for row in self.rows]

    async def stop(self, id_: str) -> bool:
        self.stopped.append(id_)
        known = len(self.rows)
        self.rows = [row for row in self.rows if row["id"] != id_]
        return len(self.rows) < known

    async def stop_all(self, whose: Mapping[str, str]) -> Stopped:
        self.whose.append(dict(whose))
        known = len(self.rows)
        self.rows = [row for row in self.rows if any(row[name] != value for name, value in whose.items())]
        return Stopped(known - len(self.rows), len(self.silent))

    async def configuration(self) -> dict[str, Any]:
        return {
            "config": {"listen": "127.0.0.1:8080", "upstreams": {"main": {"api_key": "[redacted]"}}},
            "loaded_at": "2026-11-27T05:00:00Z",
            "last_reload": {"at": "2026-11-27T05:30:00Z", "result": "ok", "needs_restart": [], "faults": []},
        }

    async def upstreams(self) -> list[UpstreamReport]:
        return self.reports

    async def switch(self, name: str, *, is_off: bool) -> bool:
        for report in self.reports:
            if report["name"] == name:
                report["state"] = "off" if is_off else "on"
        return True

    async def problems(self) -> Problems:
        return self.given

    async def usage(self, _asked: Query) -> tuple[str, bytes]:
        return "2026-01-01T00:00:00Z", b"[]"


def made_up(number: int, **changes: Any) -> dict[str, Any]:
    """A stream that looks like one of many."""
    phases = ("streaming", "streaming", "streaming", "waiting", "streaming", "paused", "streaming", "connecting")
    models = ("gpt-4o", "claude-sonnet-4-5", "qwen-plus", "gemini-2.5-pro", "gpt-4o-mini")
    upstreams = ("openai", "anthropic", "tongyi", "gemini", "openai")
    names = ("alice", "bob", "chen.wei", "dora", "émile", "faruk", "grace-team", "hana")
    phase = phases[number % len(phases)]
    is_begun = phase in {"streaming", "paused"}
    return {
        "key": f"{number:x}",
        "id": f"{number:024x}",
        "user": f"{names[number % len(names)]}-{number // len(names)}",
        "issuer": "https://id.example.com",
        "plan": ("default", "team", "trial")[number % 3],
        "upstream": upstreams[number % len(upstreams)],
        "model": models[number % len(models)],
        "phase": phase,
        "attempts": 2 if number % 11 == 0 else 1,
        "first_byte_ms": 180.0 + number % 700 if is_begun else None,
        "started_ms": 1_795_759_000_000 - number * 731,
        "events": number * 7 if is_begun else 0,
        "events_per_s": round(11 + number % 29 + 0.4, 1) if phase == "streaming" else 0.0,
        "bytes": number * 1311 if is_begun else 0,
        "unsent": 65_536 if phase == "paused" else 0,
        "tokens_in": 120 + number % 900,
        "tokens_out": number * 6 if is_begun else 0,
        "cost_nano": 1_250_000 + number * 61_000 if number % 5 else None,
        "usage": "estimated",
        **changes,
    }
