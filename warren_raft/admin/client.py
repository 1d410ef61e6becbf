"""The client of a manager's admin socket: each call blocks and has a connection of its own.

Not here: retries and printing. Invariant: if a call may have reached the manager and got no answer, it raises
`Unavailable(maybe_applied=True)`, never an error that says that nothing happened.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from warren_raft.admin import (
    NO_OPERATION,
    QUICK_OPERATIONS,
    ManagerFailed,
    checked_timeout,
    error_from_json,
    socket_address,
)
from warren_raft.disk import last_failure
from warren_raft.disk.paths import absolute, missing_data
from warren_raft.errors import InvalidEntity, RefusedForSafety, Unavailable, WarrenError
from warren_raft.support.workers import Workers

# The manager answers by the deadline of the call; the client waits this much longer before it gives up.
ANSWER_MARGIN_SECONDS: Final = 5.0
# For a call without a timeout: more than any sensible `Config.write_timeout_seconds`.
DEFAULT_ANSWER_SECONDS: Final = 60.0
# For operations that need no other manager: if these take so long, the process or its machine is suspended.
QUICK_ANSWER_SECONDS: Final = 10.0
# A chunk of an import is one atomic batch, well below the batch limit of 4 MiB. It is one entry of the log, so small
# chunks would cost more for their entries than for their records.
CHUNK_RECORDS: Final = 1_000
CHUNK_BYTES: Final = 1024 * 1024
CHUNKS_IN_FLIGHT: Final = 4

# The manager takes and verifies a snapshot before it sends the first byte: for a state of gigabytes on a busy machine
# that takes minutes.
SNAPSHOT_SECONDS: Final = 1800.0
SNAPSHOT_CHUNK_BYTES: Final = 256 * 1024

_PID: Final = struct.Struct("i")  # the first member of ucred (unix(7)); the rest is cut off

JUST_STARTED: Final = "if it was started a moment ago, try again"
"""A process that loads its program has not locked the directory yet."""

T = TypeVar("T")
Item = tuple[str, object]
"""A kind's name, and an entity in its JSON form, or its encoded bytes in base64; for the CA, its bytes in base64."""


