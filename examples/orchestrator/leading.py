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
AGAIN_SECONDS = 1.0


async def while_leading(store: wr.Store, do_pass: Pass) -> None:
    """Every manager runs this; at most one of them gets past `leading()` in each term.

    `leading()` waits until this manager leads AND has applied everything that earlier leaders wrote. Nothing here asks
    `store.is_leader`: the answer may be out of date when it is used. The writes of `lead` are checked instead, when
    they are applied, so a manager that was frozen in the middle of a pass cannot do harm when it wakes up.
    """
    while True:
        async with store.aio.leading() as lead:
            logger.info("%s begins in term %d", do_pass.__name__, lead.term)
            try:
                await _make_passes(store, lead, do_pass)
            except wr.LeadershipLost as error:
                logger.info("%s ends: %s", do_pass.__name__, error)
            except (wr.Unavailable, wr.StorageFull, wr.WatchLost, wr.InvalidEntity) as error:
                logger.warning("%s begins again: %s", do_pass.__name__, error)
        await asyncio.sleep(AGAIN_SECONDS)


async def _make_passes(store: wr.Store, lead: wr.AsyncLead, do_pass: Pass) -> None:
    # The watch begins before the first pass reads, so a change during a pass wakes the next one.
    async with store.aio.watch(kinds=KINDS) as changes:
        while not lead.is_over:
            await do_pass(store, lead)
            await asyncio.sleep(TOGETHER_SECONDS)
            await changes.take(QUIET_SECONDS)
