"""The effects that a step of the engine asks for: the driver carries them out after the step. Plain data.

Lives here: the classes. Not here: carrying them out (driver.py, or a simulator in tests), and which effects a step asks
for (engine.py). Invariant: the driver carries out the effects of one step in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren_raft.raft.links.wire import Message
from warren_raft.raft.log.log import Batch
from warren_raft.support.constants import constant

Job = Callable[[], Any]
"""A function for a worker thread to call."""
Then = Callable[[Any, Exception | None], None]
"""Called in the raft thread with the result of a job, or with its error."""


@constant
class Send:
    link: int
    message: Message


@dataclass(frozen=True, slots=True)
class Cancel:
    """Do not send the parts that have not left yet of the message with this `number` in the lane BULK."""

    link: int
    number: int


@constant
class WriteLog:
    """Call batch.write() in the sync thread, then step with Synced(batch)."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Work:
    """Call job() in any worker thread, then step with Worked. `then` is for the engine."""

    job: Job
    then: Then


@dataclass(frozen=True, slots=True)
class CloseLink:
    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Keep or make a link to each of these peers, at its addresses in turn. Replaces the Dial before it."""

    peers: Mapping[str, Sequence[str]]


Effect = Send | Cancel | WriteLog | Work | CloseLink | Dial
