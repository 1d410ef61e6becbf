"""Writers inside a manager process, which also read. A writer notes each call before it makes the call, and the answer
after it.

Each writer has a file, and each fact is a line, written by one write(2). So the file survives kill -9 of the process,
and it has every acknowledgement that a caller could have seen. Not here: reading and judging the files (history.py,
checkers.py). Invariant: no two writes of any writer of any process store the same value.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import warren_raft as wr

COUNTERS: Final = 3
"""Few, so that writers of different managers meet in them."""
SLOTS: Final = 2
SLOT_SECONDS: Final = 5.0
"""All writers put, replace under a condition, delete and read the same records for this long, then other records. A
search decides whether a record's history is linearizable, and it ends more surely for a short history."""
TIMEOUT_SECONDS: Final = 20.0
"""The timeout of a write: longer than any election on a busy machine. Tests of the deadline give another one."""

OK, CONFLICT, UNKNOWN, NOTHING, READ = "ok", "conflict", "unknown", "nothing", "read"
"""The answers to a writer: done; the condition did not hold; perhaps done; not done; the record that was read."""


class Journal:
    """One writer's file: `intend` before a write, `told` after it, `remark` for a fault."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def intend(self, operation: str, key: str, value: Any, detail: Any = None) -> None:
        self._number += 1
        self._write("intent", operation, key, value, detail)

    def told(self, outcome: str, detail: Any) -> None:
        self._write("told", outcome, detail)

    def remark(self, text: str) -> None:
        """Note a fault that a correct store never shows; the checkers fail on it."""
        self._write("remark", text)

    def end(self, why: str) -> None:
        self._write("end", why)
        os.close(self._descriptor)

    def _write(self, *fact: Any) -> None:
        line = json.dumps([self._number, time.monotonic(), *fact]) + "\n"
        os.write(self._descriptor, line.encode())


class Writer:
    """One thread of load. It makes each kind of write in turn, each with a value of its own."""

    def __init__(self, store: wr.ReplicatedStore, journal: Journal, name: str, timeout: float) -> None:
        self._store = store
        self._journal = journal
        self._name = name
        self._timeout = timeout
        self._draw = random.Random(name)
        self._turn = 0
        self._created: list[str] = []

    def run(self, stop: threading.Event) -> None:
        why = "stopped"
        try:
            while not stop.is_set():
                self._turn += 1
                WORK[self._turn % len(WORK)](self)
        except wr.Closed:
            why = "closed"
        except Exception as error:
            self._journal.remark(f"a write raised {error!r}")
            why = "failed"
            raise
        finally:
            self._journal.end(why)

    def _attempt(self, write: Callable[[], int]) -> int | None:
        """The revision of `write`; None: the writer got another answer."""
        try:
            revision = write()
        except wr.RevisionConflict as error:
            self._journal.told(CONFLICT, error.actual)
            return None
        except wr.Unavailable as error:
            self._journal.told(UNKNOWN if error.maybe_applied else NOTHING, error.reason)
            return None
        except wr.StorageFull as error:
            self._journal.told(NOTHING, str(error))
            return None
        except wr.Closed as error:
            self._journal.told(NOTHING, str(error))
            raise
        self._journal.told(OK, revision)
        return revision

    def _create(self) -> None:
        """Create a container that no other writer touches."""
        key, value = f"{self._name}-{self._turn}", f"value-{self._name}-{self._turn}"
        self._journal.intend("create", key, value)
        revision = self._attempt(
            lambda: self._store.create_container(wr.Container(id=key, image=value), timeout=self._timeout)
        )
        if revision is not None:
            self._created.append(key)
            self._expect_own(key, value, revision)

    def _register(self) -> None:
        """Write the writer's own container again: the last write must win."""
        key, value = f"{self._name}-register", f"value-{self._name}-{self._turn}"
        self._journal.intend("register", key, value)
        revision = self._attempt(
            lambda: self._store.update_container(wr.Container(id=key, image=value), timeout=self._timeout)
        )
        if revision is not None:
            self._expect_own(key, value, revision)

    def _pair(self) -> None:
        """Create two containers in one command: both or neither."""
        key, value = f"{self._name}-{self._turn}", f"value-{self._name}-{self._turn}"
        self._journal.intend("pair", key, value)

        def write() -> int:
            with self._store.batch(timeout=self._timeout, wait=False) as batch:
                for side in "ab":
                    batch.create_container(wr.Container(id=f"{key}-{side}", image=value))
            return batch.future.result()

        self._attempt(write)

    def _erase(self) -> None:
        """Delete one of the containers that this writer created."""
        if not self._created:
            return
        key = self._created.pop(self._turn % len(self._created))
        self._journal.intend("erase", key, None)
        revision = self._attempt(lambda: self._store.delete_container(key, timeout=self._timeout))
        if revision is not None:
            try:
                found = self._store.get_container(key)
            except wr.NotFound:
                return
            self._journal.remark(f"{key} was deleted at revision {revision} and is read as {found.image!r}")

    def _increment(self) -> None:
        """Increment a counter that all writers share, by compare-and-set on the revision."""
        key, token = f"counter-{self._turn % COUNTERS}", f"token-{self._name}-{self._turn}"
        try:
            before = self._store.get_service(key)
        except wr.NotFound:
            before = wr.Service(id=key)
        after = wr.Service(id=key, replicas=before.replicas + 1, image=token)
        self._journal.intend("increment", key, after.replicas, [token, before.image, before.revision])
        self._attempt(lambda: self._store.update_service(after, if_revision=before.revision, timeout=self._timeout))

    def _slot(self) -> None:
        """Write a shared record, in each of the possible ways."""
        key, value = self._slot_key(), f"value-{self._name}-{self._turn}"
        container = wr.Container(id=key, image=value)
        way = self._draw.choice(("put", "cas", "cas", "delete"))
        if way == "put":
            self._journal.intend("slot put", key, value)
            self._attempt(lambda: self._store.update_container(container, timeout=self._timeout))
        elif way == "cas":
            before = self._revision_and_image(key)[0]
            self._journal.intend("slot cas", key, value, before)
            self._attempt(lambda: self._store.update_container(container, if_revision=before, timeout=self._timeout))
        else:
            self._journal.intend("slot delete", key, None)
            self._attempt(lambda: self._store.delete_container(key, timeout=self._timeout))

    def _read(self) -> None:
        """Make a linearizable read of a shared record."""
        is_counter = self._draw.random() < 0.3
        key = f"counter-{self._turn % COUNTERS}" if is_counter else self._slot_key()
        self._journal.intend("read", key, None)
        try:
            self._store.barrier(self._timeout)
        except wr.Unavailable as error:
            self._journal.told(NOTHING, error.reason)
            return
        except wr.Closed as error:
            self._journal.told(NOTHING, str(error))
            raise
        self._journal.told(READ, self._revision_and_image(key, is_counter=is_counter))

    def _slot_key(self) -> str:
        return f"slot-{int(time.monotonic() / SLOT_SECONDS)}-{self._draw.randrange(SLOTS)}"

    def _revision_and_image(self, key: str, *, is_counter: bool = False) -> tuple[int, str | None]:
        """The present revision and image on this manager; (0, None): there is no record."""
        try:
            found = self._store.get_service(key) if is_counter else self._store.get_container(key)
        except wr.NotFound:
            return 0, None
        return found.revision, found.image

    def _expect_own(self, key: str, value: str, revision: int) -> None:
        """Check that a caller reads its own write on the manager through which it wrote."""
        try:
            found = self._store.get_container(key)
        except wr.NotFound:
            self._journal.remark(f"{key} was acknowledged at revision {revision} and is not found here")
            return
        if (found.image, found.revision) != (value, revision):
            what = f"{found.image!r} at {found.revision}"
            self._journal.remark(f"{key} was acknowledged as {value!r} at {revision} and is read as {what}")


WORK: Final[Sequence[Callable[[Writer], None]]] = (
    Writer._create,
    Writer._increment,
    Writer._register,
    Writer._slot,
    Writer._create,
    Writer._read,
    Writer._pair,
    Writer._increment,
    Writer._slot,
    Writer._register,
    Writer._read,
    Writer._erase,
)


class Load:
    """Several writers in threads of their own. `name` is unique among all loads of all processes of a test."""

    def __init__(
        self, store: wr.ReplicatedStore, directory: Path, name: str, threads: int, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self._stop = threading.Event()
        self._threads = []
        for number in range(threads):
            writer_name = f"{name}-{number}"
            writer = Writer(store, Journal(directory / f"{writer_name}.journal"), writer_name, timeout)
            self._threads.append(threading.Thread(target=writer.run, args=(self._stop,), daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Let each writer finish its present write. Returns whether all did in time."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
