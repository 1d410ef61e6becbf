"""Every error that the package raises, in one small tree under WarrenError, with its data in attributes.

Nothing is decided here: modules raise these errors, callers and the command line read their attributes.
Invariant: no caller ever needs to parse a message.
"""

from __future__ import annotations

from typing import Any


class WarrenError(Exception):
    """Base of every error of this package. Never raised itself. Every error can be pickled and copied with its data."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Without this method, pickle and copy call the class with `args`, and most classes need other arguments."""
        return _made_again, (type(self), self.args, dict(self.__dict__))


def _made_again(kind: type[WarrenError], args: tuple[object, ...], data: dict[str, object]) -> WarrenError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError takes them in its __init__
    error.__dict__.update(data)
    return error


class NotFound(WarrenError, KeyError):
    """There is no entity of this kind under this key (an id, or a name for the by-name reads)."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(kind, key)
        self.kind = kind
        self.key = key

    def __str__(self) -> str:
        return f"no {self.kind} {self.key!r}"


class RevisionConflict(WarrenError):
    """`if_revision` did not hold: nothing was changed. `actual` is 0 if there is no such entity."""

    def __init__(self, kind: str, id: str, expected: int, actual: int) -> None:  # noqa: A002
        super().__init__(kind, id, expected, actual)
        self.kind = kind
        self.id = id
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        if self.actual == 0:
            return f"there is no {self.kind} {self.id!r}; it was expected at revision {self.expected}"
        if self.expected == 0:
            return f"there is a {self.kind} {self.id!r} already, at revision {self.actual}"
        return f"{self.kind} {self.id!r} is at revision {self.actual}, not {self.expected}"


class LeadershipLost(WarrenError):
    """The lead of `term` is over: the write was not carried out. Nothing was changed.

    Raised by the writes of `lead` (see `leading` and `run_while_leading`). For a write that was sent it is decided in
    the replicated state machine, by the term of the log entry that carried the write. `reason` says why a lead is over
    although its manager may still lead in this term; otherwise it is "".
    """

    def __init__(self, term: int, reason: str = "") -> None:
        super().__init__(term, reason)
        self.term = term
        self.reason = reason

    def __str__(self) -> str:
        if self.reason:
            return f"this lead of term {self.term} is over: {self.reason}; nothing was changed"
        return f"this manager no longer leads in term {self.term}; nothing was changed"


class InvalidEntity(WarrenError, ValueError):
    """A value that can never be stored. Raised in the caller's thread, before anything is sent.

    `field` is the dotted path of the wrong field, or None if the whole entity is meant.
    """

    def __init__(self, kind: str, reason: str, *, id: str | None = None, field: str | None = None) -> None:  # noqa: A002
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason
        self.id = id
        self.field = field

    def __str__(self) -> str:
        where = self.kind if self.field is None else f"{self.kind}.{self.field}"
        return f"{where}: {self.reason}"


class InvalidConfig(WarrenError, ValueError):
    """A setting of a manager is wrong. Raised before anything is opened or created.

    `field` is the setting's name, for a member `members.ID`; None if a whole file is meant.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field

    def __str__(self) -> str:
        where = "config" if self.field is None else f"config.{self.field}"
        return f"{where}: {self.reason}"


class Unavailable(WarrenError, TimeoutError):
    """The deadline passed, or there was no quorum until the deadline.

    During an upgrade: not all members know the feature yet (docs/upgrade.md).

    `maybe_applied` is False only if it is certain that the write never left this process. `of_write` is False if there
    was no write or change (for a wait, a barrier or a question), or if the change is made and the wait for it ended.
    """

    def __init__(self, reason: str, *, maybe_applied: bool, of_write: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.maybe_applied = maybe_applied
        self.of_write = of_write

    def __str__(self) -> str:
        if not self.of_write:
            return self.reason
        tail = "; the change may have been applied, or may still be" if self.maybe_applied else "; nothing was changed"
        return self.reason + tail


class StorageFull(WarrenError):
    """There is not enough space for creates and updates. Reads and deletes still work. The condition clears by itself.

    `code` is the errno of the shortage (a lack of file descriptors or of memory is handled like a lack of space); 0 if
    the space was measured.
    """

    code: int = 0


class Corrupted(WarrenError):
    """A file does not hold the bytes that were written to it. `path` names the file, `remedy` is the advice."""

    def __init__(self, path: str, detail: str, *, remedy: str = "") -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


class SnapshotInvalid(WarrenError):
    """A snapshot file that is damaged, partial, or not a snapshot."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class RefusedForSafety(WarrenError):
    """The request is understood but would endanger data. The message is one sentence: the danger and the remedy."""


class InUse(WarrenError):
    """Another process or store holds a data directory, a file or a port. `what` names it."""

    def __init__(self, what: str, detail: str = "is in use") -> None:
        super().__init__(what, detail)
        self.what = what
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.what} {self.detail}"


class WatchLost(WarrenError):
    """Changes were missed. Read everything again, then resume the watch from `resume_from` (a revision)."""

    def __init__(self, resume_from: int) -> None:
        super().__init__(resume_from)
        self.resume_from = resume_from

    def __str__(self) -> str:
        return f"changes were missed; read everything again, then resume from revision {self.resume_from}"


class Misuse(WarrenError, RuntimeError):
    """A mistake in the calling program: a batch or a view was used before, after or twice instead of within one `with`
    block, or was asked for a result that it does not have."""


class Closed(WarrenError):
    """The store is closed, was never open, or belongs to the parent process of a fork."""

    def __str__(self) -> str:
        return self.args[0] if self.args else "the store is closed"


class InvariantViolation(WarrenError):
    """A condition that must never occur. The manager stops and does not continue (also under `python -O`)."""
