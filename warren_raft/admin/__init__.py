"""The manager's own HTTP on a Unix socket: how the command line reaches a running manager.

Here is what both ends share: where the socket is, how an error travels, what a store's methods are called.
The ends are server.py and client.py. Invariant: an error arrives with the class and the data it was raised with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from warren_raft import errors, timeouts

if TYPE_CHECKING:
    from warren_raft.store.tables import Kind

SOCKET_NAME: Final = "admin.sock"
QUICK_OPERATIONS: Final = {"status", "members"}
"""Those that answer from memory and the local database, whatever the cluster is doing."""
# Room for a write of the largest batch (4 MiB) with its bytes in base64 and its text escaped.
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
MAX_TIMEOUT_SECONDS: Final = 3600.0
"""A caller who waits for longer would hold one of the manager's few threads for calls, perhaps for ever."""

# What each error needs to be made again at the other end; a class not named here has only its message.
_ERROR_DATA: Mapping[str, tuple[str, ...]] = {
    "NotFound": ("kind", "key"),
    "RevisionConflict": ("kind", "id", "expected", "actual"),
    "InvalidEntity": ("kind", "reason", "id", "field"),
    "Unavailable": ("reason", "maybe_applied", "of_write"),
    "Corrupted": ("path", "detail", "remedy"),
    "SnapshotInvalid": ("path", "detail"),
    "InUse": ("what", "detail"),
    "WatchLost": ("resume_from",),
    "StorageFull": (),
    "RefusedForSafety": (),
    "Closed": (),
    "InvariantViolation": (),
}

_SINGULAR: Mapping[str, str] = {"certificate": "tls_certificate"}  # kinds that the 48 operations call otherwise


class ManagerFailed(errors.WarrenError):
    """The manager ran into something that is not one of this package's errors; its log says more."""


@contextmanager
def socket_address(directory: str | os.PathLike[str]) -> Iterator[str]:
    """An address of DIR/admin.sock to bind or connect to, short enough for AF_UNIX (108 bytes) whatever
    DIR is called. Valid inside the `with` only. Raises FileNotFoundError, NotADirectoryError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield address_in(descriptor, SOCKET_NAME)
    finally:
        os.close(descriptor)


def address_in(descriptor: int, name: str) -> str:
    """The address of a socket in an open directory."""
    return f"/proc/self/fd/{descriptor}/{name}"


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout of a call: seconds from 0 to MAX_TIMEOUT_SECONDS; None is the manager's own. Else InvalidEntity."""
    seconds = timeouts.checked(timeout)
    if seconds is not None and seconds > MAX_TIMEOUT_SECONDS:
        raise errors.InvalidEntity("timeout", f"must be at most {MAX_TIMEOUT_SECONDS:.0f} seconds, not {timeout!r:.80}")
    return seconds


def error_to_json(error: BaseException) -> dict[str, Any]:
    """The error as it travels: {"error": class name, "message": one line, "data": {...}}."""
    name = type(error).__name__
    if not isinstance(error, errors.WarrenError) or name not in _ERROR_DATA:
        return {"error": ManagerFailed.__name__, "message": f"{name}: {error}", "data": {}}
    data = {field: getattr(error, field) for field in _ERROR_DATA[name]}
    return {"error": name, "message": str(error), "data": data}


def error_from_json(answer: Mapping[str, Any]) -> errors.WarrenError:
    """The error that `error_to_json` wrote, made again."""
    name, message, data = answer["error"], answer["message"], answer["data"]
    if name not in _ERROR_DATA:
        return ManagerFailed(message)
    made = getattr(errors, name)(**data) if _ERROR_DATA[name] else getattr(errors, name)(message)
    assert isinstance(made, errors.WarrenError)  # the table above names nothing else
    return made


def operation(store: Any, verb: str, kind: Kind[Any]) -> Any:
    """A store's (view's, batch's) method for a kind: "get", "list", "iter", "create" or "delete" of anything but
    the CA, whose two methods have names of their own."""
    if verb in ("list", "iter"):
        return getattr(store, f"{verb}_{kind.bucket}")
    return getattr(store, f"{verb}_{_SINGULAR.get(kind.name, kind.name)}")
