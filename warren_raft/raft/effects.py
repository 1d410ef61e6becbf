"""The effects that a step of the engine asks for: what the driver has to do next. Plain data.

Lives here: the classes. Not here: carrying them out (driver.py, or a simulator in tests), and which effects a step asks
for (engine.py). Invariant: the driver carries the effects of one step out in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren_raft.raft.log import Batch
from warren_raft.raft.wire import Message

Job = Callable[[], Any]
"""For a worker thread."""
Then = Callable[[Any, Exception | None], None]
"""Called in the raft thread with the result of a job, or with its error."""


@dataclass(frozen=True, slots=True)
class Send:
    link: int
    message: Message


@dataclass(frozen=True, slots=True)
class Cancel:
    """Of the message in the BULK lane with this `number`, do not send what has not left yet."""

    link: int
    number: int


@dataclass(frozen=True, slots=True)
class WriteLog:
    """Call batch.write() in a worker thread, then step with Synced(batch)."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Work:
    """Call job() in some worker thread, then step with Worked. `then` is the engine's own."""

    job: Job
    then: Then


@dataclass(frozen=True, slots=True)
class CloseLink:
    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Hold or seek a link to each of these, at one of its addresses in turn; replaces the last one."""

    peers: Mapping[str, Sequence[str]]


Effect = Send | Cancel | WriteLog | Work | CloseLink | Dial
