"""Promises: a link exists only when both managers have accepted each other. There is at most one link to a peer, and
only its messages are delivered, in order. A broken, silent, flooding or foreign peer costs its own link and
nothing else. All tests run over real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import random
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import warren_raft
from tests.busy_machine import in_time
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.identity import Identity
from warren_raft.errors import InUse, InvariantViolation
from warren_raft.raft.links import connection as connection_module
from warren_raft.raft.links import transport as transport_module
from warren_raft.raft.links.transport import (
    NOTHING_LISTENS,
    LinkEnd,
    Timing,
    Transport,
    parse_address,
)
from warren_raft.raft.links.wire import (
    HANDSHAKE_MESSAGE_BYTES,
    FrameReader,
    Message,
    encode,
)
from warren_raft.raft.refusal import Refusal

FAST = Timing(
    ping_seconds=0.04,
    link_timeout_seconds=0.4,
    handshake_seconds=0.4,
    retry_first_seconds=0.005,
    retry_last_seconds=0.04,
    away_seconds=0.15,
)
PATIENCE_SECONDS = 60.0  # the longest wait for a condition; only a test that fails reaches it
STILL = replace(
    FAST,
    ping_seconds=PATIENCE_SECONDS,
    link_timeout_seconds=4 * PATIENCE_SECONDS,
    handshake_seconds=4 * PATIENCE_SECONDS,
)
"""No ping is sent, and no silence is taken for an end: for a peer that waits in the middle of a frame, and for a
stranger on a busy machine."""
HOST = "127.0.0.1"


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.001)


class Node:
    """A transport that records its callbacks, and checks in each of them the conditions that must always hold."""

    def __init__(
        self, node_id: str, timing: Timing = FAST, port: int = 0, credentials: Credentials | None = None
    ) -> None:
        self.node_id = node_id
        self.events: list[tuple[Any, ...]] = []
        self.current: dict[str, int] = {}
        self.identities: dict[str, Identity | None] = {}
        self.refused_by: dict[str, Identity | None] = {}
        self.judge: Callable[[Message], Refusal | None] = lambda hello: None
        self.on_message: Callable[[str, int, Message], None] = lambda peer_id, link, message: None
        self.on_down: Callable[[], None] = lambda: None
        self.transport = Transport(
            listen=(HOST, port),
            node_id=node_id,
            hello=lambda: {"term": 7},
            judge=lambda hello, _identity: self.judge(hello),
            on_link_up=self._up,
            on_link_down=self._down,
            on_message=self._message,
            on_arriving=lambda peer_id, link, term: self.events.append(("arriving", peer_id, link, term)),
            on_refused=self._refused,
            on_not_reached=self._not_reached,
            random=random.Random(1),
            timing=timing,
            credentials=credentials,
        )

    def _up(self, peer_id: str, link: int, hello: Message, identity: Identity | None) -> None:
        assert peer_id not in self.current, "a link was still up"
        assert link > max(self.current.values(), default=0), "link numbers increase"
        assert hello["node_id"] == peer_id
        self.current[peer_id] = link
        self.identities[peer_id] = identity
        assert dict(self.transport.links) == self.current
        self.events.append(("up", peer_id, link))

    def _refused(self, who: str, refusal: Refusal, identity: Identity | None) -> None:
        self.refused_by[who] = identity
        self.events.append(("refused", who, refusal.code, refusal.text))

    def _not_reached(self, who: str, why: str, refusal: Refusal | None) -> None:
        self.events.append(("dial refused", who, why))
        if refusal is not None:
            self.events.append(("certificate refused", who, refusal.code, refusal.text))

    def _down(self, peer_id: str, link: int, end: LinkEnd) -> None:
        assert self.current.pop(peer_id) == link, "down is reported once, for the link that was up"
        self.events.append(("down", peer_id, end))
        self.on_down()

    def _message(self, peer_id: str, link: int, message: Message) -> None:
        assert self.current.get(peer_id) == link, "a message of a link that is not the current one"
        self.events.append(("message", peer_id, message))
        self.on_message(peer_id, link, message)

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.transport.listening)

    def told(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]

    def messages(self) -> list[Message]:
        return [message for _, message in self.told("message")]

    def send(self, peer_id: str, message: Message) -> None:
        self.transport.send(self.current[peer_id], message)


class Stranger:
    """The other end of a connection. The test chooses each byte that it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames = FrameReader()

    def say(self, *messages: Message) -> None:
        self.writer.write(b"".join(encode(message) for message in messages))

    async def hear(self) -> Message:
        """The next message that is not a ping; `EOFError` if the connection ends first."""
        while True:
            message = self.frames.read()
            if message is None:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self.frames.feed(data)
            elif message["type"] != "ping":
                return message

    async def hear_the_end(self) -> list[str]:
        """The types of all messages up to the end of the connection."""
        heard = []
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                heard.append((await self.hear())["type"])
        return heard

    async def shake_hands(self, node_id: str) -> None:
        """Do the handshake as the dialler."""
        self.say(hello(node_id))
        assert [(await self.hear())["type"], (await self.hear())["type"]] == ["hello", "welcome"]
        self.say({"type": "welcome"})


def hello(node_id: str, **fields: Any) -> Message:
    return {"type": "hello", "magic": "warren_raft", "protocol": [2, 2], "node_id": node_id, **fields}


class Stage:
    """Makes nodes and strangers, and closes them at the end."""

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()

    async def node(
        self,
        node_id: str,
        timing: Timing = FAST,
        port: int | None = None,
        credentials: Credentials | None = None,
    ) -> Node:
        node = await self.started(node_id, timing, port, credentials)
        self.stack.push_async_callback(node.transport.close)
        return node

    async def started(
        self, node_id: str, timing: Timing, port: int | None, credentials: Credentials | None = None
    ) -> Node:
        """Listen again. On a machine with other tests, a port that was free may be in use for a moment."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            node = Node(node_id, timing, port or free_port(), credentials)
            try:
                await node.transport.start()
            except InUse:
                assert time.monotonic() < deadline, f"port {port} stays in use"
                await asyncio.sleep(0.01)
            else:
                return node

    async def dial(self, node: Node) -> Stranger:
        stranger = Stranger(*await asyncio.open_connection(*node.transport.listening))
        self.stack.callback(stranger.writer.close)
        return stranger

    async def listener(self) -> tuple[str, asyncio.Queue[Stranger]]:
        """An address at which each connection becomes a stranger in the queue."""
        arrived: asyncio.Queue[Stranger] = asyncio.Queue()

        async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.stack.callback(writer.close)
            arrived.put_nowait(Stranger(reader, writer))

        server = await asyncio.start_server(arrive, HOST, 0)
        self.stack.callback(server.close)
        return "{}:{}".format(*server.sockets[0].getsockname()), arrived

    async def thin(self, node: Node, bytes_per_second: float) -> str:
        """An address behind which a network leads to a node. It carries `bytes_per_second` each way, and its buffers
        have no bound."""

        async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there = await asyncio.open_connection(*node.transport.listening)
            halves = [
                asyncio.ensure_future(carry(reader, there, bytes_per_second)),
                asyncio.ensure_future(carry(there_reader, writer, bytes_per_second)),
            ]

            async def end() -> None:
                for half in halves:
                    half.cancel()
                await asyncio.gather(*halves, return_exceptions=True)
                for side in (writer, there):
                    side.transport.abort()

            self.stack.push_async_callback(end)

        server = await asyncio.start_server(arrive, HOST, 0)
        self.stack.callback(server.close)
        return "{}:{}".format(*server.sockets[0].getsockname())

    async def thin_pair(self, bytes_per_second: float, timing: Timing) -> tuple[Node, Node]:
        """m1 and m2, with a link through a thin network."""
        a, b = await self.node("m1", timing), await self.node("m2", timing)
        a.transport.set_peers({"m2": [await self.thin(b, bytes_per_second)]})
        await linked(a, b)
        return a, b

    async def pair(self, timing: Timing = STILL) -> tuple[Node, Node]:
        """m1, which dials, and m2, with a link between them. A busy machine does not end the link, unless `timing` is
        given."""
        a, b = await self.node("m1", timing), await self.node("m2", timing)
        a.transport.set_peers({"m2": (b.address,)})
        await linked(a, b)
        return a, b


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_second: float) -> None:
    """Carry bytes in one direction: take all in at once, and give them out at the speed. A network does not wait for a
    processor: if this task was late, it gives out more at once. Bytes that came before a reset arrive, too."""
    now = asyncio.get_running_loop().time
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def hold(data: bytes) -> None:
        for at in range(0, len(data), 2048):
            held.put_nowait((now(), data[at : at + 2048]))

    async def give_out() -> None:
        free_at = 0.0
        while (item := await held.get())[1]:
            arrived_at, chunk = item
            free_at = max(arrived_at, free_at) + len(chunk) / bytes_per_second
            if free_at > now():
                await asyncio.sleep(free_at - now())
            writer.write(chunk)
        writer.close()

    async with asyncio.TaskGroup() as halves:
        halves.create_task(give_out())
        try:
            while chunk := await reader.read(65_536):
                hold(chunk)
        except ConnectionResetError:
            hold(bytes(reader._buffer))  # type: ignore[attr-defined]  # after a reset, `read` does not give them out
        held.put_nowait((now(), b""))


async def linked(a: Node, b: Node) -> None:
    await until(lambda: a.current.get(b.node_id) and b.current.get(a.node_id), "a link")


def scenario(scene: Callable[[Stage], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in a loop of its own. Any error that reaches the loop's exception handler fails the test."""

    async def play() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        stage = Stage()
        async with asyncio.timeout(4 * PATIENCE_SECONDS), stage.stack:
            await scene(stage)
        assert complaints == []

    @functools.wraps(scene)
    def test() -> None:
        asyncio.run(play())

    del test.__wrapped__  # or pytest would take the stage for a fixture
    return test


