"""Snapshots as consensus sees them: when to take one, how far the log is cut, who is sent one and who fetches.

Decides; the files, their checks and the state are the `Snapshots` that it is given (snapshots/keeper.py), whose slow
work runs in a worker. Not here: putting a fetched state in the place of the present one (installation.py).
Invariant: the log keeps reaching back to every verified snapshot that is held, as long as only one or two are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol

from warren_raft.alarms import Alarms
from warren_raft.errors import SnapshotInvalid
from warren_raft.raft.effects import Job, Then
from warren_raft.raft.guard import Guard
from warren_raft.raft.log import Log
from warren_raft.raft.log_contents import BASE_INDEX
from warren_raft.raft.messages import (
    CHUNK_BYTES_MAX,
    Message,
    PeerFault,
    SnapshotChunk,
    SnapshotGet,
    SnapshotGone,
    SnapshotOffer,
    SnapshotWanted,
)
from warren_raft.raft.roster import Roster

CHUNK_BYTES: Final = CHUNK_BYTES_MAX
"""A chunk shares its link with heartbeats and entries; a link of 10 MB/s is busy with it for 25 ms. Whole pages."""
OFFER_SECONDS: Final = 1.0
"""A leader repeats its offer so often, until the follower has caught up."""
ASK_AGAIN_SECONDS: Final = 3.0
"""A chunk that was asked for and has not come by then is asked for again: the holder may have been restarted."""
ASK_AGAIN_LATEST_SECONDS: Final = 60.0
"""While parts of anything large arrive from the holder a chunk may be on its way behind them, and to ask for it again
would only double it: at 64 KiB/s one takes four seconds. At the latest it is asked for again after this."""
GIVE_UP_SECONDS: Final = 10.0
"""A holder that has sent nothing for so long may be replaced by another. What was fetched stays, see `incoming`."""
PINNED_SECONDS: Final = 60.0
"""A snapshot is kept for a follower that last asked for a chunk so long ago."""
ASKED_FOR_SECONDS: Final = 30.0
"""A follower may ask so often for a snapshot that it was not offered: one may have to be taken for it."""
RETRY_SECONDS: Final = 10.0
"""After a snapshot could not be taken, or a fetched one was refused or found no room."""
FORGOTTEN_SECONDS: Final = 3 * RETRY_SECONDS
"""A snapshot that found no room and was not tried again for so long is not wanted any more."""
TAKEN_AFTER_BYTES: Final = 32 * 1024 * 1024
"""A snapshot is not worth its writing before the log has grown by so much, or by the size of the
state in the last one if that is more."""
STAGGER_STEPS: Final = 16
"""Managers apply the same, and would take their snapshots all at the same moment. By its id, each waits for up to half
as much log again, so that a majority is not busy with it at once."""
CHECK_BYTES: Final = 16
SNAPSHOTS_KEPT: Final = 2


class Snapshot(Protocol):
    """One verified snapshot file. `sha256` names it; `file_bytes` is what is sent."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def file_bytes(self) -> int: ...


