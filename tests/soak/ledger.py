"""What the load has sent and seen, held against what the service has logged and counted."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Around a worker's death: what it had not written down yet, and the clock of whoever looks.
_DEATH_S = 1.5
_KEPT_EXAMPLES = 5


@dataclass
class Sent:
    """One request. `answered` is whether its client has seen an answer's head, `whole` whether it saw it end well."""

    id: str
    kind: str
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    status: int | None = None
    is_whole: bool = False


class Ledger:
    """Everything that was sent; bounded by the length of the run, about 200 bytes a request."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.faults: list[str] = []
        self.deaths_s: list[float] = []
        self._fault_counts: Counter[str] = Counter()

    def begin(self, kind: str) -> Sent:
        """A request that is about to be sent."""
        sent = Sent(f"soak-{len(self.sent)}-{kind}", kind)
        self.sent[sent.id] = sent
        return sent

    def wrong(self, kind: str, what: str) -> None:
        """Something that must not be; a few of each kind are kept word by word."""
        self._fault_counts[kind] += 1
        if self._fault_counts[kind] <= _KEPT_EXAMPLES:
            self.faults.append(f"{kind}: {what}")

    def verdicts(self) -> list[str]:
        """What was wrong, with how often."""
        more = [f"{kind}: {count} times in all" for kind, count in self._fault_counts.items() if count > _KEPT_EXAMPLES]
        return self.faults + more

    def may_be_lost(self, sent: Sent) -> bool:
        """Whether a worker died while the request ran, and may have taken its line along."""
        ended_s = sent.ended_s or time.monotonic()
        return any(sent.began_s - _DEATH_S < death_s < ended_s + _DEATH_S for death_s in self.deaths_s)

    def check_lines(self, log: Path) -> Counter[str]:
        """Hold the log against what was sent, and count its events (of exchanges: by ending)."""
        counts: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for line in _lines(log, self):
            counts[line["event"]] += 1
            if line["event"] in {"exchange.failed", "library.reported", "log.lines_dropped", "worker.stuck"}:
                self.wrong(line["event"], json.dumps(line))
            if line["event"] != "exchange.settled":
                continue
            counts[f"ending {line['ending']}"] += 1
            seen[line["id"]] += 1
            sent = self.sent.get(line["id"])
            if sent is None:
                # What a frontend that leaves never told us of.
                if not line["id"].startswith("leaver-"):
                    self.wrong("line of nobody", json.dumps(line))
            elif sent.is_whole and line["ending"] not in {"complete", "upstream_error", "refused"}:
                self.wrong("ending", f"{sent} but {line}")
            elif sent.status is not None and line["status"] != sent.status:
                self.wrong("status", f"{sent} but {line}")
        for id_, count in seen.items():
            if count > 1:
                self.wrong("lines of one request", f"{id_}: {count}")
        for sent in self.sent.values():
            if sent.status is not None and not seen[sent.id] and not self.may_be_lost(sent):
                self.wrong("no line", str(sent))
        return counts


def _lines(log: Path, ledger: Ledger) -> Iterable[dict[str, Any]]:
    with log.open("rb") as lines:
        for raw in lines:
            try:
                yield json.loads(raw)
            except ValueError:
                ledger.wrong("torn line", repr(raw[:200]))
