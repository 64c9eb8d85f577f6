"""The admin listener's view over all workers: metrics, live streams, upstreams, readiness, stopping a stream.

The workers share the admin listener's socket. The worker that accepts a request asks the others through its
`PeerChannel`, and answers for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import orjson

from proxy.console import Choice, Parts
from proxy.handlers.admin import Stopped
from proxy.server.workers import counter_files
from proxy.server.workers.counter_files import CounterFile, Family, Sample
from proxy.server.workers.peers import PeerChannel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from proxy.console import Part
    from proxy.handlers.admin import Stream, UpstreamReport
    from proxy.handlers.service import Problems, Service
    from proxy.ledger import Query
    from proxy.server.worker_status import WorkerStatus
    from proxy.server.workers.peers import Question

_DRAINING = "draining"
# The states of an upstream, the worst last.
_WORSE = ("on", "out", "off")
# A worker that is busy for longer than that shows itself in the report that follows.
_ACT_ATTEMPTS = 5


class AllWorkers:
    """Answers for all workers; one that does not answer in time is left out, and counted as silent."""

    def __init__(self, directory: Path, name: str, *, one: WorkerStatus, service: Service) -> None:
        self._directory = directory
        self._name = name
        self._one = one
        self._service = service
        self._counters = CounterFile(directory, name, service.metrics.registry.collect)
        self._peers = PeerChannel(directory, name, self._answer)

    async def open(self) -> None:
        """Begin to answer the other workers, and take over which upstreams an operator has turned off there.

        Raises:
            OSError: the directory cannot be used.
        """
        await self._peers.open()
        for reports in (await self._peers.ask({"ask": "upstreams"})).given.values():
            for report in _reports_in(reports):
                if report["state"] == "off":
                    await self._one.switch(report["name"], is_off=True)

    async def close(self) -> None:
        """Stop answering, and write the counters' final values."""
        await self._peers.close()
        self._counters.collect()

    async def metrics(self, *, is_openmetrics: bool = False) -> bytes:
        """Render a scrape, summed over all workers, with the counters of those that ended."""
        answers = await self._peers.ask({"ask": "metrics"})
        parts = {self._name: self._counters.collect()}
        for name, answer in answers.given.items():
            with contextlib.suppress(ValueError):
                parts[name] = counter_files.read(answer)
        states = {"answering": len(parts), "silent": 1 + len(answers.given) + len(answers.silent) - len(parts)}
        # Read after the answers, so that a file has at least what any scrape has shown of its worker.
        for path in self._directory.glob("*.counters"):
            if path.stem not in parts:
                parts[path.stem] = counter_files.read_file(path)
        workers = Family(
            "forward_sse_workers",
            "gauge",
            "Workers, by whether they answered this scrape.",
            [Sample("forward_sse_workers", {"state": state}, float(count)) for state, count in states.items()],
        )
        return counter_files.render([*counter_files.add(*parts.values()), workers], is_openmetrics=is_openmetrics)

    async def streams(self) -> list[Stream]:
        """The live streams of all workers."""
        answers = await self._peers.ask({"ask": "streams"})
        streams = await self._listed()
        for answer in answers.given.values():
            if isinstance(answer, list):
                streams += answer
        return streams

    async def stop(self, id_: str) -> bool:
        """End the streams of that id, wherever they run."""
        here = await self._one.stop(id_)
        return await self._anywhere({"ask": "stop", "id": id_}) or here

    async def stop_all(self, whose: Mapping[str, str]) -> Stopped:
        """End every stream of a user or of an upstream, in every worker that can be reached."""
        counts = {self._name: self._service.exchanges.stop_all(**whose)}
        for _ in range(_ACT_ATTEMPTS):
            answers = await self._peers.ask({"ask": "stop_all", **whose})
            for name, answer in answers.given.items():
                # At a second attempt those of the first may still be ending.
                counts.setdefault(name, answer if isinstance(answer, int) else 0)
            if not (silent := answers.silent - counts.keys()):
                break
        return Stopped(sum(counts.values()), len(silent))

    async def configuration(self) -> dict[str, Any]:
        """The configuration in force in this worker."""
        return await self._one.configuration()

    async def stop_elsewhere(self, id_: str, issuer: str, user: str) -> bool:
        """End a user's streams of that id in the other workers."""
        return await self._anywhere({"ask": "stop_own", "id": id_, "issuer": issuer, "user": user})

    async def upstreams(self) -> list[UpstreamReport]:
        """The upstreams: off or out where they are in one of the workers, with each worker's own state."""
        answers = await self._peers.ask({"ask": "upstreams"})
        parts = {self._name: await self._one.upstreams()}
        parts.update((name, _reports_in(reports)) for name, reports in answers.given.items())
        return merge_reports(parts)

    async def console(self, choices: Sequence[Choice]) -> Parts:
        """What every worker shows on a console."""
        question = {"ask": "console", "choices": orjson.dumps([list(choice) for choice in choices]).decode()}
        own, answers = await asyncio.gather(self._part(choices), self._peers.ask(question))
        given = {self._name: own}
        given.update((name, part) for name, part in answers.given.items() if isinstance(part, dict))
        return Parts(given, answers.silent, merge_reports({name: part["upstreams"] for name, part in given.items()}))

    async def spend(self) -> dict[str, Any] | None:
        """Who has spent most today: every worker reads the same ledger."""
        return await self._one.spend()

    async def switch(self, name: str, *, is_off: bool) -> bool:
        """Turn an upstream off or on in every worker."""
        is_known = await self._one.switch(name, is_off=is_off)
        for _ in range(_ACT_ATTEMPTS):
            answers = await self._peers.ask({"ask": "switch", "name": name, "state": "off" if is_off else "on"})
            is_known |= any(answer is True for answer in answers.given.values())
            if not answers.silent:
                break
        return is_known

    async def problems(self) -> Problems:
        """List why a request that arrives now would not be served, by whichever worker.

        A worker that drains while another does not is left out: it accepts no connection. A silent one is listed under
        `limping`: it is busy, or about to be replaced.
        """
        answers = await self._peers.ask({"ask": "problems"})
        reports = [await self._one.problems()]
        told = (answer for answer in answers.given.values() if isinstance(answer, dict))
        reports += [answer for answer in told if isinstance(answer.get("reasons"), list)]
        accepting = [problems for problems in reports if _DRAINING not in problems["reasons"]] or reports
        total: Problems = {"reasons": [], "limping": []}
        for problems in accepting:
            for kind, texts in problems.items():
                known = total.setdefault(kind, [])
                known += [text for text in texts if text not in known]
        if answers.silent:
            total["limping"].append(f"workers: {len(answers.silent)} did not answer")
        return total

    async def usage(self, asked: Query) -> tuple[str, bytes]:
        """What has been used: every worker reads the same ledger."""
        return await self._one.usage(asked)

    def _answer(self, question: Question) -> Any:
        """Return what a question is answered with, or an awaitable of it."""
        match question["ask"]:
            case "metrics":
                return self._counters.collect()
            case "streams":
                return self._listed()
            case "stop":
                return self._one.stop(question["id"])
            case "stop_all":
                return self._service.exchanges.stop_all(
                    **{name: text for name, text in question.items() if name != "ask"}
                )
            case "stop_own":
                return self._service.exchanges.stop_own(question["id"], question["issuer"], question["user"]) > 0
            case "upstreams":
                return self._one.upstreams()
            case "console":
                return self._part([Choice(*choice) for choice in orjson.loads(question["choices"])])
            case "switch":
                return self._one.switch(question["name"], is_off=question["state"] == "off")
            case "problems":
                return self._one.problems()
        raise KeyError(question["ask"])

    async def _anywhere(self, question: Question) -> bool:
        answers = await self._peers.ask(question)
        return any(answer is True for answer in answers.given.values())

    async def _part(self, choices: Sequence[Choice]) -> Part:
        return {**await self._one.part(choices), "upstreams": await self._one.upstreams()}

    async def _listed(self) -> list[Stream]:
        return [{**stream, "worker": self._name} for stream in await self._one.streams()]


