"""One manager in a process of its own, which takes commands as lines of JSON on stdin, and answers on stdout.

    python -m tests.cluster.manager_process SETTINGS

SETTINGS is JSON: `config` (Config's fields), `journals` (a directory for load.py), `name` (unique among all runs);
`network` (the port of network.py's proxy), if links can be cut; `compaction`, for many snapshots; `history_changes`
(how many changes are kept, the same on every manager of a cluster); `previous_release`: it is a manager of the release
before this one.
Each command runs in a thread of its own, so a command that blocks does not delay others. At the end of stdin, or at
SIGTERM, the manager closes cleanly. Invariant: this process does not outlive the process that started it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from itertools import dropwhile
from pathlib import Path
from typing import Any

import warren_raft as wr
from tests.cluster.churn import Churn
from tests.cluster.disks import Disk, StoreOnDisk
from tests.cluster.load import Load
from tests.cluster.network import dial_through
from tests.cluster.reconciler import Reconciler, most_at_once

GIVE_UP_SECONDS, ASK_AGAIN_SECONDS, PINNED_SECONDS = 2.0, 0.6, 4.0
"""With `compaction`: the times after which a dead holder of a snapshot is given up or asked again, and for which a sent
snapshot delays the compaction of the log."""
LOAD_END_SECONDS = 30.0
SMALL_CHUNK_BYTES = 8 * 1024
"""With `compaction`: a state of some hundred KiB is fetched in as many steps as one of some ten MiB otherwise."""
PR_SET_PDEATHSIG = 1


class ManagerProcess:
    """The commands are the public methods; their results and errors go back as JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._name = settings["name"]
        self._journals = Path(settings["journals"])
        self._loads: list[Load] = []
        self._leadership: list[tuple[bool, int]] = []
        self._stop_watching = threading.Event()
        self.disk = Disk()
        self.store = StoreOnDisk(wr.Config(**settings["config"]), self.disk)
        self.store.on_leadership(lambda leads, term: self._leadership.append((leads, term)))

    # The manager and its state

    def status(self) -> dict[str, Any]:
        store = self.store
        return {
            **store.status().to_json(),
            "is_leader": store.is_leader,
            "disk": self.disk.counts(),
            "threads": sorted(thread.name for thread in threading.enumerate()),
        }

    def log_batches(self) -> int:
        """The number of batches that its log has taken so far; read from a private attribute."""
        return self.store._parts.opened.log._next_batch - 1

    def log_base(self) -> int:
        """The base index of its log: only its snapshots have the entries up to there."""
        return self.store._parts.opened.log.base_index

    def guard_stats(self) -> dict[str, int]:
        return dict(self.store._parts.driver.engine.guard_stats)

    def dump(self) -> dict[str, Any]:
        with self.store.read() as view:
            return {
                "containers": [[c.id, c.image, c.revision] for c in view.iter_containers()],
                "services": [[s.id, s.replicas, s.image, s.revision] for s in view.iter_services()],
                "revision": view.revision,
            }

    def recomputed_digest(self) -> list[Any]:
        """[the kept digest, the digest recomputed from all records], both of the same moment."""
        from warren_raft.fsm.digest import recompute

        with self.store._attached().read() as transaction:
            return [transaction.position.digest.hex(), recompute(transaction).hex()]

    def leadership(self) -> list[tuple[bool, int]]:
        """All calls of the leadership callback, from the first one that said that this manager leads."""
        return list(dropwhile(lambda told: not told[0], list(self._leadership)))

    def wait_ready(self, timeout: float) -> None:
        self.store.wait_ready(timeout)

    def hash_of_a_text(self) -> int:
        """It shows the seed of this process."""
        return hash("a text")

    # Load

    def start_load(self, threads: int, timeout: float | None = None) -> None:
        more = {} if timeout is None else {"timeout": timeout}
        load = Load(self.store, self._journals, f"{self._name}-{len(self._loads)}", threads, **more)
        self._loads.append(load)
        load.start()

    def stop_load(self) -> bool:
        """Whether every writer ended."""
        ended = [load.stop(LOAD_END_SECONDS) for load in self._loads]
        return all(ended)

    def start_churn(self, threads: int, records: int, writes_per_second: float | None = None) -> None:
        """Start writers on a bounded set of records; see churn.py."""
        self._churn = Churn(self.store, threads, records, writes_per_second)

    def churned(self) -> list[float]:
        """[writes, p99 in seconds] since the last call."""
        return self._churn.taken()

    def stop_churn(self) -> None:
        self._churn.stop(LOAD_END_SECONDS)

    def reader_slots(self) -> int:
        """Slots of the state's reader table that are in use, by any process."""
        return len(self.store._attached().readers())

    def state_used_bytes(self) -> int:
        """The pages of the state's newest commit, in bytes. The file also has pages that no commit needs any more."""
        with self.store._attached().read() as transaction:
            return transaction.used_bytes()

    def put(self, key: str, value: str, **more: Any) -> int:
        """Put a container."""
        return self.store.create_container(wr.Container(id=key, image=value), **more)

    def put_node(self, id: str, status: str) -> int:  # noqa: A002
        return self.store.create_node(wr.Node(id=id, status=status))

    def get_node(self, id: str) -> list[Any]:  # noqa: A002
        node = self.store.get_node(id)
        return [node.status, node.revision]

    def heartbeat(self, node_id: str, ttl_seconds: float) -> None:
        self.store.heartbeat(node_id, ttl_seconds)

    def has_lease(self, node_id: str) -> bool:
        return node_id in self.store._parts.opened.machine.leases

    def last_heartbeat_age(self, node_id: str) -> float | None:
        return self.store.last_heartbeat_age(node_id)

    def put_large(self, callers: int, rounds: int) -> int:
        """Write batches near the limit of 4 MiB, by several callers at once. Returns the number acknowledged."""
        done: list[int] = []

        def call(caller: int) -> None:
            for number in range(rounds):
                with self.store.batch(timeout=60) as batch:
                    for part in range(3):
                        blob = "x" * 1_000_000 + f"{self._name} {caller} {number} {part}"
                        key = f"{self._name}-{caller}-{number}-{part}"
                        batch.create_volume(wr.Volume(id=key, mount_path=blob))
                    batch.save_ca(b"y" * 1_000_000)
                done.append(batch.revision)

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(set(done))

    def replace_large_by_small(self, rounds: int) -> list[str]:
        """One thread writes a large volume, and at once a small one in its place, and waits for neither write. Returns
        the record after each round."""
        found = []
        for number in range(rounds):
            futures = []
            for path in ("x" * 900_000, f"small {number}"):
                with self.store.batch(wait=False, timeout=60) as batch:
                    batch.create_volume(wr.Volume(id="replaced", mount_path=path))
                futures.append(batch.future)
            for future in futures:
                future.result(60)
            found.append(self.store.get_volume("replaced").mount_path[:20])
        return found

    def delete(self, key: str, **more: Any) -> int:
        return self.store.delete_container(key, **more)

    def overwrite(self, keys: int, writes: int, size: int) -> None:
        """Make `writes` writes, one after the other, to the same few containers."""
        for number in range(writes):
            self.put(f"c{number % keys}", str(number) + "x" * size)

    def readers(self) -> list[int]:
        """The ids of the processes that read the database now."""
        return [reader.pid for reader in self.store._parts.opened.database.readers()]

    def get(self, key: str) -> list[Any]:
        found = self.store.get_container(key)
        return [found.image, found.revision]

    def put_and_read_back(self, key: str, value: str) -> dict[str, Any]:
        """Write, then read at once on this manager: by id, and by an index that only this record has."""
        revision = self.store.create_container(wr.Container(id=key, image=value, service_id=f"service-of-{key}"))
        indexed = self.store.list_containers_by_service(f"service-of-{key}")
        by_service = [entity for found in indexed for entity in (found.image, found.revision)]
        return {"revision": revision, "by_id": self.get(key), "by_service": by_service}

    def watch_revisions(self) -> dict[str, Any]:
        """Read the state's revision over and over until `stop_watching`."""
        reads, last, seen, went_back = 0, 0, set(), []
        while not self._stop_watching.wait(0.001):
            with self.store.read() as view:
                revision = view.revision
            if revision < last:
                went_back.append([last, revision])
            reads, last = reads + 1, revision
            seen.add(revision)
        return {"reads": reads, "went_back": went_back, "revisions": len(seen)}

    def follow(self, since: int, most: int, seconds: float, **chosen: Any) -> list[Any]:
        """[events, revision to go on from] of a watch that is open until it gave `most` events, or for `seconds`."""
        found: list[list[Any]] = []
        end = time.monotonic() + seconds
        with self.store.watch(since, bookmark_seconds=0.1, **chosen) as watch:
            while len(found) < most and (left := end - time.monotonic()) > 0:
                found += [
                    [event.revision, event.index, event.operation, event.kind, event.id, _image_of(event)]
                    for event in watch.take(left)
                    if event.operation != "bookmark"
                ]
            return [found, watch.revision]

    def stop_watching(self) -> None:
        self._stop_watching.set()

    def barrier_and_get(self, key: str) -> list[Any]:
        self.store.barrier(timeout=30)
        return self.get(key)

    def barrier(self, timeout: float | None = None) -> int:
        return self.store.barrier(timeout)

    def put_if(self, key: str, value: str, if_revision: int) -> int:
        """Put a container in a batch that also requires the revision of another record."""
        with self.store.batch() as batch:
            batch.require("container", key, if_revision)
            batch.create_container(wr.Container(id=f"{key}-checked", image=value))
        return batch.revision

    # Fenced writes

    def reconcile(self, wanted: int, write_seconds: float | None = None) -> None:
        self._reconciler = Reconciler(self.store, self._name, wanted, write_seconds)

    def late_passes(self) -> int:
        return self._reconciler.late

    def last_index(self) -> int:
        """Of the log, with the entries that are not committed."""
        return self.store._parts.opened.log.last_index

    def freeze_at_next_decision(self) -> None:
        self._reconciler.freeze_next = True

    def ended_leads(self) -> list[list[object]]:
        return list(self._reconciler.ended)

    def most_at_once(self) -> int:
        return most_at_once(self.store)

    def lead(self) -> int:
        """Wait until this manager leads, and hold on to that. Returns its term."""
        self._lead = self.store.leading(timeout=30).__enter__()
        return self._lead.term

    def create_as_lead(self, keys: list[str]) -> int:
        with self._lead.batch() as batch:
            for key in keys:
                batch.create_container(wr.Container(id=key))
        return batch.revision

    # Members and leadership

    def add_member(self, id: str, address: str, timeout: float) -> None:  # noqa: A002
        self.store.add_member(id, address, timeout=timeout)

    def update_member(self, id: str, address: str, timeout: float) -> None:  # noqa: A002
        self.store.update_member(id, address, timeout=timeout)

    def remove_member(self, id: str, timeout: float) -> None:  # noqa: A002
        self.store.remove_member(id, timeout=timeout)

    def transfer_leadership(self, id: str | None = None, timeout: float = 20.0) -> str:  # noqa: A002
        return self.store.transfer_leadership(id, timeout=timeout)

    # The disk

    def delay_next_sync(self, seconds: float) -> None:
        self.disk.delay_next_sync(seconds)

    def release_disk(self) -> None:
        self.disk.release()

    def fill_disk(self) -> None:
        """No space is left for the log, until `make_room`."""
        self.disk.is_full = True

    def make_room(self) -> None:
        self.disk.is_full = False

    def snapshot(self, path: str) -> int:
        """Save a snapshot. Returns its revision."""
        revision: int = self.store.snapshot(path).revision
        return revision

    def disk_counts(self) -> dict[str, int]:
        return self.disk.counts()

    def fork_child(self) -> int:
        """Fork a child that does nothing for a minute, like a worker of the embedding program. Returns its process
        id."""
        child = os.fork()
        if child == 0:
            os.close(0)
            os.close(1)
            signal.alarm(60)
            while True:
                signal.pause()
        return child

    def close(self) -> float:
        """Close the store; the process goes on. Returns the seconds that closing took."""
        begin = time.monotonic()
        self.store.close()
        return time.monotonic() - begin

    def end(self) -> None:
        for load in self._loads:
            load._stop.set()
        self.store.close()
        self.stop_load()


