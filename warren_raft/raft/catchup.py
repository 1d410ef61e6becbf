"""Snapshots as consensus sees them: when to take one, how far to compact the log, sending snapshots and fetching them.

Lives here: the decisions. Not here: the files, their checks and the state (the `Snapshots` that it is given, see
snapshots/keeper.py; its slow work runs in a worker), and replacing the state by a fetched one (installation.py).
Invariant: the log reaches back to each verified snapshot that is held, as long as one or two are held.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from warren_raft.errors import SnapshotInvalid
from warren_raft.raft.context import Context
from warren_raft.raft.effects import Then
from warren_raft.raft.guard import Guard
from warren_raft.raft.leading import Leading
from warren_raft.raft.log.contents import BASE_INDEX
from warren_raft.raft.messages import (
    CHUNK_BYTES_MAX,
    PeerFault,
    SnapshotChunk,
    SnapshotGet,
    SnapshotGone,
    SnapshotOffer,
    SnapshotWanted,
)
from warren_raft.raft.replacement import Phase
from warren_raft.raft.snapshots import Snapshot, Snapshots
from warren_raft.raft.state_machine import StateMachine
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

CHUNK_BYTES: Final = CHUNK_BYTES_MAX
"""A chunk shares its link with heartbeats and entries; a link of 10 MB/s is busy with it for 25 ms. Whole pages."""
OFFER_SECONDS: Final = 1.0
"""A leader repeats its offer at this interval, until the follower has caught up."""
ASK_AGAIN_SECONDS: Final = 3.0
"""A chunk that has not come after this time is asked for again: the holder may have been restarted."""
ASK_AGAIN_LATEST_SECONDS: Final = 60.0
"""While parts of any large message arrive from the holder, the chunk may be on its way behind them. Asking again would
only send it twice: at 64 KiB/s a chunk takes four seconds. After this time it is asked for again in any case."""
GIVE_UP_SECONDS: Final = 10.0
"""If a holder has sent nothing for this long, another may replace it. The fetched bytes stay, see `incoming`."""
PINNED_SECONDS: Final = 60.0
"""A snapshot is kept for a follower for this long after the follower last asked for a chunk of it."""
BEGINNINGS_MAX: Final = 3
"""So often a follower may begin with one snapshot and have it kept for each new chunk: the bytes that it had fetched
may have been damaged, or lost in a power cut. A follower that begins again and again would make the log grow."""
ASKED_FOR_SECONDS: Final = 30.0
"""A follower may ask for a snapshot that it was not offered once in this time: one may have to be taken for it."""
RETRY_SECONDS: Final = 10.0
"""The pause after a snapshot could not be taken, or a fetched one was refused or found no space left."""
FORGOTTEN_SECONDS: Final = 3 * RETRY_SECONDS
"""If a snapshot that found no space left was not tried again for this long, it is not wanted any more."""
STAGGER_STEPS: Final = 16
"""Managers apply the same entries, and would all take their snapshots at the same moment. Depending on its id, each
waits for up to half as much log again, so that a majority is not busy at the same time."""
CHECK_BYTES: Final = 16
SNAPSHOTS_KEPT: Final = 2


@dataclass(slots=True)
class _Fetch:
    """One snapshot on its way to this manager."""

    peer: str
    sha256: str
    index: int
    size: int
    offset: int
    asked_at: float
    heard_at: float
    is_resumed: bool
    """Its first bytes are of an interrupted fetch. A power cut since then may have taken some of them."""
    parts_at: float = -1e9
    """When parts of a large message last arrived from the holder."""
    busy: bool = False
    """A chunk is being written, or the whole file is being verified."""


@dataclass(slots=True)
class _Served:
    """How far a follower is with a snapshot."""

    offset: int
    """Of the newest chunk that it asked for."""
    beginnings: int = 1
    """How often it began, or went back."""


class Catchup:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, snapshots: Snapshots, leading: Leading) -> None:
        self.snapshots = snapshots
        self._node_id = context.node_id
        self._log = context.log
        self._roster = context.roster
        self._outbox = context.outbox
        self._alarms = context.alarms
        self._replacement = context.replacement
        self._taken_after_bytes = context.settings.snapshot_after_bytes
        self._leading = leading
        self.state_is_wrong = False
        """A copy of our own state failed its verification. Installation looks here, and resets it."""
        self.fetched: StateMachine | None = None
        """A state that was made from a leader's snapshot. Installation takes it from here."""
        self._stagger = 1 + zlib.crc32(context.node_id.encode()) % STAGGER_STEPS / (2 * STAGGER_STEPS)
        self._now = -1e9
        self._applied_index = 0
        self._bytes = 0
        """Bytes of the commands that were applied since the newest snapshot."""
        self._taking = self._owed = False
        self._not_before = -1e9
        self._offered: dict[str, float] = {}
        self._pins: dict[str, tuple[Snapshot, float]] = {}
        """Follower -> the snapshot that it fetches, and when it last asked for a new chunk."""
        self._with_wrong_state: set[str] = set()
        """Followers that were offered a snapshot because their state is wrong. They may have every entry of our log
        already, so their logs do not show when they have the snapshot."""
        self._served: dict[tuple[str, str], _Served] = {}
        """(follower, sha256 of a held snapshot) -> how far it is."""
        self._asked_for: dict[str, float] = {}
        """Follower -> when it last asked for a snapshot that it was not offered."""
        self._reading: dict[str, Then] = {}
        """Follower that waits, on its present link, for a chunk that is being read -> the function that sends it."""
        self._refused: dict[str, float] = {}
        self._wanted_by: dict[str, int] = {}
        """Follower with a wrong state that was not offered a snapshot since it said so -> the index at which
        its log begins. A snapshot that ends before that index is useless for it."""
        self._epoch = 0
        """How often the state was replaced."""
        self._wanted_at = -1e9
        self._received: Snapshot | None = None
        """The fetched snapshot that is about to replace our state. It is held once the log goes on from it."""
        self.fetch: _Fetch | None = None

    def count_log(self, applied_index: int) -> None:
        """Count the bytes that the log holds beyond the newest snapshot. Called at the start, and after the state was
        replaced."""
        newest = self.snapshots.held[0].index if self.snapshots.held else 0
        base = self._log.base_index
        first, last = max(newest, base) + 1, min(applied_index, self._log.last_index)
        self._bytes = sum(len(self._log.entries[index - base][0]) for index in range(first, last + 1))

    def applied(self, command_bytes: int) -> None:
        self._bytes += command_bytes

    # One step ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, guard: Guard, *, applied_index: int, leader: str | None, may_take: bool = True) -> None:
        """`leader`: the manager that we follow; None: we lead, or know no leader. `may_take`: False while our state is
        wrong, or is about to be replaced."""
        self._now = now
        self._applied_index = applied_index
        if guard.core.is_leader:
            needed_by = guard.followers.needs_snapshot | self._wanted_by.keys()
        else:
            needed_by = set()
            self._wanted_by.clear()
        if may_take and self._is_due(is_needed=bool(needed_by)):
            self._take()
        for peer in sorted(needed_by):
            self._offer(peer)
        self._unpin(guard)
        self._look_after_fetch()
        if self._is_wanted and not self.is_served and leader is not None and now - self._wanted_at >= RETRY_SECONDS:
            self._wanted_at = now
            self._outbox.send(leader, SnapshotWanted(self._log.base_index))

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is being taken, served or fetched, or will be soon."""
        is_taking = self._taking or self._owed
        return is_taking or bool(self._pins or self._reading or self._wanted_by or self.fetch or self._received)

    @property
    def _is_wanted(self) -> bool:
        """Whether any snapshot of the leader is welcome, because our state is wrong and we cannot rebuild it."""
        return self._replacement.phase is Phase.WANTED

    @property
    def is_served(self) -> bool:
        """Whether another manager's snapshot is on its way here, or is about to replace our state."""
        return self.fetch is not None or self._received is not None

    # Taking ------------------------------------------------------------------------------------------------------

    def _is_due(self, *, is_needed: bool) -> bool:
        if self._taking or self._now < self._not_before:
            return False
        if self._owed:
            return True
        newest = self._sendable()
        if newest is None and (is_needed or self._log.base_index > BASE_INDEX):
            return True  # a follower waits for a snapshot; or all were damaged, and the log does not reach back
        lacking = [index for index in self._wanted_by.values() if index <= self._applied_index]
        if newest is not None and any(newest.index < index for index in lacking):
            return True  # our newest snapshot ends before the log of a follower that needs one
        if self._bytes <= self._stagger * self._taken_after_bytes:
            return False
        return self._bytes > self._stagger * self.snapshots.state_bytes()

    def _take(self) -> None:
        counted, epoch = self._bytes, self._epoch
        self._taking = True

        def taken(snapshot: Snapshot, error: Exception | None) -> None:
            self._taking = False
            if epoch != self._epoch:
                if error is None:
                    self.snapshots.drop(snapshot)  # its state was replaced meanwhile, and may have been wrong
                return
            self._owed = error is not None  # due again even if the state has grown beyond the log meanwhile
            if error is not None:
                self._not_before = self._now + RETRY_SECONDS
                self._alarms.raise_alarm("snapshot-not-taken", f"no snapshot could be taken: {error}")
                if isinstance(error, SnapshotInvalid):
                    self.state_is_wrong = True
                return
            self._alarms.clear_alarm("snapshot-not-taken")
            self._bytes -= counted
            self._hold(snapshot)

        self._outbox.work(self.snapshots.take(quorum=self._leading.has_quorum), taken)

    def _hold(self, snapshot: Snapshot) -> None:
        self.snapshots.took(snapshot, {pinned.sha256 for pinned, _ in self._pins.values()})
        held = self.snapshots.held
        if len(held) >= SNAPSHOTS_KEPT:
            # Back to the oldest: if the newer snapshot turns out damaged, the state is rebuilt from the oldest.
            self._log.drop_prefix(min(self._applied_index, *(each.index for each in held)))

    # Sending -----------------------------------------------------------------------------------------------------

    def _sendable(self) -> Snapshot | None:
        """The newest snapshot, if our log goes on from its end."""
        held = self.snapshots.held
        return held[0] if held and held[0].index >= self._log.base_index else None

    def _offer(self, peer: str) -> None:
        wanted = self._wanted_by.get(peer, 0)
        snapshot = self._fetched_by(peer)
        if snapshot is None or snapshot.index < wanted:  # what it fetches is of no use to it any more
            snapshot = self._sendable()
        if snapshot is None or not self._roster.counts(peer) or snapshot.index < wanted:
            return
        if self._roster.is_leaving(peer):
            return  # the snapshot may contain the peer's removal, which it must not have before it may stop
        if self._now - self._offered.get(peer, -1e9) < OFFER_SECONDS:
            return
        self._offered[peer] = self._now
        if self._wanted_by.pop(peer, None) is None:
            self._with_wrong_state.discard(peer)  # it is behind, so its log shows when it has the snapshot
        else:
            self._with_wrong_state.add(peer)
        self._outbox.send(
            peer,
            SnapshotOffer(sha256=snapshot.sha256, index=snapshot.index, size=snapshot.file_bytes),
        )

    def on_snapshot_get(self, peer: str, message: SnapshotGet) -> None:
        """A follower wants the next chunk. It asks for one chunk at a time, so a slow follower slows only itself."""
        sha256, offset = message.sha256, message.offset
        snapshot = next((each for each in self.snapshots.held if each.sha256 == sha256), None)
        if snapshot is None or offset >= snapshot.file_bytes or peer not in self._offered:
            self._outbox.send(peer, SnapshotGone(sha256))
            return
        has_begun = (peer, sha256) in self._served
        self._pin(peer, snapshot, offset)
        if peer in self._reading:
            return

        def read(data: bytes, error: Exception | None) -> None:
            if self._reading.get(peer) is not read:
                return  # the request came over an earlier link; the present link may belong to another process
            del self._reading[peer]
            if error is not None:
                text = f"a snapshot cannot be read for {peer}: {error}"
                self._alarms.raise_alarm("snapshot-unreadable", text, subject=peer, ends_after_seconds=PINNED_SECONDS)
                self._outbox.send(peer, SnapshotGone(sha256))
                return
            self._alarms.clear_alarm("snapshot-unreadable", peer)
            chunk = SnapshotChunk(sha256=sha256, offset=offset, data=data, check=check(data))
            self._outbox.send(peer, chunk)

        self._reading[peer] = read
        in_vain = offset == 0 and has_begun
        self._outbox.work(self.snapshots.read(sha256, offset, CHUNK_BYTES, again=in_vain), read)

    def _pin(self, peer: str, snapshot: Snapshot, offset: int) -> None:
        """Keep the snapshot and the log behind it, as long as the follower asks for new chunks. A follower that asks
        for the same chunk again and again would make the log grow for ever."""
        held = {each.sha256 for each in self.snapshots.held}
        self._served = {of: served for of, served in self._served.items() if of[1] in held}
        served = self._served.get((peer, snapshot.sha256))
        if served is None:
            self._served[peer, snapshot.sha256] = _Served(offset)
        elif offset > served.offset:
            served.offset = offset
        elif offset < served.offset and served.beginnings < BEGINNINGS_MAX:
            served.offset, served.beginnings = offset, served.beginnings + 1
        else:
            return
        self._pins[peer] = (snapshot, self._now)

    def _unpin(self, guard: Guard) -> None:
        """Snapshots and the log do not wait any more for a follower that has the snapshot, or that asks no more."""
        for peer, (snapshot, since) in list(self._pins.items()):
            is_there = guard.match_index(peer) >= snapshot.index and peer not in self._with_wrong_state
            if is_there or self._now - since >= PINNED_SECONDS:
                del self._pins[peer]

    def _fetched_by(self, peer: str) -> Snapshot | None:
        """The snapshot that the follower has a part of, if it is still held, and our log goes on from its end."""
        if peer not in self._pins:
            return None
        snapshot, _ = self._pins[peer]
        is_useful = snapshot in self.snapshots.held and snapshot.index >= self._log.base_index
        return snapshot if is_useful else None

    def on_snapshot_wanted(self, peer: str, index: int) -> None:
        """A follower found that its own state is wrong, and could not rebuild it; its log begins at `index`."""
        fetched = self._fetched_by(peer)
        goes_on = fetched is not None and fetched.index >= index  # its fetch was interrupted
        if goes_on or self._now - self._asked_for.get(peer, -1e9) >= ASKED_FOR_SECONDS:
            self._asked_for[peer] = self._now
            self._wanted_by[peer] = index

    def link_down(self, peer: str) -> None:
        self._offered.pop(peer, None)
        self._reading.pop(peer, None)
        if self.fetch is not None and self.fetch.peer == peer and not self.fetch.busy:
            self.fetch = None  # the fetched bytes stay, for the case that the snapshot is offered again

    # Fetching ----------------------------------------------------------------------------------------------------

    def on_snapshot_offer(self, peer: str, message: SnapshotOffer) -> None:
        """The leader offers a snapshot, because our log ends before its log begins."""
        sha256, index = message.sha256, message.index
        if self._received is not None or (index <= self._applied_index and not self._is_wanted):
            return
        if self._now < self._refused.get(sha256, -1e9) + RETRY_SECONDS:
            return
        fetch = self.fetch
        if fetch is not None and (fetch.sha256 == sha256 or fetch.busy or self._now - fetch.heard_at < GIVE_UP_SECONDS):
            return
        known, have = self.snapshots.incoming
        offset = have - have % CHUNK_BYTES if known == sha256 else 0
        size = message.size
        self.fetch = _Fetch(peer, sha256, index, size, min(offset, size), self._now, self._now, is_resumed=offset > 0)
        if self.fetch.offset == self.fetch.size:
            self._open(self.fetch)
        else:
            self._ask(self.fetch)

    def _ask(self, fetch: _Fetch) -> None:
        fetch.asked_at = self._now
        self._outbox.send(fetch.peer, SnapshotGet(sha256=fetch.sha256, offset=fetch.offset))

    def on_snapshot_chunk(self, peer: str, message: SnapshotChunk) -> None:
        """A chunk arrived. Raises PeerFault if it is damaged or has a wrong length."""
        fetch = self.fetch
        if fetch is None or fetch.busy or (peer, message.sha256) != (fetch.peer, fetch.sha256):
            return
        offset, data = message.offset, message.data
        if offset != fetch.offset:
            return  # the chunk was asked for twice
        if message.check != check(data):
            raise PeerFault(f"a snapshot's chunk at offset {offset} was damaged on its way")
        if len(data) != min(CHUNK_BYTES, fetch.size - offset):
            raise PeerFault(f"a snapshot's chunk at offset {offset} has a wrong length, {len(data)} bytes")
        fetch.busy = True
        fetch.heard_at = self._now

        def written(_result: object, error: Exception | None) -> None:
            fetch.busy = False
            if self.fetch is not fetch:
                return
            if error is not None:
                self._give_up(fetch, f"a chunk of the snapshot of {fetch.peer} cannot be saved: {error}")
                return
            fetch.offset += len(data)
            if fetch.offset == fetch.size:
                self._open(fetch)
            elif self._roster.may_serve(fetch.peer):
                self._ask(fetch)
            else:
                self.fetch = None  # the link broke meanwhile

        self._outbox.work(self.snapshots.receive(fetch.sha256, offset, data, fetch.size), written)

    def arriving(self, peer: str, now: float) -> None:
        """Parts of a large message arrive from a peer."""
        if self.fetch is not None and self.fetch.peer == peer:
            self.fetch.parts_at = now

    def on_snapshot_gone(self, peer: str, message: SnapshotGone) -> None:
        """The holder does not have the snapshot any more; it will offer another one."""
        if self.fetch is not None and (self.fetch.peer, self.fetch.sha256) == (peer, message.sha256):
            self.fetch = None

    def _open(self, fetch: _Fetch) -> None:
        fetch.busy = True

        def opened(result: tuple[Snapshot, StateMachine], error: Exception | None) -> None:
            fetch.busy = False
            if error is not None:
                if isinstance(error, SnapshotInvalid):
                    self.snapshots.drop_incoming()
                    if fetch.is_resumed:
                        self._fetch_anew(fetch, error)
                        return
                self._give_up(fetch, f"the snapshot of {fetch.peer} cannot replace the state: {error}")
                return
            self._alarms.clear_alarm("snapshot-not-installed")
            self.fetch = None
            snapshot, machine = result
            self._received = snapshot
            self.fetched = machine

        self._outbox.work(self.snapshots.open_incoming(fetch.sha256, self._roster.cluster_id), opened)

    def installed(self, applied_index: int, *, own_are_wrong: bool) -> None:
        """The state was replaced. `own_are_wrong`: so are the snapshots that were taken of the old state."""
        self._epoch += 1
        self._applied_index = applied_index
        received, self._received = self._received, None
        if received is not None:
            if own_are_wrong:
                self.snapshots.drop_held(received)
            self._hold(received)
        if self.fetch is not None and not self.fetch.busy:
            # Its chunk may have come, and was dropped, while the state was replaced. If this state is still behind, the
            # leader offers its snapshot again within a second.
            self.fetch = None
        self.count_log(applied_index)

    def not_installed(self) -> None:
        self._received = None

    def _fetch_anew(self, fetch: _Fetch, error: SnapshotInvalid) -> None:
        """The file has bytes of an interrupted fetch, which may be wrong although the offered snapshot is right."""
        text = f"the snapshot of {fetch.peer} is fetched again from its beginning: {error.detail}"
        log_event(logger, logging.WARNING, "fetched snapshot damaged", text, node=self._node_id, peer=fetch.peer)
        if self._roster.may_serve(fetch.peer):
            fetch.offset, fetch.is_resumed = 0, False
            self._ask(fetch)
        else:
            self.fetch = None  # the link broke meanwhile

    def _give_up(self, fetch: _Fetch, reason: str) -> None:
        """Stop this fetch for now. A disk may have no space left for days, so there is one alarm with the newest
        figures, until there is enough space."""
        self._refused = {fetch.sha256: self._now}
        self.fetch = None
        self._alarms.raise_alarm("snapshot-not-installed", reason)

    def _look_after_fetch(self) -> None:
        fetch = self.fetch
        if self._refused and max(self._refused.values()) + FORGOTTEN_SECONDS < self._now:
            self._refused = {}
            self._alarms.clear_alarm("snapshot-not-installed")  # not offered any more: we caught up by other means
        if fetch is None or fetch.busy:
            return
        patience = ASK_AGAIN_SECONDS
        if self._now - fetch.parts_at < ASK_AGAIN_SECONDS:
            patience = ASK_AGAIN_LATEST_SECONDS
        if self._now - fetch.asked_at < patience:
            return
        if self._now - fetch.heard_at >= GIVE_UP_SECONDS and not self._roster.may_serve(fetch.peer):
            self.fetch = None  # the fetched bytes stay, for the case that the snapshot is offered again
        else:
            self._ask(fetch)


def check(data: bytes) -> bytes:
    """The short hash that goes with a chunk. The file's SHA-256 verifies the whole; this hash shows damage early, and
    where it is."""
    return blake2b(data, digest_size=CHECK_BYTES).digest()
