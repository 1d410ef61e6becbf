"""HTTP on a Unix socket, by which the command line reaches a running manager.

Here: the parts that both ends share, which are the socket's name, the JSON form of errors, and the names of a store's
methods. Not here: the ends (server.py, client.py). Invariant: an error arrives with the class and data of its raise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from warren_raft import errors
from warren_raft.support import timeouts

if TYPE_CHECKING:
    from warren_raft.store.tables import Kind

SOCKET_NAME: Final = "admin.sock"
QUICK_OPERATIONS: Final = {"status", "members", "explain", "self_report"}
"""Operations that need only memory and the local database, in any state of the cluster."""
# Enough for a write of the largest batch (4 MiB), with its bytes in base64 and its text escaped.
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
NO_OPERATION: Final = "there is no such operation"
"""The answer to an operation that the manager's release does not have."""
MAX_TIMEOUT_SECONDS: Final = 3600.0
"""A longer wait would hold one of the manager's few threads for calls, perhaps for ever."""

# Error class -> the attributes that make the error again at the client. An error with () has only its message.
_ERROR_DATA: Mapping[str, tuple[str, ...]] = {
    "NotFound": ("kind", "key"),
    "RevisionConflict": ("kind", "id", "expected", "actual"),
    "LeadershipLost": ("term",),
    "InvalidConfig": ("reason", "field"),
    "InvalidEntity": ("kind", "reason", "id", "field"),
    "Unavailable": ("reason", "maybe_applied", "of_write"),
    "Corrupted": ("path", "detail", "remedy"),
    "SnapshotInvalid": ("path", "detail"),
    "InUse": ("what", "detail"),
    "WatchLost": ("resume_from",),
    "StorageFull": (),
    "RefusedForSafety": (),
    "Misuse": (),
    "Closed": (),
    "InvariantViolation": (),
}

_SINGULAR: Mapping[str, str] = {"certificate": "tls_certificate"}  # kinds with another name in the store's methods


class ManagerFailed(errors.WarrenError):
    """The manager failed with an error that is not one of this package's; the manager's log has the traceback."""


@contextmanager
def socket_address(directory: str | os.PathLike[str]) -> Iterator[str]:
    """An address of DIR/admin.sock to bind or connect to. It is short enough for AF_UNIX (108 bytes), also if DIR is
    long. Valid inside the `with` only. Raises FileNotFoundError, NotADirectoryError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield address_in(descriptor, SOCKET_NAME)
    finally:
        os.close(descriptor)


def address_in(descriptor: int, name: str) -> str:
    """The address of a socket in an open directory."""
    return f"/proc/self/fd/{descriptor}/{name}"


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout of a call: 0 to MAX_TIMEOUT_SECONDS seconds, or None for the manager's own. Else InvalidEntity."""
    seconds = timeouts.checked(timeout)
    if seconds is not None and seconds > MAX_TIMEOUT_SECONDS:
        raise errors.InvalidEntity("timeout", f"must be at most {MAX_TIMEOUT_SECONDS:.0f} seconds, not {timeout!r:.80}")
    return seconds


def error_to_json(error: BaseException) -> dict[str, Any]:
    """The JSON form of an error: {"error": class name, "message": one line, "data": {...}}. The class is the nearest
    one in warren_raft.errors, because a client knows only those."""
    name = next((each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__), "")
    if name not in _ERROR_DATA:
        return {"error": ManagerFailed.__name__, "message": f"{type(error).__name__}: {error}", "data": {}}
    data = {field: getattr(error, field) for field in _ERROR_DATA[name]}
    return {"error": name, "message": str(error), "data": data}


def error_from_json(answer: Mapping[str, Any]) -> errors.WarrenError:
    """The error that `error_to_json` turned into this JSON."""
    name, message, data = answer["error"], answer["message"], answer["data"]
    if name not in _ERROR_DATA:
        return ManagerFailed(message)
    made = getattr(errors, name)(**data) if _ERROR_DATA[name] else getattr(errors, name)(message)
    assert isinstance(made, errors.WarrenError)  # the table above names only such classes
    return made


def operation(store: object, verb: str, kind: Kind[Any]) -> Any:
    """The method of a store, view or batch for a verb ("get", "list", "iter", "create" or "delete") and a kind. Not for
    the CA: its two methods have names of their own."""
    if verb in ("list", "iter"):
        return getattr(store, f"{verb}_{kind.bucket}")
    return getattr(store, f"{verb}_{_SINGULAR.get(kind.name, kind.name)}")
