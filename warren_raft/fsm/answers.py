"""What a command was answered: the revision, or why nothing was done. Plain data, stored and sent as it is.

Nothing is decided here. `raise_for` makes an exception of it, for the side that waits.
Invariant: an error is a word and plain values. It is stored in sessions and so in the digest: no word ever changes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from warren_raft.errors import InvalidEntity, InvariantViolation, RevisionConflict, Unavailable
from warren_raft.store.tables import BY_NUMBER

CONFLICT: Final = "conflict"
"""(CONFLICT, kind number, id, expected revision, actual revision): a condition did not hold; nothing is changed."""
MALFORMED: Final = "malformed"
"""(MALFORMED, reason): what the command says can never be done. A writer that checks never sends such a one."""
UNKNOWN_SESSION: Final = "unknown_session"
"""(UNKNOWN_SESSION,): never opened, closed, or evicted. This copy of the command was not carried out; whether an
earlier one was is no longer known. Open a session under a new number."""
STALE: Final = "stale"
"""(STALE,): its sender once said that it waits for this sequence no longer, so the answer is gone."""
TOO_MANY_OUTSTANDING: Final = "too_many_outstanding"
"""(TOO_MANY_OUTSTANDING,): too far above the lowest sequence waited for. Not remembered, so another copy of the
command may be carried out later: a sender keeps within MAX_OUTSTANDING."""

BAD_KIND: Final = "unknown kind"
BAD_ENTITY: Final = "bad entity"
BAD_SESSION: Final = "bad session"
"""The reasons of MALFORMED for a command that could be read. (Of one that could not, nothing is stored.)"""

_SESSION_ERRORS: Final = {
    UNKNOWN_SESSION: "the cluster no longer knows the session of this process",
    STALE: "the answer to this write is no longer kept",
    TOO_MANY_OUTSTANDING: "too many writes of this process wait for their answers",
}

Error = tuple[str | int, ...]


class Result(NamedTuple):
    """The answer to the command (session, sequence); (0, 0) where the command could not be read.

    `revision`: of the change, or the latest one where nothing was changed. `error` is None where it was done.
    """

    session: int
    sequence: int
    revision: int
    error: Error | None = None


def raise_for(result: Result) -> int:
    """The revision, or the error raised as the caller of a write is to see it.

    Raises RevisionConflict, InvalidEntity (malformed), and Unavailable(maybe_applied=True) for what concerns
    sessions: an earlier copy of the same command may have been carried out.
    """
    match result.error:
        case None:
            return result.revision
        case ("conflict", int(number), str(id_), int(expected), int(actual)):
            raise RevisionConflict(BY_NUMBER[number].name, id_, expected, actual)
        case ("malformed", str(reason)):
            raise InvalidEntity("command", reason)
        case (str(word),) if word in _SESSION_ERRORS:
            raise Unavailable(_SESSION_ERRORS[word], maybe_applied=True)
        case _:
            raise InvariantViolation(f"an answer that nobody gives: {result.error!r}")