def free_port() -> int:
    """A port below those that the kernel gives to programs that dial. So a manager that starts again finds it free."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


# A link exists when both sides have accepted.


@scenario
async def test_two_managers_get_a_link_and_messages_pass_both_ways_in_order(stage: Stage) -> None:
    a, b = await stage.pair()
    for n in range(500):
        a.send("m2", {"type": "count", "n": n})
        b.send("m1", {"type": "count", "n": -n})
    await until(lambda: len(a.messages()) == len(b.messages()) == 500)
    assert [m["n"] for m in b.messages()] == list(range(500))
    assert [m["n"] for m in a.messages()] == [-n for n in range(500)]
    assert dict(a.transport.links) == a.current


@scenario
async def test_the_engine_hears_the_whole_hello_of_its_peer(stage: Stage) -> None:
    heard: list[Message] = []
    a, b = await stage.node("m1"), await stage.node("m2")
    b.judge = heard.append
    a.transport.set_peers({"m2": (b.address,)})
    await linked(a, b)
    assert heard[0] == hello("m1", term=7)


@scenario
async def test_a_refused_dialler_is_told_why_and_neither_side_has_a_link(stage: Stage) -> None:
    a, b = await stage.node("m1"), await stage.node("m2")
    b.judge = lambda hello: Refusal("removed", f"{hello['node_id']} is not a member")
    a.transport.set_peers({"m2": (b.address,)})
    await until(lambda: len(a.told("refused")) >= 3, "three attempts")
    assert set(a.told("refused")) == {("m2", "removed", "m1 is not a member")}
    assert not a.told("up")
    assert not b.told("up")
    b.judge = lambda hello: None
    await linked(a, b)


@scenario
async def test_a_dialler_that_refuses_tells_the_other_and_neither_side_has_a_link(stage: Stage) -> None:
    """The side that accepts first must not have a link before the other side has accepted too."""
    a, b = await stage.node("m1"), await stage.node("m2")
    a.judge = lambda hello: Refusal("stranger", "not my cluster")
    a.transport.set_peers({"m2": (b.address,)})
    await until(lambda: b.told("refused"))
    assert b.told("refused")[0] == ("m1", "stranger", "not my cluster")
    assert not a.told("up")
    assert not b.told("up")


@scenario
async def test_no_side_has_a_link_before_the_other_welcomed_it(stage: Stage) -> None:
    a = await stage.node("m1")
    stranger = await stage.dial(a)
    stranger.say(hello("m2"))
    await stranger.hear()
    assert (await stranger.hear())["type"] == "welcome"
    assert not a.current
    stranger.say({"type": "welcome"})
    await until(lambda: a.current)


@scenario
async def test_another_manager_at_a_peers_address_is_refused_with_both_ids(stage: Stage) -> None:
    a, b = await stage.node("m1"), await stage.node("m3")
    a.transport.set_peers({"m2": (b.address,)})
    await until(lambda: b.told("refused"))
    text = f"the manager at {b.address} is m3, not m2"
    assert b.told("refused")[0] == ("m1", "wrong_node", text)
    assert not a.told("up")
    assert not b.told("up")


@scenario
async def test_our_own_id_is_refused_whether_a_twin_dials_or_we_dial_ourselves(stage: Stage) -> None:
    a, twin = await stage.node("m1"), await stage.node("m1")
    a.transport.set_peers({"m2": (twin.address,), "m3": (a.address,)})
    await until(lambda: len({event[0] for event in a.told("refused")}) == 2)
    assert {event[1] for event in a.told("refused")} == {"same_id"}
    assert "m1 is the id of this manager too" in a.told("refused")[0][2]
    assert not a.told("up")


@scenario
async def test_our_own_id_among_the_peers_is_not_dialled(stage: Stage) -> None:
    a = await stage.node("m1")
    b = await stage.node("m2")
    a.transport.set_peers({"m1": (a.address,), "m2": (b.address,)})
    await linked(a, b)
    assert [event[0] for event in a.events] == ["up"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"type": "hello"}, "protocol"),
        (hello("m2", magic="etcd"), "protocol"),
        (hello("m2\nm3 is evil"), "protocol"),
        (hello(""), "protocol"),
        ({**hello("m2"), "node_id": 5}, "protocol"),
        (hello("m2", protocol=[1, 1]), "protocol"),
        (hello("m2", protocol=[3, 4]), "protocol"),
        (hello("m2", protocol=[0, 0]), "protocol"),
        (hello("m2", protocol=None), "protocol"),
        (hello("m2", protocol=["1", "1"]), "protocol"),
        (hello("m2", protocol=[1, 2, 3]), "protocol"),
        (hello("m1"), "same_id"),
    ],
)
def test_a_hello_that_is_not_a_managers_is_refused(said: Message, code: str) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1")
        stranger = await stage.dial(a)
        stranger.say(said)
        answer = await stranger.hear()
        assert (answer["type"], answer["code"]) == ("refused", code)
        await stranger.hear_the_end()
        assert not a.events

    scene()


@scenario
async def test_a_newer_release_with_a_common_version_is_welcome(stage: Stage) -> None:
    """A rolling upgrade: the newer release still speaks version 2."""
    a = await stage.node("m1")
    stranger = await stage.dial(a)
    stranger.say(hello("m2", protocol=[1, 9]))
    assert (await stranger.hear())["type"] == "hello"


@scenario
async def test_what_a_refusing_peer_says_cannot_forge_lines_of_our_log(stage: Stage) -> None:
    a = await stage.node("m1")
    address, arrived = await stage.listener()
    a.transport.set_peers({"m2": (address,)})
    stranger = await arrived.get()
    stranger.say({"type": "refused", "code": 5, "text": "no\n2024-01-01 ERROR" + "x" * 9000})
    await until(lambda: a.told("refused"))
    who, code, text = a.told("refused")[0]
    assert (who, code) == ("m2", "5")
    assert text.startswith("no?2024")
    assert len(text) == 500


def test_no_peer_can_write_more_than_a_line_into_our_log(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal quotes the hello, and the reason for a bad frame quotes its bytes. A stranger chooses both."""

    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1")
        a.judge = lambda hello: Refusal("stranger", f"no member is called {hello['cluster']}")
        quoted, bad = await stage.dial(a), await stage.dial(a)
        quoted.say(hello("m2", cluster="x\n" * 9000))
        assert len((await quoted.hear())["text"]) == 500
        twice = b"\xa2" + 2 * (b"\x79\x75\x30" + b"y" * 30_000 + b"\x00")  # a map with the same long key twice
        bad.writer.write(struct.pack(">II", len(twice), zlib.crc32(twice)) + twice)
        await bad.hear_the_end()
        assert len(caplog.messages) == 2
        assert all(len(message) < 600 and message.isprintable() for message in caplog.messages)

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()


