"""The nodes of a Cluster: a link to each primary, and which of them has a user's keys.

All keys of a user have one hash tag, so an admission is one script on one node. redis-py packs, parses and computes
slots; its `RedisCluster` is not used, because it takes a connection for each command that is on its way:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from proxy.limits.redis.address import run
from proxy.limits.redis.channel import ignore
from proxy.limits.redis.errors import ConnectionLostError, ServerError, StoreError
from proxy.limits.redis.links import Links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from proxy.limits.redis.address import Node
    from proxy.limits.redis.channel import Answer, Channel, Command, Sent
    from proxy.limits.redis.link import Link

# Of a node with few slots a tag is long looked for; in a turn of the loop so many are tried.
_MOST_TRIED = 256
# How often in a row a node may name another one.
_REDIRECTS = 3
# Between two readings of the Cluster's slots: while something is wrong with it, and at least.
_PAUSE_S, _LEAST_PAUSE_S = 0.5, 0.05
# A user's keys that are being moved to another node are away for a moment.
_MOVING_S = 0.01
_NOWHERE = "the cluster serves not all slots"


class ClusterLinks(Links):
    """A link to each primary; which of them has which slot is read anew as soon as a node or an answer says so.

    The dialler's address names some nodes, of which one must answer at the start.
    """

    def __init__(self, *args: Any, on_change: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, on_change=self._change, **options)
        self._tell = on_change
        self._loop = asyncio.get_running_loop()
        self._links: dict[Node, Link] = {}
        # The first slot of each range and who has it, ascending; and what single answers said since.
        self._firsts: list[int] = []
        self._owners: list[Node | None] = []
        self._moved: dict[int, Node] = {}
        # It is never opened: the link of the slots that nobody has.
        self._default.problem = "the cluster cannot be reached"
        self._is_wanted = asyncio.Event()
        # Whether each node with a channel is to be asked whether it serves.
        self._is_doubtful = False
        self._of_renewals = {word for script in self._scripts.renewals for word in (script.digest, script.source)}
        # Done at the first reading, once it was begun.
        self._opened: asyncio.Future[None] | None = None
        # Done at the next reading.
        self._read: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        # Nodes that have no slots any more, until their links are closed.
        self._dropped: set[Link] = set()

    @property
    def problem(self) -> str | None:
        """What is wrong with any node, or None."""
        if not self._owners or None in self._owners:
            return self._default.problem
        for (host, port), link in self._links.items():
            if link.problem is not None:
                return f"{host}:{port}: {link.problem}"
        return None

    @property
    def is_serving(self) -> bool:
        """Whether any node has no problem."""
        return any(link.problem is None for link in self._links.values())

    def __iter__(self) -> Iterator[Link]:
        return iter(tuple(self._links.values()))

    def at(self, slot: int) -> Link:
        """The link to the node that has the slot."""
        node = self._moved.get(slot) or self._owner(slot)
        return self._default if node is None else self._links.get(node, self._default)

    async def tag(self, link: Link) -> bytes:
        """The first of a sequence whose slot the node has."""
        if not any(self._links.get(node) is link for node in self._owners if node is not None):
            raise ConnectionLostError("the node has no slots")
        for number in count():
            tag = b"{node%d}" % number
            node = self._owner(key_slot(tag))
            if node is not None and self._links.get(node) is link:
                return tag
            if not number % _MOST_TRIED:
                await asyncio.sleep(0)
        raise AssertionError

    async def open(self) -> None:
        """Read the slots, and connect to each primary; once, however often it is called. Cancelling is safe."""
        if self._opened is None:
            self._opened = self._loop.create_future()
            self._start(self._follow(self._opened))
        await asyncio.wait((self._opened,))

    async def close(self) -> None:
        """Leave all nodes."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for link in self._dropped:
            await link.close()
        await super().close()
        self._links.clear()
        self._opened = None

    async def ask_alone(self, slot: int, command: Command) -> Answer:
        """Run a large command on a connection of its own, to whichever node has the slot."""
        node, is_asking = self._moved.get(slot) or self._owner(slot), False
        for _ in range(_REDIRECTS):
            if node is None:
                break
            async with self._dialler.connected(node) as connection:
                try:
                    return await run(connection, command, is_asking=is_asking)
                except ServerError as error:
                    if error.redirect is None:
                        raise
                    is_asking = error.code == "ASK"
                    node = (error.redirect.host or node[0], error.redirect.port)
                    self._is_wanted.set()
        raise ConnectionLostError(_NOWHERE)

    def _owner(self, slot: int) -> Node | None:
        index = bisect_right(self._firsts, slot) - 1
        return self._owners[index] if index >= 0 else None

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name="limits.cluster")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, opened: asyncio.Future[None]) -> None:
        """Read the slots, and again when an answer or a lost node wants it, and for as long as anything is wrong."""
        try:
            await self._read_slots(is_patient=True)
        finally:
            opened.set_result(None)
        while True:
            if self.problem is None:
                await self._is_wanted.wait()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_S):
                        await self._is_wanted.wait()
            await asyncio.sleep(_LEAST_PAUSE_S)
            await self._read_slots()

    async def _read_slots(self, *, is_patient: bool = False) -> None:
        self._is_wanted.clear()
        try:
            owners = await self._ask_for_slots()
        except StoreError as error:
            self._on_failure()
            if not self._owners:
                self._default.problem = str(error)
        else:
            if any(node is not None for _, node in owners) or not self._owners:
                await self._adopt(owners, is_patient=is_patient)
        if self._is_doubtful:
            self._is_doubtful = False
            for link in self:
                await self._check(link)
        if not self._read.done():
            self._read.set_result(None)
        self._read = self._loop.create_future()
        self._tell()

    async def _ask_for_slots(self) -> list[tuple[int, Node | None]]:
        """Ask those that answer first, then whoever is known; not always the same, whose view may be an old one.

        Raises:
            StoreError: nobody answers; the text is of the last one.
        """
        failure: StoreError = ConnectionLostError("the cluster cannot be reached")
        views: list[list[tuple[int, Node | None]]] = []
        async for view in self._views():
            if isinstance(view, StoreError):
                failure = view
            elif all(node is not None for _, node in view):
                return view
            else:
                views.append(view)
        if not views:
            raise failure
        # Of those that miss slots the one that knows most: a node may have come back without its memory.
        return max(views, key=_served)

    async def _views(self) -> AsyncIterator[list[tuple[int, Node | None]] | StoreError]:
        asked = set()
        for node, link in random.sample(tuple(self._links.items()), len(self._links)):
            if link.channel is not None:
                asked.add(node)
                try:
                    yield _ranges(await link.channel.ask("CLUSTER", "SLOTS"), node[0])
                except StoreError as error:
                    yield error
        others = {*self._links, *self._dialler.address.nodes} - asked
        for node in random.sample(tuple(others), len(others)):
            try:
                async with self._dialler.connected(node) as connection:
                    answer = await run(connection, ("CLUSTER", "SLOTS"), timeout_s=self._dialler.timeout_s)
                yield _ranges(answer, node[0])
            except StoreError as error:
                yield error

    async def _check(self, link: Link) -> None:
        channel = link.channel
        if channel is not None:
            try:
                await self._probe(link, channel)
            except StoreError as error:
                channel.abort(str(error))

    async def _adopt(self, owners: list[tuple[int, Node | None]], *, is_patient: bool) -> None:
        self._firsts = [first for first, _ in owners]
        self._owners = [node for _, node in owners]
        self._moved.clear()
        self._default.problem = _NOWHERE
        if None not in self._owners:
            self._default.local = None
        nodes = {node for node in self._owners if node is not None}
        for node in [node for node in self._links if node not in nodes]:
            self._dropped.add(self._links.pop(node))
        for link in tuple(self._dropped):
            await link.close()
            self._dropped.discard(link)
        new = {node: self._link_to(node) for node in nodes if node not in self._links}
        self._links |= new
        if is_patient and new:
            await asyncio.gather(*[link.open() for link in new.values()])
        else:
            for link in new.values():
                link.begin()

    def _change(self) -> None:
        self._is_wanted.set()
        self._tell()

    def _resend(self, channel: Channel, sent: Sent, error: ServerError) -> bool:
        """See to it that a command is answered by the node that it should have been sent to."""
        if super()._resend(channel, sent, error):
            return True
        if not self._of_renewals.isdisjoint(sent.command[1:2]):
            # Behind a release that was sent meanwhile it would undo it; see `leases`.
            return False
        if error.code == "CLUSTERDOWN" and any(link.channel is channel for link in self):
            # Perhaps all nodes say so. Those that nobody asks would be taken for well.
            self._is_doubtful = True
        if error.redirect is None and error.code != "TRYAGAIN":
            self._is_wanted.set()
            return False
        if error.redirect is None:
            self._loop.call_later(_MOVING_S, _send_on, channel, sent)
            return True
        slot, host, port = error.redirect
        # Without a host it is the one that answers, at another port.
        own = next((node[0] for node, link in self._links.items() if link.channel is channel), "")
        node = (host or own, port)
        target = self._links.get(node)
        is_asking, is_contradicted = error.code == "ASK", False
        if not is_asking:
            is_contradicted = self._moved.get(slot, node) != node
            self._moved[slot] = node
        if not is_asking or target is None:
            self._is_wanted.set()
        if target is None or target.channel is None:
            self._start(self._send_later(node, sent, is_asking=is_asking))
        elif is_contradicted:
            # Nodes that name each other have yet to agree.
            self._loop.call_later(_MOVING_S, _send_on, target.channel, sent)
        else:
            _send_on(target.channel, sent, is_asking=is_asking)
        return True

    async def _send_later(self, node: Node, sent: Sent, *, is_asking: bool) -> None:
        """Send a command again once there is a channel to a node, which nobody may have heard of before."""
        left_s = max(0.0, sent.asked_s + self._dialler.timeout_s - self._loop.time())
        channel = None
        try:
            async with asyncio.timeout(left_s):
                while node not in self._links:
                    await asyncio.shield(self._read)
                channel = await self._links[node].connected(left_s)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            sent.on_answer(ConnectionLostError("the store is closed"))
            raise
        if channel is None:
            sent.on_answer(ConnectionLostError("the node that has the user's keys cannot be reached"))
        else:
            _send_on(channel, sent, is_asking=is_asking)


