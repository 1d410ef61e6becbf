"""Coroutines that wait for one of our threads: for a call, or for a condition.

Not here: the way of a result to the loop (support/handover.py). Invariant: however a coroutine ends, nothing of its
wait is left in another thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from warren_raft.support.handover import Begun, Landing, result_of
from warren_raft.support.waiting import Bell, Wait

T = TypeVar("T")


async def done(begin: Callable[[Landing], Begun[T]]) -> T:
    """The result of a call that `begin` hands to one of our threads."""
    landing = Landing(asyncio.get_running_loop())
    return await result_of(begin(landing), landing)


async def wait_for(bell: Bell, condition: Callable[[], T], deadline: float) -> T:
    """`Bell.wait_for` for a coroutine."""
    while not (value := condition()):
        landing = Landing(asyncio.get_running_loop())
        try:
            bell.add(landing)
            value = condition()  # once more: it may have become true before any thread could release the landing
            left = deadline - time.monotonic()
            if value or left <= 0:
                return value
            await landing.wait(left)
        finally:
            bell.remove(landing)
    return value


async def waited(wait: Wait[T]) -> T:
    """`Wait.wait` for a coroutine."""
    return wait.judged(await wait_for(wait.bell, wait.condition, wait.deadline))