class Snapshots(Protocol):
    """What there is of snapshots on this manager. The jobs are for a worker thread, the rest for the raft thread.

    Jobs raise OSError, StorageFull, SnapshotInvalid, Corrupted; a job of one kind runs once at a time.
    """

    @property
    def held(self) -> Sequence[Snapshot]:
        """Verified snapshots, the newest first. What is found damaged or missing disappears at any time."""

    @property
    def incoming(self) -> tuple[str, int]:
        """(sha256, bytes) of the file that is being fetched, or was when this manager last ran."""

    def state_bytes(self) -> int:
        """The size of the newest snapshot's state; 0 before the first."""

    def take(self, *, quorum: bool) -> Job:
        """Writes and verifies one, and returns it."""

    def took(self, snapshot: Any, pinned: set[str]) -> None:
        """Hold what `take` returned, or what was fetched; of the others keep the newest and those that are pinned."""

    def read(self, sha256: str, offset: int, size: int) -> Job: ...

    def receive(self, sha256: str, offset: int, data: bytes, size: int) -> Job:
        """Writes a chunk of the file of `size` bytes that is being fetched; offset 0 begins it anew."""

    def open_incoming(self, sha256: str, cluster_id: str | None) -> Job:
        """Verifies the fetched file in full, and returns (the snapshot, a state machine on a copy of it)."""

    def rebuild(self, log_holds: Callable[[int, int], bool]) -> Job:
        """A state machine on a copy of the newest good snapshot that ends at an (index, term) the log holds, or on
        nothing if the log reaches back to its start; Corrupted where there is neither."""

    def publish(self, machine: Any) -> Job:
        """Makes the state of `machine` the one that the next start opens."""

    def swap(self, machine: Any, why: str) -> None:
        """Readers see it from now on. `why`: a word under which the old one is kept for study; "": it was old."""

    def discard(self, machine: Any) -> None:
        """It is not wanted after all."""

    def drop(self, snapshot: Any) -> None:
        """What `take` returned is not wanted."""

    def drop_held(self, but: Any) -> None:
        """What is held is not to be used any more, except for what was fetched just now."""

    def drop_incoming(self) -> None:
        """Forget what was fetched."""


@dataclass(slots=True)
class _Fetch:
    """One snapshot on its way to us."""

    peer: str
    sha256: str
    index: int
    size: int
    offset: int
    asked_at: float
    heard_at: float
    parts_at: float = -1e9
    """When parts of something large last arrived from the holder."""
    busy: bool = False
    """A chunk is being written, or the whole is being verified."""


