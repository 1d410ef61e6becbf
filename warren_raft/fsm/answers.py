"""The answer to a command: the revision, or the reason why nothing was done. Plain data that is stored and sent as it
is.

Nothing is decided here. `raise_for` turns an answer into an exception for the waiting caller.
Invariant: an error is a word and plain values. Errors are stored in sessions and so in the digest: no word ever
changes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from warren_raft.errors import (
    InvalidEntity,
    InvariantViolation,
    LeadershipLost,
    RevisionConflict,
    Unavailable,
)
from warren_raft.store.tables import BY_NUMBER

CONFLICT: Final = "conflict"
"""(CONFLICT, kind number, id, expected revision, actual revision): a condition did not hold; nothing is changed."""
LEADERSHIP_LOST: Final = "leadership_lost"
"""(LEADERSHIP_LOST, term): the command was to be carried out in an entry of this term only, and its entry is of another
term; nothing is changed."""
MALFORMED: Final = "malformed"
"""(MALFORMED, reason): the command can never be carried out. A writer that checks its commands never sends one."""
UNKNOWN_SESSION: Final = "unknown_session"
"""(UNKNOWN_SESSION,): the session was never opened, or is closed or evicted. This copy of the command was not carried
out. Whether an earlier copy was carried out is no longer known. Open a session under a new number."""
STALE: Final = "stale"
"""(STALE,): the sender once said that it no longer waits for this sequence, so the answer is no longer kept."""
TOO_MANY_OUTSTANDING: Final = "too_many_outstanding"
"""(TOO_MANY_OUTSTANDING,): too far above the lowest awaited sequence. This answer is not remembered, so another copy of
the command may be carried out later. A sender keeps within MAX_OUTSTANDING."""

BAD_KIND: Final = "unknown kind"
BAD_ENTITY: Final = "bad entity"
BAD_SESSION: Final = "bad session"
"""The reasons of MALFORMED for a command that can be read. For a command that cannot be read nothing is stored."""

_SESSION_ERRORS: Final = {
    UNKNOWN_SESSION: "the cluster no longer knows the session of this process",
    STALE: "the answer to this write is no longer kept",
    TOO_MANY_OUTSTANDING: "too many writes of this process wait for their answers",
}

_CLASS_NAMES: Final[dict[str | int, str]] = {
    CONFLICT: RevisionConflict.__name__,
    LEADERSHIP_LOST: LeadershipLost.__name__,
    MALFORMED: InvalidEntity.__name__,
}

Error = tuple[str | int, ...]


class Result(NamedTuple):
    """The answer to the command (session, sequence); (0, 0) if the command could not be read.

    `revision`: the revision of the change. If nothing was changed: the newest revision of the entities that were put
    and are stored like that already, or the latest revision if there are none. `error` is None for success.
    """

    session: int
    sequence: int
    revision: int
    error: Error | None = None


def class_name_of(error: Error) -> str:
    """The name of the class that `raise_for` raises for this error."""
    return _CLASS_NAMES.get(error[0], Unavailable.__name__)


def raise_for(result: Result) -> int:
    """The revision, or the error that the caller of a write sees.

    Raises RevisionConflict, LeadershipLost, InvalidEntity (malformed), and Unavailable(maybe_applied=True) for the
    errors of sessions: an earlier copy of the same command may have been carried out.
    """
    match result.error:
        case None:
            return result.revision
        case ("conflict", int(number), str(id_), int(expected), int(actual)):
            raise RevisionConflict(BY_NUMBER[number].name, id_, expected, actual)
        case ("leadership_lost", int(term)):
            raise LeadershipLost(term)
        case ("malformed", str(reason)):
            raise InvalidEntity("command", reason)
        case (str(word),) if word in _SESSION_ERRORS:
            raise Unavailable(_SESSION_ERRORS[word], maybe_applied=True)
        case _:
            raise InvariantViolation(f"an unknown answer: {result.error!r}")
