"""The promise: a dial that is given up, at whatever moment, leaves no socket open.

A manager dials for as long as a member is away. One socket a dial would use up its descriptors.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from warren_raft.raft.links.handshakes import Greeted, Handshakes
from warren_raft.raft.links.link_log import LinkLog


def made(asked: list[Any]) -> Handshakes:
    """Handshakes whose thread was not started. What it is asked for goes into the list."""
    handshakes = Handshakes("m1", object(), seconds=1.0, deliver=lambda _greeted: None, log=LinkLog("m1"))  # type: ignore[arg-type]
    handshakes._loop = asyncio.get_running_loop()
    handshakes._call = asked.append  # type: ignore[method-assign]
    return handshakes


def given_up(answers: Callable[[Any, socket.socket], None]) -> socket.socket:
    """A dial whose task is cancelled right after `answers`, before its next turn."""
    dialled, other = socket.socketpair()

    async def play() -> None:
        asked: list[Any] = []
        task = asyncio.ensure_future(made(asked).greet(dialled))
        await asyncio.sleep(0)
        answers(asked[0].args[3], dialled)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with other:
        asyncio.run(play())
    return dialled


def test_a_dial_that_is_cancelled_just_after_its_handshake_closes_the_socket() -> None:
    """(Pins a fault: the answer was lost with the task, and the socket stayed open.)"""
    dialled = given_up(lambda dial, connected: dial.done.set_result(Greeted(connected, None, None, 0.0)))
    assert dialled.fileno() == -1


def test_before_the_answer_the_socket_belongs_to_the_thread() -> None:
    """It may be in the middle of the handshake. It closes the socket when it finds the dial given up."""
    dialled = given_up(lambda _dial, _connected: None)
    assert dialled.fileno() != -1
    dialled.close()


def test_a_peer_that_has_closed_already_leaves_no_socket() -> None:
    """(Pins a fault: the socket has no peer any more, which is an error before the handshake begins.)"""
    dialled = socket.socket()  # not connected, as after a reset

    async def play() -> None:
        with pytest.raises(OSError, match="not connected"):
            await made([]).greet(dialled)

    asyncio.run(play())
    assert dialled.fileno() == -1