class Catchup:
    """Raft thread or simulator only."""

    def __init__(
        self,
        *,
        log: Log,
        roster: Roster,
        snapshots: Snapshots,
        send: Callable[[str, Message], None],
        work: Callable[[Job, Then], None],
        alarms: Alarms,
        install: Callable[[Any], None],
        has_quorum: Callable[[], bool],
        taken_after_bytes: int = TAKEN_AFTER_BYTES,
    ) -> None:
        self.snapshots = snapshots
        self._log = log
        self._roster = roster
        self._send = send
        self._work = work
        self._alarms = alarms
        self._install = install
        self._has_quorum = has_quorum
        self._stagger = 1 + zlib.crc32(log.node_id.encode()) % STAGGER_STEPS / (2 * STAGGER_STEPS)
        self._taken_after_bytes = taken_after_bytes
        self._now = -1e9
        self._applied_index = 0
        self._bytes = 0
        """Of commands that were applied since the newest snapshot."""
        self._taking = self._owed = False
        self._not_before = -1e9
        self._offered: dict[str, float] = {}
        self._pins: dict[str, tuple[Snapshot, float]] = {}
        """Follower -> what it is fetching, and when it last asked for a chunk."""
        self._served: dict[tuple[str, str], int] = {}
        """(follower, sha256) -> the highest offset that it asked for, of snapshots that are held."""
        self._asked_for: dict[str, float] = {}
        """Follower -> when it last asked for a snapshot that it was not offered."""
        self._reading: dict[str, Then] = {}
        """Who waits for a chunk that is being read, over the present link -> what is then done with it."""
        self._refused: dict[str, float] = {}
        self._wanted_by: dict[str, int] = {}
        """Followers whose own state is wrong, and which have not been offered a snapshot since they said so; each with
        where its log begins, as what ends before is of no use to it."""
        self._epoch = 0
        """How often the state was replaced."""
        self.state_is_wrong = False
        """A snapshot of our own state did not prove itself. For the engine, which resets it."""
        self._wanted_at = -1e9
        self._received: Any = None
        """The snapshot of the state that is being installed; held once the log goes on from it."""
        self.fetch: _Fetch | None = None
        self.wanted = False
        """This manager's state is wrong: whatever the leader has is to be fetched."""

    def count_log(self, applied_index: int) -> None:
        """At the start, and when the state was replaced: what the log holds beyond the newest snapshot."""
        newest = self.snapshots.held[0].index if self.snapshots.held else 0
        base = self._log.base_index
        first, last = max(newest, base) + 1, min(applied_index, self._log.last_index)
        self._bytes = sum(len(self._log.entries[index - base][0]) for index in range(first, last + 1))

    def applied(self, command_bytes: int) -> None:
        self._bytes += command_bytes

    # One step ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, guard: Guard, *, applied_index: int, leader: str | None, may_take: bool = True) -> None:
        """`leader`: whom we follow; None while we lead, or know of nobody. `may_take`: False while our state is wrong,
        or about to be replaced."""
        self._now = now
        self._applied_index = applied_index
        if guard.core.is_leader:
            needed_by = guard.needs_snapshot | self._wanted_by.keys()
        else:
            needed_by = set()
            self._wanted_by.clear()
        if may_take and self._is_due(is_needed=bool(needed_by)):
            self._take()
        for peer in sorted(needed_by):
            self._offer(peer)
        for peer, (snapshot, _) in list(self._pins.items()):
            if guard.match_index(peer) >= snapshot.index:
                del self._pins[peer]  # it has it; the log need not wait for it any more
        self._look_after_fetch()
        if self.wanted and not self.is_served and leader is not None and now - self._wanted_at >= RETRY_SECONDS:
            self._wanted_at = now
            self._send(leader, SnapshotWanted(self._log.base_index))

    @property
    def is_served(self) -> bool:
        """Whether another manager's snapshot is on its way here, or is being installed."""
        return self.fetch is not None or self._received is not None

    # Taking ------------------------------------------------------------------------------------------------------

    def _is_due(self, *, is_needed: bool) -> bool:
        if self._taking or self._now < self._not_before:
            return False
        if self._owed:
            return True
        newest = self._sendable()
        if newest is None and (is_needed or self._log.base_index > BASE_INDEX):
            return True  # a follower waits for one; or all of ours were damaged, and the log does not reach back
        lacking = [index for index in self._wanted_by.values() if index <= self._applied_index]
        if newest is not None and any(newest.index < index for index in lacking):
            return True  # what we have ends before the log of one who needs it
        if self._bytes <= self._stagger * self._taken_after_bytes:
            return False
        return self._bytes > self._stagger * self.snapshots.state_bytes()

    def _take(self) -> None:
        counted, epoch = self._bytes, self._epoch
        self._taking = True

        def taken(snapshot: Any, error: Exception | None) -> None:
            self._taking = False
            if epoch != self._epoch:
                if error is None:
                    self.snapshots.drop(snapshot)  # of a state that was replaced meanwhile, and may have been wrong
                return
            if isinstance(error, SnapshotInvalid):
                self.state_is_wrong = True  # a copy of it does not prove itself
            self._owed = error is not None  # due again even if the state has grown beyond the log meanwhile
            if error is not None:
                self._not_before = self._now + RETRY_SECONDS
                self._alarms.raise_alarm("snapshot-not-taken", f"no snapshot could be taken: {error}")
                return
            self._alarms.clear_alarm("snapshot-not-taken")
            self._bytes -= counted
            self._hold(snapshot)

        self._work(self.snapshots.take(quorum=self._has_quorum()), taken)

    def _hold(self, snapshot: Any) -> None:
        pinned = {each.sha256 for each, since in self._pins.values() if self._now - since < PINNED_SECONDS}
        self.snapshots.took(snapshot, pinned)
        held = self.snapshots.held
        if len(held) >= SNAPSHOTS_KEPT:
            # To the oldest: should the newer one turn out damaged, the state is rebuilt from that.
            self._log.drop_prefix(min(self._applied_index, *(each.index for each in held)))

    # Sending -----------------------------------------------------------------------------------------------------

    def _sendable(self) -> Snapshot | None:
        """The newest one, if our log goes on from there."""
        held = self.snapshots.held
        return held[0] if held and held[0].index >= self._log.base_index else None

    def _offer(self, peer: str) -> None:
        snapshot = self._sendable()
        if snapshot is None or not self._roster.counts(peer) or snapshot.index < self._wanted_by.get(peer, 0):
            return
        if self._roster.is_leaving(peer):
            return  # it may hold its own removal, which it must not have before it may go
        if self._now - self._offered.get(peer, -1e9) < OFFER_SECONDS:
            return
        self._offered[peer] = self._now
        self._wanted_by.pop(peer, None)
        pinned, since = self._pins.get(peer, (snapshot, self._now))
        if self._now - since < GIVE_UP_SECONDS and pinned in self.snapshots.held:
            snapshot = pinned  # it is fetching that one
        self._send(
            peer,
            SnapshotOffer(sha256=snapshot.sha256, index=snapshot.index, size=snapshot.file_bytes),
        )

    def asked(self, peer: str, message: SnapshotGet) -> None:
        """A follower wants the next chunk. It asks for one at a time, so whoever is slow slows only itself down."""
        sha256, offset = message.sha256, message.offset
        snapshot = next((each for each in self.snapshots.held if each.sha256 == sha256), None)
        if snapshot is None or offset >= snapshot.file_bytes or peer not in self._offered:
            self._send(peer, SnapshotGone(sha256))
            return
        self._pin(peer, snapshot, offset)
        if peer in self._reading:
            return

        def read(data: Any, error: Exception | None) -> None:
            if self._reading.get(peer) is not read:
                return  # it was asked for over an earlier link, and the next one may be another process's
            del self._reading[peer]
            if error is not None:
                text = f"a snapshot cannot be read for {peer}: {error}"
                self._alarms.raise_alarm("snapshot-unreadable", text, subject=peer, ends_after_seconds=PINNED_SECONDS)
                self._send(peer, SnapshotGone(sha256))
                return
            self._alarms.clear_alarm("snapshot-unreadable", peer)
            chunk = SnapshotChunk(sha256=sha256, offset=offset, data=data, check=check(data))
            self._send(peer, chunk)

        self._reading[peer] = read
        self._work(self.snapshots.read(sha256, offset, CHUNK_BYTES), read)

    def _pin(self, peer: str, snapshot: Snapshot, offset: int) -> None:
        """Keep it, and the log behind it, while the follower gets on: one that asks for the same again and again would
        make the log grow for ever."""
        held = {each.sha256 for each in self.snapshots.held}
        self._served = {of: highest for of, highest in self._served.items() if of[1] in held}
        if offset > self._served.get((peer, snapshot.sha256), -1):
            self._served[peer, snapshot.sha256] = offset
            self._pins[peer] = (snapshot, self._now)

    def asked_for_snapshot(self, peer: str, index: int) -> None:
        """A follower found its own state wrong, and could not mend it by itself; its log begins at `index`."""
        if self._now - self._asked_for.get(peer, -1e9) >= ASKED_FOR_SECONDS:
            self._asked_for[peer] = self._now
            self._wanted_by[peer] = index

    def link_down(self, peer: str) -> None:
        self._offered.pop(peer, None)
        self._reading.pop(peer, None)
        if self.fetch is not None and self.fetch.peer == peer and not self.fetch.busy:
            self.fetch = None  # what there is of it stays, should it be offered again

    # Fetching ----------------------------------------------------------------------------------------------------

    def offered(self, peer: str, message: SnapshotOffer) -> None:
        """The leader's word that our log ends before its own begins."""
        sha256, index = message.sha256, message.index
        if self._received is not None or (index <= self._applied_index and not self.wanted):
            return
        if self._now < self._refused.get(sha256, -1e9) + RETRY_SECONDS:
            return
        fetch = self.fetch
        if fetch is not None and (fetch.sha256 == sha256 or fetch.busy or self._now - fetch.heard_at < GIVE_UP_SECONDS):
            return
        known, have = self.snapshots.incoming
        offset = have - have % CHUNK_BYTES if known == sha256 else 0
        size = message.size
        self.fetch = _Fetch(peer, sha256, index, size, min(offset, size), self._now, self._now)
        if self.fetch.offset == self.fetch.size:
            self._open(self.fetch)
        else:
            self._ask(self.fetch)

    def _ask(self, fetch: _Fetch) -> None:
        fetch.asked_at = self._now
        self._send(fetch.peer, SnapshotGet(sha256=fetch.sha256, offset=fetch.offset))

    def received(self, peer: str, message: SnapshotChunk) -> None:
        """A chunk. Raises PeerFault for one that cannot be."""
        fetch = self.fetch
        if fetch is None or fetch.busy or (peer, message.sha256) != (fetch.peer, fetch.sha256):
            return
        offset, data = message.offset, message.data
        if offset != fetch.offset:
            return  # the answer to a question that was asked twice
        if message.check != check(data):
            raise PeerFault(f"a snapshot's chunk at {offset} that was damaged on its way")
        if len(data) != min(CHUNK_BYTES, fetch.size - offset):
            raise PeerFault(f"a snapshot's chunk of {len(data)} bytes at {offset}")
        fetch.busy = True
        fetch.heard_at = self._now

        def written(_result: Any, error: Exception | None) -> None:
            fetch.busy = False
            if self.fetch is not fetch:
                return
            if error is not None:
                self._give_up(fetch, f"a snapshot cannot be received: {error}")
                return
            fetch.offset += len(data)
            if fetch.offset == fetch.size:
                self._open(fetch)
            elif self._roster.may_serve(fetch.peer):
                self._ask(fetch)
            else:
                self.fetch = None  # its link went meanwhile

        self._work(self.snapshots.receive(fetch.sha256, offset, data, fetch.size), written)

    def arriving(self, peer: str, now: float) -> None:
        """Parts of something large arrive from a peer."""
        if self.fetch is not None and self.fetch.peer == peer:
            self.fetch.parts_at = now

    def gone(self, peer: str, message: SnapshotGone) -> None:
        """The holder has it no more; the next offer is of another one."""
        if self.fetch is not None and (self.fetch.peer, self.fetch.sha256) == (peer, message.sha256):
            self.fetch = None

    def _open(self, fetch: _Fetch) -> None:
        fetch.busy = True

        def opened(result: Any, error: Exception | None) -> None:
            fetch.busy = False
            if error is not None:
                if isinstance(error, SnapshotInvalid):
                    self.snapshots.drop_incoming()
                self._give_up(fetch, f"the snapshot of {fetch.peer} is not installed: {error}")
                return
            self._alarms.clear_alarm("snapshot-not-installed")
            self.fetch = None
            snapshot, machine = result
            self._received = snapshot
            self._install(machine)

        self._work(self.snapshots.open_incoming(fetch.sha256, self._roster.cluster_id), opened)

    def installed(self, applied_index: int) -> None:
        """The state in use is another one now."""
        self._epoch += 1
        self._applied_index = applied_index
        received, self._received = self._received, None
        if received is not None:
            if self.wanted:
                self.snapshots.drop_held(received)  # they were taken of the state that was wrong
            self.wanted = False
            self._hold(received)
        self.count_log(applied_index)

    def not_installed(self) -> None:
        self._received = None

    def _give_up(self, fetch: _Fetch, reason: str) -> None:
        """For now. A disk that is full may be so for days: one alarm, with the newest figures, until it has room."""
        self._refused = {fetch.sha256: self._now}
        self.fetch = None
        self._alarms.raise_alarm("snapshot-not-installed", reason)

    def _look_after_fetch(self) -> None:
        fetch = self.fetch
        if self._refused and max(self._refused.values()) + FORGOTTEN_SECONDS < self._now:
            self._refused = {}
            self._alarms.clear_alarm("snapshot-not-installed")  # it is offered no more: we caught up by other means
        if fetch is None or fetch.busy:
            return
        patience = ASK_AGAIN_SECONDS
        if self._now - fetch.parts_at < ASK_AGAIN_SECONDS:
            patience = ASK_AGAIN_LATEST_SECONDS
        if self._now - fetch.asked_at < patience:
            return
        if self._now - fetch.heard_at >= GIVE_UP_SECONDS and not self._roster.may_serve(fetch.peer):
            self.fetch = None  # what there is of it stays, should it be offered again
        else:
            self._ask(fetch)


def check(data: bytes) -> bytes:
    """What goes with a chunk: the whole is proved by its SHA-256, this tells early, and where."""
    return blake2b(data, digest_size=CHECK_BYTES).digest()