def _image_of(event: wr.Event) -> str | None:
    entity = event.entity
    return entity.image if isinstance(entity, wr.Container | wr.Service) else None


def compact_often() -> None:
    """Take a snapshot when the log has grown by Config.snapshot_after_bytes, at any size of the state: a test's states
    are mostly history, and grow as fast as its log. Send snapshots in small chunks."""
    from warren_raft.raft import catchup
    from warren_raft.snapshots.keeper import Keeper

    Keeper.state_bytes = lambda _self: 0  # type: ignore[method-assign]
    catchup.CHUNK_BYTES = SMALL_CHUNK_BYTES  # type: ignore[misc]
    catchup.GIVE_UP_SECONDS = GIVE_UP_SECONDS  # type: ignore[misc]
    catchup.ASK_AGAIN_SECONDS = ASK_AGAIN_SECONDS  # type: ignore[misc]
    catchup.PINNED_SECONDS = PINNED_SECONDS  # type: ignore[misc]


def shorten_history(changes: int) -> None:
    from warren_raft.fsm import history

    history.MAX_CHANGES = changes  # type: ignore[misc]


def answer(manager: ManagerProcess, request: dict[str, Any], say: Any) -> None:
    number = request["number"]
    try:
        result = getattr(manager, request["command"])(**request["arguments"])
    except Exception as error:  # noqa: BLE001 - the test has to see any error
        data = {name: value for name, value in vars(error).items() if isinstance(value, (str, int, float, bool))}
        say({"number": number, "error": type(error).__name__, "text": str(error), "data": data})
    else:
        say({"number": number, "result": result})


def run(settings: dict[str, Any]) -> None:
    """Be this manager, to the end of the process."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1)  # the harness sends it when it gives up waiting
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s")
    # All threads block the signals, and this code waits for them. A handler would run in the main thread only, and
    # under strace the signal can go to another thread, and the main thread would sleep on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    lock = threading.Lock()

    def say(answer: dict[str, Any]) -> None:
        line = (json.dumps(answer) + "\n").encode()
        with lock:
            while line:
                line = line[os.write(1, line) :]

    if "network" in settings:
        dial_through(settings["network"], settings["config"]["node_id"])
    if settings.get("compaction"):
        compact_often()
    if settings.get("history_changes") is not None:
        shorten_history(settings["history_changes"])
    if settings.get("previous_release"):
        from tests import previous_release

        previous_release.become()
    try:
        manager = ManagerProcess(settings)
    except wr.WarrenError as error:
        say({"number": 0, "error": type(error).__name__, "text": str(error), "data": {}, "pid": os.getpid()})
        sys.exit(1)
    say({"number": 0, "result": "open", "pid": os.getpid()})

    def listen() -> None:
        for line in sys.stdin:
            threading.Thread(target=answer, args=(manager, json.loads(line), say), daemon=True).start()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    manager.end()


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
