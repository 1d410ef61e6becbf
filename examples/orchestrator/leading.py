"""The frame of a loop that acts only while this manager leads: the scheduler and the reconciler both run in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import warren_raft as wr

logger = logging.getLogger(__name__)

Pass = Callable[[wr.Store, wr.AsyncLead], Awaitable[None]]
"""Looks at the whole state once, and writes the necessary changes."""

KINDS = ("service", "container", "node")
TOGETHER_SECONDS = 0.1  # changes within this time cost one pass
QUIET_SECONDS = 5.0  # a pass without news, in case an earlier one was refused


async def while_leading(store: wr.Store, do_pass: Pass) -> None:
    """Every manager runs this; at most one of them has a lead in each term. It ends by Closed, or when it is cancelled.

    A lead begins when this manager leads AND has applied everything that earlier leaders, and earlier leads of its own,
    wrote. Nothing here asks `store.is_leader`: the answer may be out of date when it is used. The writes of `lead` are
    checked instead, when they are applied, so a manager that was frozen in the middle of a pass cannot do harm when it
    wakes up. Errors end a lead, and `run_while_leading` logs them and begins the next one.
    """

    async def make_passes(lead: wr.AsyncLead) -> None:
        logger.info("%s begins in term %d", do_pass.__name__, lead.term)
        # The watch begins before the first pass reads, so a change during a pass wakes the next one.
        async with store.aio.watch(kinds=KINDS) as changes:
            while not lead.is_over:
                await do_pass(store, lead)
                await asyncio.sleep(TOGETHER_SECONDS)
                await changes.take(QUIET_SECONDS)

    await store.aio.run_while_leading(make_passes)