# One link to a peer, and the newest counts.


@scenario
async def test_a_newer_link_supersedes_and_nothing_of_the_older_is_delivered_after(stage: Stage) -> None:
    """PySyncObj went on reading the old connection. A late heartbeat on it truncated entries that were applied, and the
    states differed for ever."""
    a = await stage.node("m1", STILL)
    for _ in range(50):
        old, new = await stage.dial(a), await stage.dial(a)
        a.events.clear()
        await old.shake_hands("m2")
        await until(lambda: ("up", "m2") in [event[:2] for event in a.events])
        old.say({"type": "word", "from": "old"})
        new.say(hello("m2"))
        await new.hear()
        await new.hear()
        old.say({"type": "word", "from": "old, late"})  # both arrive in the same turn of a's loop
        new.say({"type": "welcome"}, {"type": "word", "from": "new"})
        old.say({"type": "word", "from": "old, too late"})
        await until(lambda: a.messages() and a.messages()[-1]["from"] == "new")
        await old.hear_the_end()
        assert a.messages()[-1]["from"] == "new"
        kinds = [event[0] for event in a.events if event[0] != "message"]
        assert kinds == ["up", "down", "up"] or kinds == ["down", "up", "down", "up"]
        assert ("m2", LinkEnd.SUPERSEDED) in a.told("down")


@scenario
async def test_frames_after_the_one_that_closed_the_link_are_not_delivered(stage: Stage) -> None:
    a, b = await stage.pair()

    def enough(peer_id: str, link: int, message: Message) -> None:
        b.transport.close_link(link, "enough")
        assert not b.told("down"), "the engine is not called back from within its own close_link"

    b.on_message = enough
    for n in range(5):
        a.send("m2", {"type": "count", "n": n})
    a.transport.set_peers({})  # so that a does not dial again
    await until(lambda: b.told("down"))
    assert [m["n"] for m in b.messages()] == [0]
    assert b.told("down") == [("m1", LinkEnd.CLOSED)]


@scenario
async def test_managers_that_all_dial_each_other_settle_on_one_link_each(stage: Stage) -> None:
    """Both managers dial at the same moment, many times. The two ends must agree which connection stays. Otherwise each
    closes the one that the other keeps, for ever."""
    for _ in range(15):
        nodes = [await stage.node(node_id) for node_id in ("m1", "m2", "m3")]
        addresses = {node.node_id: (node.address,) for node in nodes}
        for node in nodes:
            node.transport.set_peers(addresses)
        await until(lambda: all(len(node.current) == 2 for node in nodes), "all links")  # noqa: B023
        await both_ends_agree(nodes)
        for node in nodes:
            assert len(node.told("up")) <= 2 * 2, f"it flapped: {node.events}"
            await node.transport.close()


async def both_ends_agree(nodes: list[Node]) -> None:
    """Each end of each pair receives, on the link that it has, the number of the other end's link."""
    by_id = {node.node_id: node for node in nodes}
    heard: set[tuple[str, int, str, int]] = set()

    def listen(me: str) -> Callable[[str, int, Message], None]:
        return lambda peer_id, link, message: heard.add((me, link, peer_id, message["link"]))

    for node in nodes:
        node.on_message = listen(node.node_id)

    def agreed() -> bool:
        for node in nodes:
            for link in node.current.values():
                node.transport.send(link, {"type": "probe", "link": link})
        return all(
            (me, link, peer_id, by_id[peer_id].current.get(me)) in heard
            for me, node in by_id.items()
            for peer_id, link in node.current.items()
        )

    await until(agreed, "both ends to mean the same connection")


@pytest.mark.parametrize("seed", range(4))
def test_after_any_trouble_every_pair_has_one_link_that_both_mean(seed: int) -> None:
    """Links are closed at random, peers renamed and removed, managers restarted, also during handshakes. `Node` checks
    each step."""
    chance = random.Random(seed)

    @scenario
    async def scene(stage: Stage) -> None:
        nodes = {node_id: await stage.node(node_id) for node_id in ("m1", "m2", "m3")}
        addresses = {node_id: (node.address,) for node_id, node in nodes.items()}
        for _ in range(60):
            node_id, node = chance.choice(list(nodes.items()))
            match chance.randrange(6):
                case 0:
                    node.transport.set_peers({})
                case 1:
                    every = [address for (address,) in addresses.values()]
                    swapped = {id_: chance.sample(every, chance.randint(1, 3)) for id_ in addresses}
                    node.transport.set_peers(swapped)
                case 2 | 3:
                    for link in list(node.current.values()):
                        node.transport.close_link(link, "trouble")
                case 4:
                    await node.transport.close()
                    nodes[node_id] = await stage.node(node_id, port=int(addresses[node_id][0].rpartition(":")[2]))
                case 5:
                    node.transport.set_peers(addresses)
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
        for node in nodes.values():
            node.transport.set_peers(addresses)
        await until(lambda: all(len(node.current) == 2 for node in nodes.values()), "all links")
        await both_ends_agree(list(nodes.values()))

    scene()


async def crossed(stage: Stage, ours: str, theirs: str, timing: Timing) -> tuple[Node, Stranger, Stranger]:
    """A link that we dialled is up. Then the handshake of an earlier dial of the peer ends."""
    a = await stage.node(ours, timing)
    address, arrived = await stage.listener()
    stranger = await stage.dial(a)
    stranger.say(hello(theirs))
    assert (await stranger.hear())["type"] == "hello"
    a.transport.set_peers({theirs: (address,)})
    dialled = await arrived.get()
    assert (await dialled.hear())["type"] == "hello"
    dialled.say(hello(theirs), {"type": "welcome"})
    await until(lambda: a.current)
    assert (await stranger.hear())["type"] == "welcome"
    stranger.say({"type": "welcome"})
    return a, dialled, stranger


@scenario
async def test_of_two_crossing_dials_the_one_of_the_smaller_id_stays(stage: Stage) -> None:
    a, dialled, stranger = await crossed(stage, "m1", "m2", STILL)
    assert (await stranger.hear())["type"] == "bye"
    a.send("m2", {"type": "still"})
    assert [(await dialled.hear())["type"] for _ in range(2)] == ["welcome", "still"]
    assert not a.told("down")


