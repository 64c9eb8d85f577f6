"""What a worker knows of all workers: the view that the operator's listener shows when there are several.

The listener is one socket that the workers share: whichever takes the request asks the others, and answers for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import structlog

from proxy.server.workers import counter_files as figures
from proxy.server.workers.counter_files import CounterFile, Family, Sample
from proxy.server.workers.peers import PeerChannel

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.handlers.admin import Stream
    from proxy.handlers.service import Problems, Service
    from proxy.server.worker_status import WorkerStatus
    from proxy.server.workers.peers import Question

# How much of what was counted and never scraped a worker may take with it when it is killed. A snapshot is a
# millisecond's work.
KEEP_EVERY_S = 0.5
_DRAINING = "draining"


class AllWorkers:
    """All workers as one; a worker that does not answer in time is left out, and counted as silent."""

    def __init__(self, directory: Path, name: str, *, one: WorkerStatus, service: Service) -> None:
        self._directory = directory
        self._name = name
        self._one = one
        self._service = service
        self._ledger = CounterFile(directory, name, service.metrics.registry.collect)
        self._siblings = PeerChannel(directory, name, self._answer)
        self._keeping: asyncio.Task[None] | None = None
        self._keeps = True

    async def open(self) -> None:
        """Be there for the others, and begin to keep the figures.

        Raises:
            OSError: the directory cannot be used.
        """
        await self._siblings.open()
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Leave the last figures behind, and go."""
        await self._siblings.close()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._figures()

    async def metrics(self) -> bytes:
        """The text of a scrape, summed over all workers, and over those that are no more."""
        answers = await self._siblings.ask({"ask": "metrics"})
        parts = {self._name: self._figures()}
        for name, answer in answers.given.items():
            with contextlib.suppress(ValueError):
                parts[name] = figures.read(answer)
        states = {"answering": len(parts), "silent": 1 + len(answers.given) + len(answers.silent) - len(parts)}
        # Read after the answers: whatever a scrape has shown of a worker stands in its file.
        for path in self._directory.glob("*.figures"):
            if path.stem not in parts:
                parts[path.stem] = figures.left_behind(path)
        workers = Family(
            "forward_sse_workers",
            "gauge",
            "Workers, by whether they answered this scrape.",
            [Sample("forward_sse_workers", {"state": state}, float(count)) for state, count in states.items()],
        )
        return figures.render([*figures.add(*parts.values()), workers])

    async def streams(self) -> list[Stream]:
        """The live streams of all workers."""
        answers = await self._siblings.ask({"ask": "streams"})
        streams = self._listed()
        for answer in answers.given.values():
            if isinstance(answer, list):
                streams += answer
        return streams

    async def stop(self, id_: str) -> bool:
        """End the streams of that id, wherever they run."""
        here = self._one.stop_now(id_)
        return await self._anywhere({"ask": "stop", "id": id_}) or here

    async def stop_elsewhere(self, id_: str, issuer: str, user: str) -> bool:
        """End a user's streams of that id in the other workers."""
        return await self._anywhere({"ask": "stop_own", "id": id_, "issuer": issuer, "user": user})

    async def problems(self) -> Problems:
        """What stands against serving a request that arrives now, at whichever worker it arrives.

        A worker that drains while another does not is of no account: it takes no new connection. A silent one only
        limps: it is busy, or about to be replaced.
        """
        answers = await self._siblings.ask({"ask": "problems"})
        everybody = [self._one.problems_now()]
        everybody += [answer for answer in answers.given.values() if _is_problems(answer)]
        taking = [problems for problems in everybody if _DRAINING not in problems["reasons"]] or everybody
        whole: Problems = {"reasons": [], "limping": []}
        for problems in taking:
            for kind, texts in problems.items():
                known = whole.setdefault(kind, [])
                known += [text for text in texts if text not in known]
        if answers.silent:
            whole["limping"].append(f"workers: {len(answers.silent)} did not answer")
        return whole

    def _answer(self, question: Question) -> Any:
        match question["ask"]:
            case "metrics":
                return self._figures()
            case "streams":
                return self._listed()
            case "stop":
                return self._one.stop_now(question["id"])
            case "stop_own":
                return self._service.exchanges.stop_own(question["id"], question["issuer"], question["user"]) > 0
            case "problems":
                return self._one.problems_now()
        raise KeyError(question["ask"])

    async def _anywhere(self, question: Question) -> bool:
        answers = await self._siblings.ask(question)
        return any(answer is True for answer in answers.given.values())

    def _listed(self) -> list[Stream]:
        return [{**stream, "worker": self._name} for stream in self._one.streams_now()]

    def _figures(self) -> list[Family]:
        families = self._ledger.current()
        try:
            self._ledger.keep(families)
            self._keeps = True
        except OSError as exc:
            if self._keeps:
                structlog.get_logger().error("figures.not_kept", error=exc.strerror)
            self._keeps = False
        return families

    async def _keep(self) -> None:
        while True:
            self._figures()
            await asyncio.sleep(KEEP_EVERY_S)


def _is_problems(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("reasons"), list)
