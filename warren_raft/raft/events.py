"""The events since the last step, which the next step of the engine takes in. Plain data.

Lives here: the classes. Not here: the effects that a step asks for (effects.py), and making events (driver.py, or a
simulator in tests). Invariant: an event is immutable and refers to no thread, socket or clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren_raft.certificates.identity import Identity
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.effects import Work
from warren_raft.raft.links.wire import Message
from warren_raft.raft.log.log import Batch
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.requests import ChangeWanted, TransferWanted
from warren_raft.raft.submit import Proposal
from warren_raft.support.constants import constant


@dataclass(frozen=True, slots=True)
class LinkUp:
    peer: str
    link: int
    hello: Mapping[str, Any]
    identity: Identity | None = None
    """The identity in the peer's certificate; None: the link is plaintext."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: str
    link: int


@constant
class Received:
    peer: str
    link: int
    message: Message


@dataclass(frozen=True, slots=True)
class Arriving:
    """Parts of a large message arrive from a peer that claims to lead this term; 0: the message names no term. Comes at
    most a few times a second."""

    peer: str
    link: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A peer refused our hello. `identity`: the one in its certificate; None: links are plaintext, or the TLS handshake
    ended before the certificate came."""

    peer: str
    refusal: Refusal
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class NotReached:
    """No manager, or another manager, answered at the address of a peer, or the TLS handshake with it failed.
    `refusal`: this manager does not accept the certificate of the peer."""

    peer: str
    why: str
    refusal: Refusal | None = None


@constant
class Submitted:
    proposals: Sequence[Proposal]


@constant
class BarriersWanted:
    barriers: Sequence[Barrier]


@constant
class Synced:
    """The batch of the last WriteLog is durable, or `error` says why it is not."""

    batch: Batch
    error: OSError | None = None


@dataclass(frozen=True, slots=True)
class Worked:
    """A Work effect was carried out: its job returned `result`, or raised `error`."""

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
    | BarriersWanted
    | ChangeWanted
    | TransferWanted
    | Synced
    | Worked
)