@scenario
async def test_of_two_crossing_dials_the_one_of_the_larger_id_goes(stage: Stage) -> None:
    a, dialled, stranger = await crossed(stage, "m2", "m1", STILL)
    assert [(await dialled.hear())["type"] for _ in range(2)] == ["welcome", "bye"]
    await until(lambda: len(a.told("up")) == 2)
    a.send("m1", {"type": "still"})
    assert (await stranger.hear())["type"] == "still"
    assert a.told("down") == [("m1", LinkEnd.SUPERSEDED)]


@scenario
async def test_a_dial_long_after_the_link_means_that_the_peer_lost_it(stage: Stage) -> None:
    """A peer that was cut off and comes back must not be refused because of a dead connection."""
    a, _, stranger = await crossed(stage, "m1", "m2", replace(FAST, crossing_seconds=0))
    await until(lambda: len(a.told("up")) == 2)
    a.send("m2", {"type": "still"})
    assert (await stranger.hear())["type"] == "still"


@scenario
async def test_a_dial_of_ours_is_given_up_when_a_link_came_meanwhile(stage: Stage) -> None:
    a = await stage.node("m1", STILL)
    address, arrived = await stage.listener()
    a.transport.set_peers({"m2": (address,)})
    dialled = await arrived.get()
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    await until(lambda: a.current)
    dialled.say(hello("m2"), {"type": "welcome"})
    assert (await dialled.hear())["type"] == "hello"
    assert (await dialled.hear())["type"] == "bye"
    assert len(a.told("up")) == 1


# Harmful peers and strangers.


async def is_unharmed(a: Node, b: Node) -> None:
    """Check that the link of a and b still works and never went down."""
    a.send("m2", {"type": "well?"})
    await until(lambda: {"type": "well?"} in b.messages())
    assert not a.told("down")
    assert not b.told("down")