def _send_on(channel: Channel, sent: Sent, *, is_asking: bool = False) -> None:
    if is_asking:
        channel.send(("ASKING",), ignore)
    channel.send(sent.command, sent.on_answer, asked_s=sent.asked_s)


def _served(ranges: list[tuple[int, Node | None]]) -> int:
    """How many slots somebody has."""
    ends = [first for first, _ in ranges[1:]] + [REDIS_CLUSTER_HASH_SLOTS]
    return sum(end - first for (first, node), end in zip(ranges, ends, strict=True) if node is not None)


def _ranges(answer: Any, asked: str) -> list[tuple[int, Node | None]]:
    """Read `CLUSTER SLOTS`: the first slot of each range with its primary, None for what nobody has.

    A node without a host is the one that was asked.

    Raises:
        StoreError: it has not the form.
    """
    ranges: list[tuple[int, Node | None]] = []
    following = 0
    try:
        for first, last, (host, port, *_), *_ in sorted(answer, key=lambda entry: entry[0]):
            if first > following:
                ranges.append((following, None))
            ranges.append((first, (host.decode() if host else asked, int(port))))
            following = last + 1
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise StoreError("the server's answer is not understood") from error
    if following < REDIS_CLUSTER_HASH_SLOTS:
        ranges.append((following, None))
    return ranges