class NotRunning(WarrenError):
    """No manager answers on this directory. `directory` names it. The text says why the last run failed, if it did.

    `is_open`: a process has the directory locked, so a manager is starting or stopping there.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        holder = _holder(directory) if missing_data(directory) is None else None
        self.is_open = holder is not None
        super().__init__(_not_running(directory) if holder is None else _not_answering(directory, holder))


def _holder(directory: str) -> str | None:
    from warren_raft.store.ownership import DirectoryLock

    try:
        return DirectoryLock.holder(directory)
    except OSError:  # this user may not read it
        return None


def _not_running(directory: str) -> str:
    text = f"no manager is running on {directory}"
    problem = missing_data(directory)
    if problem is not None:
        return f"{text}: {problem}; name a manager's data directory with --data-dir"
    failure = last_failure.read(directory)
    if failure is not None:
        return f"{text}; {failure}"
    return f"{text}; start it with: warren-raft serve --data-dir {directory} … ({JUST_STARTED})"


def _not_answering(directory: str, holder: str) -> str:
    text = (
        f"a manager is starting or stopping on {directory}, and does not answer yet ({holder}): wait a few seconds, "
        "and try again; if that lasts, look at its log"
    )
    if os.path.isdir(os.path.join(directory, "log")):
        return f"{text}. A manager with admin=False answers no commands: use its program"
    return f"{text}. If a program has a LocalStore there, it answers no commands: use that program"


class SnapshotCut(Unavailable):
    """The connection ended before the whole snapshot came."""

    def __str__(self) -> str:
        return f"{self.reason}; no snapshot was saved"


def _untold(reason: str) -> Unavailable:
    return Unavailable(reason, maybe_applied=False, of_write=False)


def _unanswered(reason: str) -> Unavailable:
    return Unavailable(reason, maybe_applied=True)


def _not_moved(reason: str) -> Unavailable:
    return Unavailable(f"{reason}; leadership may still move", maybe_applied=True, of_write=False)


def _cut(reason: str) -> Unavailable:
    return SnapshotCut(reason, maybe_applied=False)


class AdminClient:
    """Calls to the manager that runs on `directory`. Holds no connection; may be used by many threads.

    Every call raises the manager's own error, NotRunning, or Unavailable. `timeout`: seconds from 0 to an hour, else
    InvalidEntity; None is the manager's default.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = absolute(directory)

    def status(self) -> dict[str, Any]:
        return _expect(dict, self.call("status"))

    def explain(self) -> dict[str, Any]:
        """The last slow writes and the slowest recent ones, with their stages."""
        return _expect(dict, self._reported("explain"))

    def self_report(self) -> dict[str, Any]:
        """The manager's report about itself, for a bug report."""
        return _expect(dict, self._reported("self_report"))

    def _reported(self, operation: str) -> Any:
        """The answer of an operation that earlier releases do not have."""
        try:
            return self.call(operation)
        except InvalidEntity as error:
            if error.reason == NO_OPERATION:
                raise ManagerFailed(
                    f"the manager on {self.directory} is of a release that has no {operation!r}: upgrade it"
                ) from None
            raise

    def page(self, path: str) -> str | None:
        """The text of a page (health/pages.py), such as "/metrics"; None if this manager has no such page, because it
        is of an earlier release."""
        connection = _Connection(self.directory, QUICK_ANSWER_SECONDS)
        try:
            with self._told(_untold, connection):
                response = self._ask(connection, "GET", path)
                text = response.read().decode()
            return text if response.status == http.client.OK else None
        finally:
            connection.close()

    def put(self, kind: str, entity: object, *, if_revision: int | None = None, timeout: float | None = None) -> int:
        """Creates or replaces an entity given in its JSON form (the CA: base64). Returns the revision."""
        arguments = {"kind": kind, "entity": entity, "if_revision": if_revision}
        return _expect(int, self.call("put", arguments, timeout=timeout))

    def delete(
        self,
        kind: str,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> int:
        arguments = {"kind": kind, "id": id, "if_revision": if_revision}
        return _expect(int, self.call("delete", arguments, timeout=timeout))

    def delete_cascade(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Deletes a service and its containers. Not an argument of `delete`: a manager of an earlier release would
        ignore it, and leave the containers."""
        arguments = {"id": id, "if_revision": if_revision}
        return _expect(int, self.call("delete_cascade", arguments, timeout=timeout))

    def put_batch(self, items: Iterable[Item], *, timeout: float | None = None) -> int:
        """Creates or replaces all items in one atomic command. Returns the revision."""
        return _expect(int, self.call("put_batch", {"items": list(items)}, timeout=timeout))

    def put_all(
        self, items: Iterable[Item], *, timeout: float | None = None, done: Callable[[int], object] = lambda _: None
    ) -> None:
        """Creates or replaces all items, in atomic batches of at most CHUNK_RECORDS, several batches at a time.

        Calls `done(n)` in the caller's thread whenever n more items are stored. The items must not have two of one
        kind and id, because either of the two could be stored last. On an error, some batches may be stored already.
        """
        workers = Workers(CHUNKS_IN_FLIGHT, "import")
        waiting: deque[tuple[int, Future[int]]] = deque()
        try:
            for chunk in _chunks(items):
                if len(waiting) == CHUNKS_IN_FLIGHT:
                    _finish(waiting, done)
                waiting.append((len(chunk), workers.submit(self.put_batch, chunk, timeout=timeout)))
            while waiting:
                _finish(waiting, done)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)

    def members(self) -> list[dict[str, Any]]:
        return _expect(list, self.call("members"))

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self.call("add_member", {"id": id, "address": address}, timeout=timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Returns an empty string if the member answers at the address, else a sentence about its true address."""
        said = self.call("update_member", {"id": id, "address": address}, timeout=timeout)
        return said if isinstance(said, str) else ""  # an earlier release answers nothing

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self.call("remove_member", {"id": id}, timeout=timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Hands leadership over to this member, or to the best prepared member. Returns the id of the new leader."""
        return _expect(str, self.call("transfer_leadership", {"id": id}, timeout=timeout))

    @contextmanager
    def snapshot(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A snapshot of the manager's state, which the manager has verified: (its size, an iterator of its bytes).

        Raises SnapshotCut, also from the iteration, if the connection breaks before the whole snapshot came.
        """
        connection = _Connection(self.directory, SNAPSHOT_SECONDS)
        try:
            self.status()  # a manager that answers nothing is known within seconds, not after SNAPSHOT_SECONDS
            with self._told(_cut, connection):
                response = self._post(connection, "snapshot", b"{}")
                if response.headers.get_content_type() == "application/json":
                    raise error_from_json(json.loads(response.read()))
                size = int(response.headers["Content-Length"])
            yield size, self._body(connection, response, size)
        finally:
            connection.close()

    def _body(self, connection: _Connection, response: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        left = size
        while left:
            with self._told(_cut, connection):
                chunk = response.read(min(left, SNAPSHOT_CHUNK_BYTES))
                if not chunk:
                    raise ConnectionResetError
            left -= len(chunk)
            yield chunk

    def call(
        self, operation: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Any:
        """One operation of the table in server.py. `timeout`, in seconds, is the manager's deadline."""
        timeout = checked_timeout(timeout)
        body = json.dumps({**(arguments or {}), "timeout_seconds": timeout}).encode()
        patience = DEFAULT_ANSWER_SECONDS if timeout is None else timeout + ANSWER_MARGIN_SECONDS
        is_quick = operation in QUICK_OPERATIONS
        error = _untold if is_quick else _not_moved if operation == "transfer_leadership" else _unanswered
        connection = _Connection(self.directory, QUICK_ANSWER_SECONDS if is_quick else patience)
        try:
            return self._exchange(connection, operation, body, error)
        finally:
            connection.close()

    def _exchange(
        self, connection: _Connection, operation: str, body: bytes, error: Callable[[str], Unavailable]
    ) -> Any:
        with self._told(error, connection):
            answer = json.loads(self._post(connection, operation, body).read())
        if "error" in answer:
            raise error_from_json(answer)
        return answer["result"]

    def _post(self, connection: _Connection, operation: str, body: bytes) -> http.client.HTTPResponse:
        return self._ask(connection, "POST", f"/v1/{operation}", body)

    def _ask(
        self, connection: _Connection, method: str, path: str, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NotRunning(self.directory) from None
        except PermissionError:
            raise RefusedForSafety(
                f"this user may not connect to the manager on {self.directory}; run this as the owner of the data"
            ) from None
        connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
        return connection.getresponse()

    @contextmanager
    def _told(self, error: Callable[[str], Unavailable], connection: _Connection) -> Iterator[None]:
        """Turns the errors of a connection into `error`."""
        try:
            yield
        except WarrenError:  # Unavailable is a TimeoutError too
            raise
        except TimeoutError:
            raise error(_silence(self.directory, connection.manager_pid)) from None
        except (OSError, http.client.HTTPException, ValueError, TypeError):
            raise error(f"the connection to the manager on {self.directory} broke") from None


def _silence(directory: str, pid: int) -> str:
    """The sentence for a manager that did not answer. `pid`: its process; 0 if that is not known."""
    if pid <= 0:
        return f"the manager on {directory} does not answer: look at its log, or start it again"
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        if file.read().rpartition(")")[2].split()[0] in "tT":
            return f"the manager on {directory} does not answer: process {pid} is suspended; type kill -CONT {pid}"
    return f"the manager on {directory} (process {pid}) does not answer: look at its log, or start it again"


class _Connection(http.client.HTTPConnection):
    def __init__(self, directory: str, timeout: float) -> None:
        super().__init__("manager", timeout=timeout)
        self._directory = directory
        self.manager_pid = 0
        """The process that listens, once there is a connection; 0 if it is in another container."""

    def connect(self) -> None:
        if self.sock is not None:
            return
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(self.timeout)
            with socket_address(self._directory) as address:
                link.connect(address)
            credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PID.size)
            self.manager_pid = _PID.unpack_from(credentials)[0]
        except BaseException:
            link.close()
            raise
        self.sock = link


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        item_size = len(item[1]) if isinstance(item[1], str) else len(json.dumps(item))
        if chunk and (len(chunk) == CHUNK_RECORDS or size + item_size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item_size
    if chunk:
        yield chunk


def _finish(waiting: deque[tuple[int, Future[int]]], done: Callable[[int], object]) -> None:
    count, future = waiting.popleft()
    future.result()
    done(count)


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise ManagerFailed(
            f"the manager answered with {type(value).__name__}, not {kind.__name__}; it may be of another version"
        )
    return value
