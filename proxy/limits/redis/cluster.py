"""The nodes of a Cluster: a link to each primary, and which of them has a user's keys.

All keys of a user have one hash tag, so an admission is one script on one node. redis-py packs, parses and computes
slots; its `RedisCluster` is not used, because it takes a connection for each command that is on its way:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from proxy.limits.redis.address import run
from proxy.limits.redis.channel import ignore, settle
from proxy.limits.redis.errors import ConnectionLostError, ServerError, StoreError
from proxy.limits.redis.links import Link, Links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.limits.redis.address import Dialler, Node
    from proxy.limits.redis.channel import Answer, Channel, Command, Sent
    from proxy.limits.redis.scripts import Scripts

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

    def __init__(
        self, dialler: Dialler, scripts: Scripts, on_failure: Callable[[], None], on_change: Callable[[], None]
    ) -> None:
        super().__init__(dialler, scripts, on_failure, self._change)
        self._tell = on_change
        self._loop = asyncio.get_running_loop()
        self._links: dict[Node, Link] = {}
        # Who has each slot, by the last reading; and the slots that single answers have said otherwise of since.
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._moved: set[int] = set()
        self._is_whole = False
        # It is never opened: the link of the slots that nobody has.
        self._default.problem = "the cluster cannot be reached"
        self._is_wanted = asyncio.Event()
        # Whether each node with a channel is to be asked whether it serves.
        self._is_doubtful = False
        self._of_renewals = {word for script in scripts.renewals for word in (script.digest, script.source)}
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
        if not self._is_whole:
            return self._default.problem
        for (host, port), link in self._links.items():
            if link.problem is not None:
                return f"{host}:{port}: {link.problem}"
        return None

    def __iter__(self) -> Iterator[Link]:
        return iter(tuple(self._links.values()))

    def at(self, slot: int) -> Link:
        """The link to the node that has the slot."""
        node = self._owners[slot]
        return self._default if node is None else self._links.get(node, self._default)

    async def tag(self, link: Link) -> bytes:
        """The first of a sequence whose slot the node has."""
        if link.node not in self._owners:
            raise ConnectionLostError("the node has no slots")
        for number in count():
            tag = b"{node%d}" % number
            if self._owners[key_slot(tag)] == link.node:
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
        node, is_asking = self._owners[slot], False
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
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.problem is None else _PAUSE_S):
                    await self._is_wanted.wait()
            await asyncio.sleep(_LEAST_PAUSE_S)
            await self._read_slots()

    async def _read_slots(self, *, is_patient: bool = False) -> None:
        self._is_wanted.clear()
        try:
            owners = await self._ask_for_slots()
        except StoreError as error:
            self.on_failure()
            if not self._links:
                self._default.problem = str(error)
        else:
            if _served(owners) or not self._links:
                await self._adopt(owners, is_patient=is_patient)
        if self._is_doubtful:
            self._is_doubtful = False
            for link in self:
                await self._check(link)
        settle(self._read, None)
        self._read = self._loop.create_future()
        self._tell()

    async def _ask_for_slots(self) -> list[Node | None]:
        """Ask those that answer first, then whoever is known; not always the same, whose view may be an old one.

        Raises:
            StoreError: nobody answers; the text is of the last one.
        """
        failure: StoreError = ConnectionLostError("the cluster cannot be reached")
        # Of those that miss slots the one that knows most: a node may have come back without its memory.
        best: list[Node | None] | None = None
        nodes = tuple({*self._links, *self._dialler.address.nodes})
        for node in sorted(random.sample(nodes, len(nodes)), key=lambda node: self._channel(node) is None):
            try:
                owners = _owners(await self._ask_node(node), node[0])
            except StoreError as error:
                failure = error
            else:
                if best is None or _served(owners) > _served(best):
                    best = owners
                if None not in owners:
                    break
        if best is None:
            raise failure
        return best

    async def _ask_node(self, node: Node) -> Answer:
        channel = self._channel(node)
        if channel is not None:
            return await channel.ask("CLUSTER", "SLOTS")
        async with self._dialler.connected(node) as connection:
            return await run(connection, ("CLUSTER", "SLOTS"), timeout_s=self._dialler.timeout_s)

    def _channel(self, node: Node) -> Channel | None:
        return self._links[node].channel if node in self._links else None

    async def _check(self, link: Link) -> None:
        channel = link.channel
        if channel is not None:
            try:
                await self.greeting.probe(link, channel)
            except StoreError as error:
                channel.abort(str(error))

    async def _adopt(self, owners: list[Node | None], *, is_patient: bool) -> None:
        nodes = {node for node in owners if node is not None}
        self._owners = owners
        self._moved.clear()
        self._default.problem = _NOWHERE
        self._is_whole = None not in owners
        if self._is_whole:
            self._default.local = None
        for node in [node for node in self._links if node not in nodes]:
            self._dropped.add(self._links.pop(node))
        for link in tuple(self._dropped):
            await link.close()
            self._dropped.discard(link)
        new = {node: Link(self, node) for node in nodes if node not in self._links}
        self._links |= new
        if is_patient and new:
            await asyncio.gather(*[link.open() for link in new.values()])
        else:
            for link in new.values():
                link.begin()

    def _change(self) -> None:
        self._is_wanted.set()
        self._tell()

    def _resend(self, link: Link, channel: Channel, sent: Sent, error: ServerError) -> bool:
        """See to it that a command is answered by the node that it should have been sent to."""
        if super()._resend(link, channel, sent, error):
            return True
        if not self._of_renewals.isdisjoint(sent.command[1:2]):
            # Behind a release that was sent meanwhile it would undo it; see `leases`.
            return False
        if error.code == "TRYAGAIN":
            self._loop.call_later(_MOVING_S, _send_on, channel, sent)
            return True
        if error.code == "CLUSTERDOWN" and link.channel is channel:
            # Perhaps all nodes say so. Those that nobody asks would be taken for well.
            self._is_doubtful = True
        if error.redirect is None or link.node is None:
            self._is_wanted.set()
            return False
        slot, host, port = error.redirect
        # Without a host it is the one that answers, at another port.
        node = (host or link.node[0], port)
        target = self._links.get(node)
        is_asking, is_contradicted = error.code == "ASK", False
        if not is_asking:
            is_contradicted = slot in self._moved and self._owners[slot] != node
            self._moved.add(slot)
            self._owners[slot] = node
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


def _served(owners: list[Node | None]) -> int:
    """How many slots somebody has."""
    return len(owners) - owners.count(None)


def _owners(answer: Any, asked: str) -> list[Node | None]:
    """Read `CLUSTER SLOTS`: the primary of each slot, None where nobody has it.

    A node without a host is the one that was asked.

    Raises:
        StoreError: it has not the form.
    """
    owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    try:
        for first, last, (host, port, *_), *_ in answer:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise StoreError("the server's answer is not understood")
            node = (host.decode() if host else asked, int(port))
            owners[first : last + 1] = [node] * (last + 1 - first)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise StoreError("the server's answer is not understood") from error
    return owners
