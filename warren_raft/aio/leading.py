"""The lead and the wait for it, for coroutines: `async with store.aio.leading() as lead`, and loops.

Not here: the leadership and its fence (leadership/lead.py). Invariant: that of `Lead`, for the same writes as
coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Never

from warren_raft.aio.waiting import wait_for, waited
from warren_raft.aio.writing import AsyncWriter, carried_out
from warren_raft.errors import Closed, StorageFull, Unavailable
from warren_raft.leadership.lead import Lead, Leading, Standing
from warren_raft.leadership.loops import CLOSING_SECONDS, Attempts, is_all_of
from warren_raft.support import timeouts


class AsyncLead(AsyncWriter):
    """This manager's leadership in one term, given by `store.aio.leading()`: `Lead`, with writes as coroutines.

    A write is carried out only in a log entry of this `term`; otherwise it raises LeadershipLost, and nothing is
    changed. A write that is cancelled ends the lead, because its end is not known: see `Lead`. Use it in one loop.
    """

    __slots__ = ("_lead", "term")

    def __init__(self, lead: Lead) -> None:
        super().__init__(lead)
        self._lead = lead
        self.term: int = lead.term
        """The term in which this manager leads or led."""

    @property
    def is_over(self) -> bool:
        """Whether this lead is known to be over. See `Lead.is_over`."""
        return self._lead.is_over

    async def wait_over(self, timeout: float | None = None) -> bool:
        """Wait until this lead is over, `timeout` seconds at most (None: for ever). Returns `is_over`, so that a loop
        that works every five seconds is `while not await lead.wait_over(5)`."""
        return await wait_for(self._lead._bell, lambda: self._lead.is_over, timeouts.deadline(timeout))

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return f"<AsyncLead: {self._lead!r}>"


AsyncLeadFunction = Callable[[AsyncLead], Awaitable[object]]


class AsyncLeading(AbstractAsyncContextManager[AsyncLead]):
    """The wait for a leadership: `async with store.aio.leading() as lead`. For one `async with` block."""

    __slots__ = ("_leading",)

    def __init__(self, leading: Leading) -> None:
        self._leading = leading

    async def __aenter__(self) -> AsyncLead:
        """Raises Unavailable at the timeout, Closed."""
        leading = self._leading
        while True:  # as Leading.__enter__
            term = await waited(leading.until_leading())
            if leading.begins_at_once(term):
                return AsyncLead(leading.begun(term))
            try:
                await carried_out(leading.store, (), leading.seconds_left)
            except (Unavailable, StorageFull):
                await wait_for(leading.standing.bell, *leading.pause(term))
            else:
                if leading.still_leads(term):
                    return AsyncLead(leading.begun(term))

    async def __aexit__(self, *_exception: object) -> None:
        """Leadership stays where it is, and the lead is over."""
        self._leading.end()


async def run_each_lead(wait: Callable[[], Leading], function: AsyncLeadFunction) -> Never:
    """Call the function with each lead. `wait()` is the wait for the next one. Raises Closed."""
    attempts = Attempts()
    while True:
        leading = wait()
        standing = leading.standing
        async with AsyncLeading(leading) as lead:
            attempts.begin(lead.term)
            failed: BaseException | None = None
            try:
                await function(lead)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failed = error  # of something else that the function waited for
            except Exception as error:  # noqa: BLE001  it is told below, when the lead is over
                failed = error
            else:
                await lead.wait_over()  # it has done its work
        if failed is None:
            continue
        if is_all_of(failed, (Closed,)):
            await wait_for(standing.bell, standing.is_over, timeouts.deadline(CLOSING_SECONDS))
            standing.require()
        pause = timeouts.deadline(attempts.failed(failed))
        await wait_for(standing.bell, partial(_is_new, standing, lead.term), pause)


def _is_new(standing: Standing, term: int) -> bool:
    return standing.is_over() or standing.leading_term() != term
