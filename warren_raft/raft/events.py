"""The events that a step of the engine takes in: what happened since the last step. Plain data.

Lives here: the classes. Not here: what a step asks for in return (effects.py), and who makes events (driver.py, or a
simulator in tests). Invariant: an event is immutable and holds nothing of a thread, socket or clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren_raft.raft.effects import Work
from warren_raft.raft.identity import Identity
from warren_raft.raft.log import Batch
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.requests import ChangeWanted, TransferWanted
from warren_raft.raft.submit import Proposal
from warren_raft.raft.wire import Message


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
