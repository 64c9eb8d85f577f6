"""Clients that are programs of their own: curl, and one Node process in which every Node client runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.clients.calls import Failure
from tests.clients.failures import AnswerError, CommandError
from tests.clients.python_clients import hear_chat_event
from tests.needs import need, skip_or_fail
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from types import TracebackType

    from tests.clients.calls import Call, Heard

NODE_ROOM = Path(__file__).parent / "node"
# What the clients' packages ask for.
_NODE_VERSION = (20, 15)


def need_node() -> None:
    """Skip or fail the test where the Node clients cannot run: without Node, with an old one, without packages."""
    version = subprocess.run([need("node"), "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _NODE_VERSION:
        skip_or_fail(f"node {version.strip()} is older than {'.'.join(map(str, _NODE_VERSION))}")
    if not (NODE_ROOM / "node_modules").is_dir():
        skip_or_fail("tests/clients/node has no node_modules (npm ci installs them)")


class NodeClients:
    """One Node process, inside `with`: a call a line in, what was heard a line out, one after the other.

    A call that is cancelled kills the process, and the next one begins another.
    """

    def __enter__(self) -> Self:
        self._process = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    async def speak(self, call: Call, heard: Heard, kept: AsyncExitStack) -> None:
        """Hear one answer; what the client opens stays open in the process."""
        if self._process.poll() is not None:
            self._process.communicate()
            self._process = self._start()
        words = {_camel(name): value for name, value in asdict(call).items()}
        try:
            line = await asyncio.to_thread(self._ask, json.dumps(words))
        except asyncio.CancelledError:
            self._process.kill()  # the thread reads to its end then
            raise
        assert line, "the Node process ended"
        answer = json.loads(line)
        heard.text, heard.thought, heard.pieces = answer["text"], answer["thought"], answer["pieces"]
        heard.usage = None if answer["usage"] is None else tuple(answer["usage"])
        if said := answer["failure"]:
            heard.failure = Failure(said["name"], said["status"], said["code"], said["retryAfter"], said["message"])

    def _start(self) -> subprocess.Popen[str]:
        # The process outlives a test's loop, so it is not the loop's.
        return subprocess.Popen(
            ["node", "run.mjs"], cwd=NODE_ROOM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


class IndependentVendor:
    """A mock vendor that others wrote (npm's `@copilotkit/aimock`), inside `with`; `fixtures.json` is what it says."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            # The package kept the command's first name.
            ["node_modules/.bin/llmock", "--port", "0", "--fixtures", "fixtures.json", "--chunk-size", "5"],
            cwd=NODE_ROOM,
            env=os.environ | {"AIMOCK_API_KEYS": self._key},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
                return self
        self.__exit__(None, None, None)
        raise AssertionError("aimock did not begin")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


async def curl(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
    """`curl -N`, its own Content-Type (a form's) and all; leaving is killing it."""
    body = {"model": call.model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": call.prompt}]}
    fields = {"Authorization": f"Bearer {call.key}", **call.headers}
    process = await asyncio.create_subprocess_exec(
        *("curl", "-q", "-N", "-sS", "-i", "--fail-with-body", "--noproxy", "*"),
        *(part for name, value in fields.items() for part in ("-H", f"{name}: {value}")),
        *("-d", json.dumps(body), call.base),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            head = (await process.stdout.readuntil(b"\r\n\r\n")).decode()
            rest = b""  # what is no event: the JSON of a refusal, or half an event
            error: Any = None
            async for line in process.stdout:
                if not line.startswith(b"data: ") or not line.endswith(b"\n"):
                    rest += line
                elif line != b"data: [DONE]\n":
                    data = json.loads(line.removeprefix(b"data: "))
                    error = data.get("error")
                    if not error:
                        hear_chat_event(data, heard)
                if heard.is_enough:
                    process.kill()
                    return
    finally:
        await process.communicate()
    if process.returncode:
        raise CommandError(process.returncode, head, rest, error)
    if error:
        raise AnswerError(None, error["code"], error["message"])