def _reports_in(answer: Any) -> list[UpstreamReport]:
    return [report for report in answer if isinstance(report, dict)] if isinstance(answer, list) else []


def merge_reports(parts: Mapping[str, Sequence[UpstreamReport]]) -> list[UpstreamReport]:
    """Merge what each worker knows of the upstreams: sums of what runs, the worst of what fails.

    A worker that has not read a new configuration yet may know others than the first.
    """
    merged: dict[str, UpstreamReport] = {}
    for worker, reports in parts.items():
        for report in reports:
            name, state = report["name"], report["state"]
            total = merged.get(name)
            if total is None:
                merged[name] = {**report, "keys": [dict(key) for key in report["keys"]], "workers": {worker: state}}
                continue
            total["workers"][worker] = state
            total["state"] = max(total["state"], state, key=_WORSE.index)
            total["running"] += report["running"]
            total["failures"] = max(total["failures"], report["failures"])
            total["out_for_s"] = max((total["out_for_s"], report["out_for_s"]), key=lambda out_s: out_s or 0.0)
            _merge_keys(total["keys"], report["keys"])
    return list(merged.values())


def _merge_keys(total: list[dict[str, Any]], keys: Sequence[Mapping[str, Any]]) -> None:
    by_name = {key["key"]: key for key in total}
    for key in keys:
        known = by_name.get(key["key"])
        if known is None:
            total.append(dict(key))
            continue
        known["running"] += key["running"]
        if key["rests_for_s"] > known["rests_for_s"]:
            known["rests_for_s"], known["refused_with"] = key["rests_for_s"], key["refused_with"]
        known["resting"] = known["resting"] or key["resting"]
