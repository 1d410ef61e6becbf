"""What a step of the Engine takes in and what it asks for: events and effects. Plain data; driver.py carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren_raft.raft.catchup import Job, Then
from warren_raft.raft.identity import Identity
from warren_raft.raft.log import Batch
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.requests import ChangeWanted, TransferWanted
from warren_raft.raft.submit import Proposal
from warren_raft.raft.wire import Message

# Events: what happened since the last step ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    peer: str
    link: int
    hello: Mapping[str, Any]
    identity: Identity | None = None
    """Of the peer's certificate; None: the link is plaintext."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: str
    link: int


@dataclass(frozen=True, slots=True)
class Received:
    peer: str
    link: int
    message: Message


@dataclass(frozen=True, slots=True)
class Arriving:
    """Parts of a large message arrive from a peer that says to lead this term; 0: it says nothing of a term. Told some
    times a second at most."""

    peer: str
    link: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A peer refused our hello. `identity`: of its certificate; None: links are plaintext, or the TLS handshake did not
    get so far."""

    peer: str
    refusal: Refusal
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class NotReached:
    """Nobody, or another manager, answered at the address of a peer."""

    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Submitted:
    proposals: Sequence[Proposal]


@dataclass(frozen=True, slots=True)
class Synced:
    """The batch of the last WriteLog is durable, or `error` says why not."""

    batch: Batch
    error: OSError | None = None


@dataclass(frozen=True, slots=True)
class Worked:
    """A Work effect was carried out: what its job returned, or raised."""

    work: Work
    result: Any
    error: Exception | None = None


Event = (
    LinkUp
    | LinkDown
    | Received
    | Arriving
    | Refused
    | NotReached
    | Submitted
    | ChangeWanted
    | TransferWanted
    | Synced
    | Worked
)


# Effects: what the driver has to do, in this order -------------------------------------------------------------------


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
