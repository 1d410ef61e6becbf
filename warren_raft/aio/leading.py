"""The lead and the wait for it, for coroutines: `async with store.aio.leading() as lead`.

Not here: the leadership and its fence (leadership/lead.py). Invariant: that of `Lead`, for the same writes as
coroutines.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from warren_raft.aio.waiting import wait_for, waited
from warren_raft.aio.writing import AsyncWriter
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.support import timeouts


class AsyncLead(AsyncWriter):
    """This manager's leadership in one term, given by `store.aio.leading()`: `Lead`, with writes as coroutines.

    A write is carried out only in a log entry of this `term`; otherwise it raises LeadershipLost, and nothing is
    changed. Use it in one loop.
    """

    __slots__ = ("_lead", "term")

    def __init__(self, lead: Lead) -> None:
        super().__init__(lead)
        self._lead = lead
        self.term: int = lead.term
        """The term in which this manager leads or led."""

    @property
    def is_over(self) -> bool:
        """Whether this manager is known not to lead in this term any more. See `Lead.is_over`."""
        return self._lead.is_over

    async def wait_over(self, timeout: float | None = None) -> bool:
        """Wait until this lead is over, `timeout` seconds at most (None: for ever). Returns `is_over`, so that a loop
        that works every five seconds is `while not await lead.wait_over(5)`."""
        return await wait_for(self._lead._bell, lambda: self._lead.is_over, timeouts.deadline(timeout))

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return f"<AsyncLead: {self._lead!r}>"


class AsyncLeading(AbstractAsyncContextManager[AsyncLead]):
    """The wait for a leadership: `async with store.aio.leading() as lead`. For one `async with` block."""

    __slots__ = ("_leading",)

    def __init__(self, leading: Leading) -> None:
        self._leading = leading

    async def __aenter__(self) -> AsyncLead:
        """Raises Unavailable at the timeout, Closed."""
        return AsyncLead(self._leading.lead(await waited(self._leading.until_leading())))

    async def __aexit__(self, *_exception: object) -> None:
        """Leadership stays where it is."""