HOSTILE: dict[str, bytes] = {
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": random.Random(5).randbytes(5000),
    "a huge length": struct.pack(">II", 2**24 - 1, 0) + b"x" * 100,
    "a frame over the handshake's limit": encode({**hello("m9"), "pad": bytes(HANDSHAKE_MESSAGE_BYTES)}),
    "a flipped bit": encode(hello("m9"))[:-1] + b"\x00",
    "a pickle": struct.pack(">II", 4, 0) + pickle.dumps({"type": "hello"}),
    "a message before the handshake": encode({"type": "append", "term": 10**6}),
    "a welcome before the hello": encode({"type": "welcome"}),
    "a ping before the hello": encode({"type": "ping"}),
    "two hellos": encode(hello("m9")) * 2,
    "a message before the welcome": encode(hello("m9")) + encode({"type": "append"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_bytes_that_are_not_ours_cost_that_connection_only(what: str) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        stranger = await stage.dial(b)
        stranger.writer.write(HOSTILE[what])
        heard = await stranger.hear_the_end()
        assert heard == (["hello", "welcome", "bye"] if HOSTILE[what].startswith(encode(hello("m9"))) else ["bye"])
        assert not b.messages()
        await is_unharmed(a, b)

    scene()


HOSTILE_PEER: dict[str, bytes] = {
    "noise": b"\x00\x00\x00\x05noise!!!!!!!!!",
    "a huge length": struct.pack(">II", 2**24 - 1, 0),
    "a flipped bit": encode({"type": "append"})[:-1] + b"\x00",
    "another hello": encode(hello("m9")),
    "another welcome": encode({"type": "welcome"}),
    "a late refusal": encode({"type": "refused", "code": "x", "text": "x"}),
}


@pytest.mark.parametrize("what", HOSTILE_PEER)
def test_a_bad_frame_on_a_link_drops_that_link_only(what: str) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        stranger = await stage.dial(b)
        await stranger.shake_hands("m9")
        stranger.say({"type": "word"})
        stranger.writer.write(HOSTILE_PEER[what])
        await until(lambda: ("m9", LinkEnd.CLOSED) in b.told("down"))
        assert b.told("down") == [("m9", LinkEnd.CLOSED)]
        b.events = [event for event in b.events if event[0] != "down"]
        await is_unharmed(a, b)

    scene()


@scenario
async def test_a_link_full_of_small_messages_leaves_the_loop_its_turns(stage: Stage) -> None:
    """(Pins a fault: one whole receive buffer was decoded at once, 13,000 messages and 100 ms of the raft thread.)"""
    a, b = await stage.pair()
    stranger = await stage.dial(b)
    await stranger.shake_hands("m9")
    turns, turn = [0], 0

    def next_turn() -> None:
        nonlocal turn
        turn = len(turns)
        turns.append(0)
        if sum(turns) < 5_000:
            asyncio.get_running_loop().call_soon(next_turn)

    def count(peer_id: str, link: int, message: Message) -> None:
        turns[turn] += 1

    b.on_message = count
    next_turn()
    stranger.writer.write(encode({"type": "x"}) * 5_000)
    await until(lambda: sum(turns) == 5_000)
    assert max(turns) <= 256
    b.events = [event for event in b.events if event[0] != "message"]
    await is_unharmed(a, b)


def test_a_link_full_of_small_messages_waits_a_little_after_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: a member that sent small messages without end had most of the raft thread's time, and the callers
    of the manager wrote less than half as much.)"""
    monkeypatch.setattr(connection_module, "PAUSE_SECONDS", 3600.0)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        stranger = await stage.dial(b)
        await stranger.shake_hands("m9")
        stranger.writer.write(encode({"type": "x"}) * 5_000)
        await until(lambda: len(b.messages()) >= 256)
        for number in range(40):  # twice as many turns as all these messages take
            a.send("m2", {"type": "honest", "number": number})
            await until(lambda number=number: b.messages()[-1].get("number") == number)
        assert len(b.messages()) < 1_000

    scene()


def test_a_link_whose_messages_take_long_to_decode_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: messages that consist of empty lists kept the raft thread busy, and the callers of the manager
    wrote a twentieth as much.)"""
    monkeypatch.setattr(connection_module, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(connection_module, "REST_FOR_A_TURN", 1e9)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        stranger = await stage.dial(b)
        await stranger.shake_hands("m9")
        dense = encode({"type": "x", "lists": [[]] * 30_000})
        stranger.writer.write(dense * 4)
        await until(lambda: b.messages())
        for number in range(20):
            a.send("m2", {"type": "honest", "number": number})
            await until(lambda number=number: b.messages()[-1].get("number") == number)
        assert [message["type"] for message in b.messages()].count("x") == 1

    scene()


def test_a_link_waits_also_if_each_turn_has_one_message_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: a turn that read all bytes was not measured. A peer that sent the next such message when it knew
    that the last one was taken had the whole raft thread.)"""
    monkeypatch.setattr(connection_module, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(connection_module, "REST_FOR_A_TURN", 1e9)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        stranger = await stage.dial(b)
        await stranger.shake_hands("m9")
        dense = encode({"type": "x", "lists": [[]] * 30_000})
        stranger.writer.write(dense)
        await until(lambda: b.messages())
        stranger.writer.write(dense)
        for number in range(20):
            a.send("m2", {"type": "honest", "number": number})
            await until(lambda number=number: b.messages()[-1].get("number") == number)
        assert [message["type"] for message in b.messages()].count("x") == 1

    scene()


@scenario
async def test_a_caller_that_said_nothing_yet_has_nothing_to_refuse(stage: Stage) -> None:
    """(Pins a fault: the refusal "removed" as a stranger's first message stopped every manager.)"""
    a, b = await stage.pair()
    stranger = await stage.dial(b)
    stranger.say({"type": "refused", "code": "removed", "text": "x"})
    assert await stranger.hear_the_end() == ["bye"]
    assert not b.told("refused")
    await is_unharmed(a, b)


@scenario
async def test_a_frame_in_pieces_and_many_frames_in_one_chunk_arrive_alike(stage: Stage) -> None:
    a = await stage.node("m1", Timing())  # the stranger sends no pings, and a busy machine carries 3 MB slowly
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    stranger.writer.write(b"".join(encode({"type": "count", "n": n}) for n in range(3000)))
    large = encode({"type": "large", "data": bytes(3_000_000)})
    for at in range(0, len(large), 100_001):
        stranger.writer.write(large[at : at + 100_001])
        await stranger.writer.drain()
    await until(lambda: len(a.messages()) == 3001)
    assert [m["n"] for m in a.messages()[:-1]] == list(range(3000))
    assert len(a.messages()[-1]["data"]) == 3_000_000


@scenario
async def test_a_frame_cut_off_by_the_end_of_the_connection_is_not_delivered(stage: Stage) -> None:
    a = await stage.node("m1")
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    stranger.writer.write(encode({"type": "whole"}) + encode({"type": "cut"})[:-1])
    stranger.writer.close()
    await until(lambda: a.told("down"))
    assert a.messages() == [{"type": "whole"}]


@scenario
async def test_a_flood_of_silent_strangers_does_not_keep_a_peer_out(stage: Stage) -> None:
    slow = replace(FAST, handshake_seconds=1000)
    a, b = await stage.node("m1", slow), await stage.node("m2", slow)
    silent = [await stage.dial(b) for _ in range(transport_module.MAX_UNFINISHED_INCOMING + 20)]
    a.transport.set_peers({"m2": (b.address,)})
    await linked(a, b)
    for stranger in silent[:20]:
        await stranger.hear_the_end()  # the oldest made room
    unfinished = [c for c in b.transport._connections if c.in_handshake]
    assert len(unfinished) <= transport_module.MAX_UNFINISHED_INCOMING


@scenario
async def test_a_peer_that_does_not_read_costs_bounded_memory_and_its_link(stage: Stage) -> None:
    patient = replace(FAST, link_timeout_seconds=PATIENCE_SECONDS)
    a = await stage.node("m1", patient)
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    await until(lambda: a.current)
    link = a.current["m2"]
    bulk = {"type": "bulk", "data": bytes(2**20)}
    most = 0
    for _ in range(200):
        a.transport.send(link, bulk)
        most = max(most, a.transport.buffered_bytes(link))
        a.transport.flush()
    assert 32 * 2**20 < most <= connection_module.MAX_BUFFERED_BYTES
    assert not a.told("down"), "the engine is not called back from within its own send"
    await until(lambda: a.told("down"))
    assert a.told("down") == [("m2", LinkEnd.CLOSED)]
    assert a.transport.buffered_bytes(link) == 0
    a.transport.send(link, bulk)  # does nothing


@scenario
async def test_a_closed_link_whose_last_bytes_nobody_reads_is_not_kept_for_ever(stage: Stage) -> None:
    a = await stage.node("m1", replace(FAST, link_timeout_seconds=PATIENCE_SECONDS))
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    await until(lambda: a.current)
    for _ in range(4):
        a.send("m2", {"type": "bulk", "data": bytes(4 * 2**20)})
    a.transport.close_link(a.current["m2"], "enough")
    assert a.transport._connections
    await until(lambda: not a.transport._connections)


@scenario
async def test_a_callback_that_fails_costs_its_link_and_is_heard_of(stage: Stage) -> None:
    """A broken invariant in the engine has to reach the driver, which stops the manager."""
    a, b = await stage.pair()
    stranger = await stage.dial(b)
    await stranger.shake_hands("m9")
    await until(lambda: "m9" in b.current)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def fail(peer_id: str, link: int, message: Message) -> None:
        if peer_id == "m9":
            raise InvariantViolation("two leaders in one term")

    b.on_message = fail
    stranger.say({"type": "word"})
    await until(lambda: complaints)
    assert isinstance(complaints[0]["exception"], InvariantViolation)
    await until(lambda: b.told("down"))
    assert b.told("down") == [("m9", LinkEnd.CLOSED)]
    b.events = [event for event in b.events if event[0] != "down"]
    await is_unharmed(a, b)


@scenario
async def test_a_fault_in_the_watch_of_one_link_costs_that_link(stage: Stage) -> None:
    """An error of TLS ended the watch of all links: no silence was noticed any more."""
    a, b = await stage.pair(FAST)
    one, other = [await stage.dial(b) for _ in range(2)]
    await one.shake_hands("m8")
    await other.shake_hands("m9")
    await until(lambda: {"m8", "m9"} <= b.current.keys())
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def fail(now: float) -> None:
        raise ssl.SSLWantReadError

    b.transport._current["m8"].check = fail  # type: ignore[method-assign]
    await until(lambda: {("m8", LinkEnd.CLOSED), ("m9", LinkEnd.TIMEOUT)} <= set(b.told("down")))
    assert isinstance(complaints[0]["exception"], ssl.SSLWantReadError)
    b.events = [event for event in b.events if event[0] != "down"]
    await is_unharmed(a, b)


@scenario
async def test_a_task_of_the_links_that_ends_by_any_error_is_fatal(stage: Stage) -> None:
    """The driver takes an OSError for one of the network, and goes on. Nobody would dial any more."""
    a, _ = await stage.pair()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    async def fail() -> None:
        raise ssl.SSLWantReadError

    a.transport.spawn(fail())
    await until(lambda: complaints)
    assert isinstance(complaints[0]["exception"], InvariantViolation)


@scenario
async def test_a_link_that_cannot_say_goodbye_does_not_stop_the_close_of_others(stage: Stage) -> None:
    a, b = await stage.pair()
    c = await stage.node("m3", STILL)
    c.transport.set_peers({"m2": (b.address,)})
    await linked(c, b)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    first = next(iter(b.transport._connections))
    close = first.close

    def fail(end: LinkEnd, why: str, *, abort: bool = False) -> None:
        if not abort:
            raise ssl.SSLWantReadError
        close(end, why, abort=True)

    first.close = fail  # type: ignore[method-assign]
    await b.transport.close()
    assert len(complaints) == 1
    assert not b.transport._connections
    await until(lambda: a.told("down") and c.told("down"))
    assert LinkEnd.TIMEOUT not in {end for _, end in a.told("down") + c.told("down")}


@scenario
async def test_the_links_own_message_types_are_not_the_engines_to_send(stage: Stage) -> None:
    a, _ = await stage.pair()
    for kind in ("ping", "bye", "hello", "welcome", "refused"):
        with pytest.raises(InvariantViolation, match="belongs to the links"):
            a.send("m2", {"type": kind})


# Pings and silence.


@scenario
async def test_a_link_without_traffic_is_kept_by_pings(stage: Stage) -> None:
    a, b = await stage.pair(FAST)
    started = time.monotonic()
    await past(started + 3 * FAST.link_timeout_seconds)
    await is_unharmed(a, b)
    assert not [m for m in a.messages() + b.messages() if m["type"] == "ping"]


@scenario
async def test_a_silent_peer_is_dropped_and_told_if_it_still_reads(stage: Stage) -> None:
    a = await stage.node("m1")
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    assert (await stranger.hear())["type"] == "bye"
    assert a.told("down") == [("m2", LinkEnd.TIMEOUT)]


async def past(moment: float) -> None:
    await until(lambda: time.monotonic() > moment)


@scenario
async def test_half_a_frame_now_and_then_is_a_sign_of_life(stage: Stage) -> None:
    """A large entry over a slow link takes longer than the timeout. The bytes that arrive show that the peer lives."""
    a = await stage.node("m1")
    stranger = await stage.dial(a)
    await stranger.shake_hands("m2")
    frame = encode({"type": "slow"})
    started = time.monotonic()
    for at in range(len(frame)):
        stranger.writer.write(frame[at : at + 1])
        await past(started + at * FAST.link_timeout_seconds / 10)
    await until(lambda: a.messages())
    assert not a.told("down")


@scenario
async def test_a_handshake_that_stops_half_way_is_given_up(stage: Stage) -> None:
    a = await stage.node("m1")
    address, arrived = await stage.listener()
    a.transport.set_peers({"m2": (address,)})
    silent, halfway = await stage.dial(a), await stage.dial(a)
    halfway.say(hello("m3"))
    dialled = await arrived.get()
    for stranger in (silent, halfway, dialled):
        await stranger.hear_the_end()
    await arrived.get()  # it dials again
    assert not a.events


@pytest.mark.slow
@scenario
async def test_silence_while_our_own_loop_was_away_is_nobodys_fault(stage: Stage) -> None:
    """After SIGCONT every peer looks silent. If all links were dropped, each suspension would cause an election."""
    a, b = await stage.pair(FAST)
    stand_still(2 * FAST.link_timeout_seconds)
    started = time.monotonic()
    await past(started + 2 * FAST.link_timeout_seconds)
    await is_unharmed(a, b)


def stand_still(seconds: float) -> None:
    """The fault: the loop's thread, and so both managers, does not run."""
    time.sleep(seconds)


# Thin links.


THIN = Timing(ping_seconds=1.0, link_timeout_seconds=PATIENCE_SECONDS)
LARGE_BYTES = 1_000_000


async def delay_of(a: Node, b: Node, kind: str) -> float:
    """The time that a small message takes from a to b."""
    number, begin = random.getrandbits(40), time.monotonic()
    a.send(b.node_id, {"type": kind, "n": number})
    await until(lambda: any(message.get("n") == number for message in b.messages()[-30:]))
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["append_reply", "append"])
def test_a_small_message_does_not_wait_behind_a_large_one(kind: str) -> None:
    """A link of 500 kB/s, in a network that takes in megabytes. (Pins a fault: a heartbeat behind them was seconds
    late.)"""

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.thin_pair(500_000, THIN)
        begin = time.monotonic()
        a.send("m2", {"type": "snapshot_chunk", "data": bytes(LARGE_BYTES)})
        late = []
        while not [m for m in b.messages() if m["type"] == "snapshot_chunk"]:
            late.append(await delay_of(a, b, kind))
        took = time.monotonic() - begin
        assert took >= LARGE_BYTES / 500_000
        with in_time():
            assert took < 3 * LARGE_BYTES / 500_000
            assert len(late) >= 4
            assert sorted(late)[len(late) // 2] < 0.5

    scene()


@pytest.mark.slow
@scenario
async def test_parts_of_a_leaders_message_are_told_of_while_it_arrives(stage: Stage) -> None:
    """The elections are told of the parts a few times a second, with the term of the message."""
    a, b = await stage.thin_pair(500_000, THIN)
    begin = time.monotonic()
    a.send("m2", {"type": "append_entries", "term": 7, "data": bytes(LARGE_BYTES)})
    a.send("m2", {"type": "snapshot_chunk", "data": bytes(LARGE_BYTES)})
    await until(lambda: len(b.messages()) == 2)
    told = b.told("arriving")
    link = b.current["m1"]
    assert set(told) == {("m1", link, 7), ("m1", link, 0)}
    assert len(told) <= (time.monotonic() - begin) / connection_module.ARRIVING_SECONDS + 1
    with in_time():
        assert len(told) >= 10


@scenario
async def test_the_network_is_not_filled_with_what_a_large_message_has_left(stage: Stage) -> None:
    a, _ = await stage.thin_pair(500_000, THIN)
    a.send("m2", {"type": "append", "data": bytes(LARGE_BYTES)})
    await delay_of(a, _, "append_reply")
    with in_time():  # the link carries the rest in two seconds
        assert a.transport.buffered_bytes(a.current["m2"]) > LARGE_BYTES // 2, (
            "the rest waits where other messages can overtake it"
        )


@scenario
async def test_a_link_that_closes_says_goodbye_at_once_whatever_bulk_waits(stage: Stage) -> None:
    a, b = await stage.thin_pair(500_000, THIN)
    for _ in range(8):
        a.send("m2", {"type": "snapshot_chunk", "data": bytes(LARGE_BYTES)})
    await delay_of(a, b, "append_reply")
    begin = time.monotonic()
    await a.transport.close()
    await until(lambda: b.told("down"))
    assert b.told("down") == [("m1", LinkEnd.GOODBYE)]
    took = time.monotonic() - begin
    with in_time():
        assert took < 2.0


@scenario
async def test_an_answer_about_bytes_that_were_not_asked_about_costs_the_link(stage: Stage) -> None:
    for wrong in (12345, -1, "x", None):
        a = await stage.node("m1")
        stranger = await stage.dial(a)
        await stranger.shake_hands("m2")
        stranger.say({"type": "got", "bytes": wrong})
        await until(lambda: a.told("down"))  # noqa: B023
        assert a.told("down") == [("m2", LinkEnd.CLOSED)]


def test_unfinished_messages_of_all_links_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many peers begins messages and never ends them. The peer that exceeds the limit loses its link, and its
    bytes are forgotten."""
    monkeypatch.setattr(transport_module, "MAX_UNFINISHED_BYTES", 1_000_000)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        for number in range(6):
            stranger = await stage.dial(b)
            await stranger.shake_hands(f"m{3 + number}")
            stranger.writer.write(encode({"type": "append", "data": bytes(400_000)})[:-1])
            await until(lambda n=number: b.transport._unfinished_bytes > 300_000 * min(n + 1, 2))
        await until(lambda: len(b.told("down")) == 4)
        assert {end for _, end in b.told("down")} == {LinkEnd.CLOSED}
        assert b.transport._unfinished_bytes <= 1_000_000
        b.events = [event for event in b.events if event[0] != "down"]
        await is_unharmed(a, b)
        await stage.stack.aclose()
        assert b.transport._unfinished_bytes == 0

    scene()


def test_unfinished_messages_of_guests_leave_members_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: a manager held 32 MiB for one guest, and 128 MiB for all guests together, which the links of the
    members lacked then.)"""
    monkeypatch.setattr(transport_module, "MAX_GUESTS_UNFINISHED_BYTES", 1_000_000)

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.pair()
        b.transport.set_peers({"m1": (a.address,), "m2": (b.address,)})
        unfinished = encode({"type": "append", "data": bytes(1_400_000)})[:-1]
        member, guest = a.transport._by_number[a.current["m2"]], await stage.dial(b)
        assert member._socket is not None
        member._socket.write(unfinished)
        await until(lambda: b.transport._unfinished_bytes > 1_300_000)
        await guest.shake_hands("m9")
        guest.writer.write(unfinished)
        await until(lambda: b.told("down") == [("m9", LinkEnd.CLOSED)])
        member._socket.write(encode({"type": "append", "data": bytes(1_400_000)})[-1:])
        await until(lambda: [message["type"] for message in b.messages()] == ["append"])

    scene()


# How a link ends is evidence.


@scenario
async def test_a_clean_close_is_a_goodbye(stage: Stage) -> None:
    a, b = await stage.pair()
    b.send("m1", {"type": "last word"})
    await b.transport.close()
    await until(lambda: a.told("down"))
    assert a.told("down") == [("m2", LinkEnd.GOODBYE)]
    assert a.messages() == [{"type": "last word"}]
    assert b.told("down") == [("m1", LinkEnd.CLOSED)]


@pytest.mark.parametrize("reset", [False, True])
def test_a_close_without_a_word_is_the_peers_kernel(reset: bool) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1")
        stranger = await stage.dial(a)
        await stranger.shake_hands("m2")
        await until(lambda: a.current)
        if reset:
            connected = stranger.writer.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.writer.transport.abort()
        await until(lambda: a.told("down"))
        assert a.told("down") == [("m2", LinkEnd.PEER_CLOSED)]

    scene()


@scenario
async def test_a_port_without_a_listener_is_reported_at_each_dial(stage: Stage) -> None:
    a = await stage.node("m1")
    a.transport.set_peers({"m2": (f"{HOST}:{free_port()}",), "m3": (f"localhost:{free_port()}",)})
    await until(lambda: {("m2", NOTHING_LISTENS), ("m3", NOTHING_LISTENS)} <= set(a.told("dial refused")))
    before = len(a.told("dial refused"))
    await until(lambda: len(a.told("dial refused")) > before + 4)
    assert len(a.transport._connections) <= 2, "no connection of a failed dial is left"


PEER_PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from random import Random
from warren_raft.raft.links.transport import Timing, Transport

async def main():
    def say(*words):
        print(*words, flush=True)
    transport = Transport(
        listen=("127.0.0.1", 0), node_id="m2", hello=dict, judge=lambda *_: None,
        on_link_up=lambda peer_id, link, hello, identity: say("up"),
        on_link_down=lambda peer_id, link, end: say("down", end),
        on_message=lambda peer_id, link, message: transport.send(link, message), on_arriving=print,
        on_refused=print, on_not_reached=print, random=Random(2),
        timing=Timing(ping_seconds=0.04, link_timeout_seconds=60.0),
    )
    await transport.start()
    say(transport.listening[1])
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def peer_process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """m2 in a process of its own, and its address. It sends every message back."""
    root = str(Path(warren_raft.__file__).parents[1])
    command = (sys.executable, "-c", PEER_PROGRAM, root)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield process, f"{HOST}:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@scenario
async def test_a_killed_peer_is_told_from_a_stopped_one(stage: Stage) -> None:
    """An election may start at once if the leader's process has died. It must wait if the leader is only slow."""
    a = await stage.node("m1")
    async with peer_process() as (process, address):
        a.transport.set_peers({"m2": (address,)})
        await until(lambda: a.current)
        process.send_signal(signal.SIGSTOP)
        await until(lambda: a.told("down"))
        assert set(a.told("down")) == {("m2", LinkEnd.TIMEOUT)}
        assert not a.told("dial refused")
        process.send_signal(signal.SIGCONT)
        await until(lambda: a.current)
        process.kill()
        await until(lambda: not a.current and a.told("dial refused"))
        with in_time():  # on a busy machine the link may have been silent for too long before
            assert a.told("down")[-1] == ("m2", LinkEnd.PEER_CLOSED)


# Dialling.


@scenario
async def test_a_peer_that_comes_later_is_found(stage: Stage) -> None:
    a = await stage.node("m1")
    port = free_port()
    a.transport.set_peers({"m2": (f"{HOST}:{port}",)})
    await until(lambda: len(a.told("dial refused")) > 2)
    b = await stage.node("m2", port=port)
    await linked(a, b)
    await b.transport.close()
    await until(lambda: not a.current)
    c = await stage.node("m2", port=port)
    await linked(a, c)


@scenario
async def test_a_new_address_is_dialled_instead_of_the_old_once_the_link_is_over(stage: Stage) -> None:
    """The link was made with that very manager. So a list with another address does not end the link: the list may be
    wrong, and nothing may listen there."""
    a, b = await stage.pair()
    c = await stage.node("m2", STILL)
    a.transport.set_peers({"m2": (c.address,)})
    await is_unharmed_pair(a, b)
    await b.transport.close()
    await linked(a, c)
    a.transport.set_peers({"m2": (c.address,)})  # the same list again changes nothing
    await is_unharmed_pair(a, c)


@scenario
async def test_a_peer_with_several_addresses_is_found_at_whichever_it_has(stage: Stage) -> None:
    """Nothing listens at the first address, another manager at the second, the peer itself at the third."""
    a, other, b = await stage.node("m1"), await stage.node("m3"), await stage.node("m2")
    a.transport.set_peers({"m2": (f"{HOST}:{free_port()}", other.address, b.address)})
    await linked(a, b)
    assert [peer for peer, *_ in a.told("up")] == ["m2"]
    assert set(a.told("dial refused")) == {("m2", NOTHING_LISTENS), ("m2", "m3 answers there")}
    assert not other.told("up")


@scenario
async def test_a_peer_that_moves_between_its_addresses_is_found_again(stage: Stage) -> None:
    a, b = await stage.node("m1"), await stage.node("m2")
    elsewhere = free_port()
    a.transport.set_peers({"m2": (b.address, f"{HOST}:{elsewhere}")})
    await linked(a, b)
    await b.transport.close()
    c = await stage.node("m2", port=elsewhere)
    await linked(a, c)
    await c.transport.close()
    await linked(a, await stage.node("m2", port=b.transport._listen[1]))


@scenario
async def test_an_address_that_is_added_does_not_disturb_the_link(stage: Stage) -> None:
    a, b = await stage.pair()
    a.transport.set_peers({"m2": (f"{HOST}:{free_port()}", b.address)})
    await is_unharmed_pair(a, b)


@scenario
async def test_a_dial_to_an_address_that_is_no_longer_named_gets_no_link(stage: Stage) -> None:
    a, b = await stage.node("m1"), await stage.node("m2")
    address, arrived = await stage.listener()
    a.transport.set_peers({"m2": (address,)})
    stranger = await arrived.get()
    a.transport.set_peers({"m2": (b.address,)})
    stranger.say(hello("m2"), {"type": "welcome"})
    await linked(a, b)
    assert [peer for peer, *_ in a.told("up")] == ["m2"]
    await stranger.hear_the_end()


async def is_unharmed_pair(a: Node, b: Node) -> None:
    downs = len(a.told("down")), len(b.told("down"))
    a.send(b.node_id, {"type": "well?"})
    await until(lambda: {"type": "well?"} in b.messages())
    assert downs == (len(a.told("down")), len(b.told("down")))


@scenario
async def test_a_removed_peer_is_hung_up_and_not_dialled_again(stage: Stage) -> None:
    a, b = await stage.pair()
    accepted = len(b.told("up"))
    a.transport.set_peers({})
    await until(lambda: a.told("down") and b.told("down"))
    assert a.told("down") == [("m2", LinkEnd.CLOSED)]
    assert not a.transport._tasks - {a.transport._watcher}
    assert len(b.told("up")) == accepted


@scenario
async def test_a_peer_removed_in_the_middle_of_its_handshake_gets_no_link(stage: Stage) -> None:
    a = await stage.node("m1")
    address, arrived = await stage.listener()
    a.transport.set_peers({"m2": (address,)})
    stranger = await arrived.get()
    a.transport.set_peers({})
    assert all(connection.end for connection in a.transport._connections), "from this moment on"
    stranger.say(hello("m2"), {"type": "welcome"})
    await stranger.hear_the_end()
    assert not a.events


@scenario
async def test_a_bad_address_changes_nothing(stage: Stage) -> None:
    a, b = await stage.pair()
    with pytest.raises(ValueError, match="nonsense"):
        a.transport.set_peers({"m2": (b.address,), "m3": ("nonsense",)})
    await is_unharmed(a, b)


def test_the_pauses_between_dials_grow_to_a_bound_and_are_jittered() -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a = await stage.node("m1", Timing())
        a.transport.set_peers({"m2": (f"{HOST}:{free_port()}",)})
        dialer = a.transport._dialers["m2"]
        pauses = [dialer._pause_seconds(failures) for failures in (1, 2, 3, 4, 5, 6, 10**6)]
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        jittered = {a.transport.jitter(1.0) for _ in range(100)}
        assert len(jittered) == 100
        assert 0.5 <= min(jittered) < 0.6
        assert 0.9 < max(jittered) <= 1.0

    scene()


async def links_made(a: Node, count: int) -> None:
    await until(lambda: len(a.told("up")) == count and a.current)


@scenario
async def test_a_peer_that_accepts_and_hangs_up_is_not_dialled_in_a_frenzy(stage: Stage) -> None:
    """A link that comes up and breaks at once counts as a failed dial."""
    steady = replace(FAST, retry_first_seconds=0.2, retry_last_seconds=0.2)
    a, b = await stage.node("m1", steady), await stage.node("m2")
    b.on_message = lambda peer_id, link, message: b.transport.close_link(link, "grumpy")
    started = time.monotonic()
    a.transport.set_peers({"m2": (b.address,)})
    for rounds in (1, 2, 3, 4):
        await links_made(a, rounds)
        a.send("m2", {"type": "hi"})
    assert time.monotonic() - started >= 3 * 0.2 * 0.5


# The listener.


@scenario
async def test_a_port_in_use_is_said_in_one_line(stage: Stage) -> None:
    a = await stage.node("m1")
    twin = Node("m2", port=a.transport.listening[1])
    with pytest.raises(InUse) as caught:
        await twin.transport.start()
    assert str(caught.value) == f"{a.address} port is in use by another process"
    assert caught.value.what == a.address
    await twin.transport.close()


@scenario
async def test_an_address_that_is_not_ours_is_said_in_one_line(stage: Stage) -> None:
    node = Node("m1")
    node.transport._listen = ("192.0.2.1", 7946)  # TEST-NET-1: no machine has this address
    with pytest.raises(
        OSError, match=r"^\[Errno \d+\] cannot listen on 192\.0\.2\.1:7946: 192\.0\.2\.1 is not an address of this"
    ):
        await node.transport.start()


@scenario
async def test_the_port_is_free_again_after_close(stage: Stage) -> None:
    a, b = await stage.pair()
    port = b.transport.listening[1]
    await b.transport.close()
    await b.transport.close()
    c = await stage.node("m2", STILL, port)
    await linked(a, c)


@scenario
async def test_localhost_and_ipv6_are_addresses_too(stage: Stage) -> None:
    a = await stage.node("m1")
    for host in ("localhost", "::1"):
        other = Node("m2")
        other.transport._listen = (host, free_port())
        try:
            await other.transport.start()
        except OSError:
            assert host == "::1"  # a machine without IPv6
            continue
        name = f"[{host}]" if ":" in host else host
        a.transport.set_peers({"m2": (f"{name}:{other.transport.listening[1]}",)})
        await linked(a, other)
        await other.transport.close()
        await until(lambda: not a.current)


@pytest.mark.parametrize("missing_first", [True, False])
def test_a_host_of_which_one_address_is_not_on_this_machine_is_listened_at(
    missing_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`localhost` resolves to ::1 too, also in a container without IPv6."""
    port = free_port()
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port))
    missing = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))
    found = [missing, here] if missing_first else [here, missing]

    @scenario
    async def scene(stage: Stage) -> None:
        a = Node("m1")
        a.transport._listen = ("some-name", port)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
            await a.transport.start()
            twin = Node("m2")
            twin.transport._listen = ("some-name", port)
            with pytest.raises(InUse, match=f"some-name:{port} port is in use"):
                await twin.transport.start()
        stranger = await stage.dial(a)
        await stranger.shake_hands("m9")
        await until(lambda: a.current)
        await a.transport.close()

    scene()


@scenario
async def test_where_one_address_of_a_host_is_in_use_the_others_are_given_back(stage: Stage) -> None:
    """Otherwise a manager that tries again would find its own port in use."""
    with socket.create_server(("127.0.0.2", 0)) as taken, pytest.MonkeyPatch.context() as patch:
        port = taken.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in (HOST, "127.0.0.2")]
        patch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
        node = Node("m1")
        node.transport._listen = ("some-name", port)
        with pytest.raises(InUse, match=f"some-name:{port} port is in use"):
            await node.transport.start()
        await node.transport.close()
        patch.undo()
        socket.create_server((HOST, port)).close()


@scenario
async def test_a_name_that_cannot_be_a_host_fails_its_dial_and_nothing_else(stage: Stage) -> None:
    a, b = await stage.pair()
    a.transport.set_peers({"m2": (b.address,), "m3": ("x" * 64 + ":7946",)})
    await until(lambda: a.transport._log.has_said("m3"), "a line about m3")
    await is_unharmed(a, b)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Inside this block, the process has no descriptor left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    hoard = []
    try:
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in hoard:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@scenario
async def test_running_out_of_descriptors_does_not_close_the_door(stage: Stage) -> None:
    """PySyncObj closed its listener for ever at the first EMFILE."""
    a, b = await stage.pair()
    visitor = socket.socket()
    visitor.setblocking(False)
    with no_descriptors():
        with contextlib.suppress(BlockingIOError):
            visitor.connect(b.transport.listening)
        await until(lambda: b.transport._log.has_said("accept"), "a failed accept")
        await is_unharmed(a, b)
    visitor.setblocking(True)
    with visitor:
        stranger = Stranger(*await asyncio.open_connection(sock=visitor))
        await stranger.shake_hands("m9")
        await until(lambda: "m9" in b.current)
        stranger.writer.close()


def test_addresses_are_read_as_they_are_written() -> None:
    assert parse_address("127.0.0.1:7946") == ("127.0.0.1", 7946)
    assert parse_address("[::1]:7946") == ("::1", 7946)
    assert parse_address("manager-1.example:1") == ("manager-1.example", 1)
    for wrong in ("", "7946", ":7946", "host", "host:", "host:0", "host:65536", "host:-1", "::1:7946", "h:1x"):
        with pytest.raises(ValueError, match=r"is not an address|a port is a number"):
            parse_address(wrong)


# The log.


def test_the_log_tells_changes_and_not_retries(caplog: pytest.LogCaptureFixture) -> None:
    """Two managers that refuse each other, each second, for a weekend, must not fill a disk."""

    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await stage.node("m1", STILL), await stage.node("m2", STILL)
        port = free_port()
        b_address = b.address
        a.judge = lambda hello: Refusal("a", "m1 does not like it")
        b.judge = lambda hello: Refusal("b", "m2 does not like it")
        a.transport.set_peers({"m2": (b.address,), "m3": (f"{HOST}:{port}",)})
        b.transport.set_peers({"m1": (a.address,)})
        await until(lambda: len(a.told("refused")) > 5 and len(b.told("refused")) > 5)
        await until(lambda: len(a.told("dial refused")) > 5)
        expected = {
            f"link not made node=m1 peer=m2 address={HOST}:*: we refuse it: m1 does not like it",
            f"peer not reached node=m1 peer=m3 address={HOST}:*: Connection refused",
            f"link not made node=m2 peer=m1 address={HOST}:*: we refuse it: m2 does not like it",
        }
        assert {re.sub(f"(address={HOST}):[0-9]+", r"\1:*", line) for line in caplog.messages} == expected
        assert len(caplog.messages) == len(expected)
        a.judge = b.judge = lambda hello: None
        b.transport.set_peers({})
        await linked(a, b)
        await b.transport.close()
        goodbye = f"link down node=m1 peer=m2 address={b_address}: the peer said goodbye"
        await until(lambda: goodbye in caplog.messages)
        c = await stage.node("m2", STILL, int(b_address.rpartition(":")[2]))
        await linked(a, c)
        assert caplog.messages.count(f"link up node=m1 peer=m2 address={b_address} dialled_by=m1") == 2

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()


def test_the_logger_is_private_and_leaves_handlers_to_the_application() -> None:
    assert logging.getLogger("warren_raft.transport").handlers == []
