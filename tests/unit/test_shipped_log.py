"""The promise: a snapshot and the files of the continuous backup beside it give back exactly every revision up to the
last mark. Every gap, damage, stranger and second history is found and said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fsm_harness import command, put
from tests.snapshot_support import NOON, small_state, snapshot_of
from warren_raft.disk.files import OS_FILES
from warren_raft.errors import RefusedForSafety, SnapshotInvalid
from warren_raft.fsm.machine import StateMachine
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.model.entities import Node
from warren_raft.raft import entries
from warren_raft.raft.log.contents import Entry
from warren_raft.recovery import shipped_log
from warren_raft.recovery.replay import ToRevision
from warren_raft.recovery.restore import Restored, restore
from warren_raft.recovery.shipped_log import Contents, Header, Mark, ShippedFile, names_in
from warren_raft.store.database import Database
from warren_raft.store.tables import NODE

MEMBERS = {"n1": "127.0.0.1:7946"}
TERM = 5


class World:
    """A leader that applies entries and writes them to the directory of its backups."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.machine = StateMachine(database)
        self.directory = directory
        directory.mkdir()
        self.base = directory / "warren-20261122T120000Z-0000000000000000.mdb"
        self.old = snapshot_of(database, self.base)
        self.now = NOON
        self.nodes: dict[int, set[str]] = {self.machine.revision: {node.id for node in self._nodes()}}
        """The ids of the nodes, by revision."""
        self.entries: list[Entry] = []
        self.marks: list[Mark] = []

    def _nodes(self) -> Sequence[Node]:
        with self.machine.database.read() as transaction:
            return [Node(id=key.decode()) for key, _ in transaction.items(NODE)]

    def write(self, *ids: str, term: int = TERM) -> None:
        """One entry with one command for each node."""
        commands = [command(put(Node(id=id_))) for id_ in ids]
        index = self.machine.applied_index + 1
        for id_ in ids:
            newest = max(self.nodes)
            self.nodes[newest + 1] = self.nodes[newest] | {id_}
        self.machine.apply(index, term, commands)
        self.entries.append((entries.encode_commands(commands) if ids else entries.NO_OP, index, term))
        self.now += timedelta(seconds=1)
        found = self.machine.committed
        self.marks.append(Mark(found.applied_index, found.revision, found.digest, self.now))

    def ship(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        cluster_id: str = "cluster-1",
        node_id: str = "n1",
        each: int = 1,
    ) -> Path:
        """A file with some of the entries, by their places, and a mark behind each, or behind every `each`."""
        chosen = range(len(self.entries))[first:last]
        before = self.entries[first - 1][2] if first else self.old.term
        self.now += timedelta(seconds=1)
        header = Header(
            cluster_id=cluster_id, node_id=node_id, first_index=self.entries[first][1], previous_term=before
        )
        file = ShippedFile(str(self.directory), header, now=self.now, files=OS_FILES)
        waiting: list[Entry] = []
        for place in chosen:
            waiting.append(self.entries[place])
            if len(waiting) == each or place == chosen[-1]:
                file.append(waiting, self.marks[place])
                waiting = []
        file.close()
        return Path(file.path)

    def restored(self, to_revision: ToRevision, name: str = "") -> tuple[Restored, set[str]]:
        directory = self.directory.parent / f"restored-{to_revision}{name}"
        made = restore(self.base, directory, node_id="n1", members=MEMBERS, to_revision=to_revision)
        with ReadOnlyStore(directory) as store:
            return made, {node.id for node in store.list_nodes()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_state(tmp_path / "data", containers=3) as database:
        yield World(database, tmp_path / "backups")


def fill(world: World) -> None:
    """Entries with one command, with several, and with none."""
    world.write("a")
    world.write("b", "c", "d")
    world.write()
    world.write("e", term=TERM + 1)
    world.write("f", "g", term=TERM + 1)


# ---- to any revision


def test_every_revision_comes_back_exactly_also_in_the_middle_of_an_entry(world: World) -> None:
    fill(world)
    world.ship(0, 3, each=2)
    world.ship(3, node_id="n2")
    for revision, ids in world.nodes.items():
        made, found = world.restored(revision)
        assert found == ids
        assert made.replayed is not None
        assert made.replayed.revision == revision
        assert made.revision == revision + 1_000_000_000


def test_the_last_one_is_the_newest_mark(world: World) -> None:
    fill(world)
    paths = world.ship(0, 3), world.ship(3)
    made, found = world.restored("last")
    assert found == world.nodes[max(world.nodes)]
    assert made.replayed is not None
    assert made.replayed.files == tuple(map(str, paths))
    assert (made.replayed.index, made.replayed.revision) == (world.marks[-1].index, world.marks[-1].revision)
    assert made.replayed.until == world.marks[-1].at
    assert made.old == world.old


def test_the_last_one_is_refused_if_no_files_were_copied(world: World) -> None:
    with pytest.raises(RefusedForSafety, match="copy them too, or leave --to-revision out"):
        world.restored("last")


def test_the_last_one_is_refused_if_a_later_backup_is_there(world: World) -> None:
    fill(world)
    world.ship(0, 2)
    later = world.directory / f"warren-20300101T000000Z-{world.marks[-1].index:016d}.mdb"
    snapshot_of(world.machine.database, later)
    with pytest.raises(RefusedForSafety, match="is a later backup, of index"):
        world.restored("last")


def test_files_of_two_leaders_may_overlap(world: World) -> None:
    fill(world)
    world.ship(0, 4)
    world.ship(1, 3, node_id="n2")
    world.ship(2, node_id="n3")
    assert world.restored("last")[1] == world.nodes[max(world.nodes)]


def test_members_that_replay_the_same_changes_form_one_cluster_and_others_do_not(world: World) -> None:
    fill(world)
    world.ship()
    newest = max(world.nodes)
    ids = [world.restored(to, str(name))[0].cluster_id for name, to in enumerate((newest, newest, newest - 1))]
    assert ids[0] == ids[1] != ids[2]
    plain = restore(world.base, world.directory.parent / "plain", node_id="n1", members=MEMBERS)
    assert plain.cluster_id not in ids
    assert plain.replayed is None


def test_of_the_files_from_before_the_snapshot_only_the_last_ones_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day of them may be there. One that leads further than those behind it is found too."""
    fill(world)
    old = [world.ship(0, 1) for _ in range(9)]
    world.ship(0, 5)
    world.ship(1, 3)
    world.base.unlink()
    with small_state(world.directory.parent / "later", containers=3) as database:
        machine = StateMachine(database)
        for command_, index, term in world.entries[:2]:
            content = entries.decode(command_)
            assert isinstance(content, list)
            machine.apply(index, term, content)
        world.old = snapshot_of(database, world.base)
    read: list[str] = []
    taken = Contents.__init__

    def note(self: Contents, path: str) -> None:
        read.append(path)
        taken(self, path)

    monkeypatch.setattr(Contents, "__init__", note)
    assert world.restored("last")[1] == world.nodes[max(world.nodes)]
    assert str(old[0]) not in read


# ---- what cannot be restored


def test_a_revision_before_the_snapshot_needs_an_earlier_one(world: World) -> None:
    with pytest.raises(RefusedForSafety, match=r"later than 1: name an earlier backup, or a later revision"):
        world.restored(1)


def test_a_revision_that_is_not_reached_is_said_with_the_one_that_is(world: World) -> None:
    fill(world)
    world.ship()
    newest = max(world.nodes)
    says = rf"lead to revision {newest}, index {world.marks[-1].index}, and not to revision {newest + 1}$"
    with pytest.raises(RefusedForSafety, match=says):
        world.restored(newest + 1)


def test_a_gap_is_said_and_everything_before_it_can_be_restored(world: World) -> None:
    fill(world)
    world.ship(0, 2)
    behind = world.ship(3)
    reached = world.marks[1]
    says = (
        f"lead to revision {reached.revision}, index {reached.index}: the entries {reached.index + 1} to "
        f"{reached.index + 1} are in no file, and {behind} begins behind them. To restore what is before that, add "
        f"--to-revision {reached.revision}"
    )
    with pytest.raises(RefusedForSafety) as caught:
        world.restored("last")
    assert str(caught.value).endswith(says)
    with pytest.raises(RefusedForSafety, match=f"not to revision {max(world.nodes)}: the entries "):
        world.restored(max(world.nodes))
    assert world.restored(reached.revision)[1] == world.nodes[reached.revision]


def test_a_file_of_another_cluster_is_no_part_and_no_gap(world: World) -> None:
    fill(world)
    world.ship(0, 2)
    world.ship(2, cluster_id="cluster-2")
    made, _ = world.restored("last")
    assert made.replayed is not None
    assert made.replayed.revision == world.marks[1].revision


def test_a_damaged_file_is_named_with_the_place(world: World) -> None:
    fill(world)
    path = world.ship()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RefusedForSafety, match=rf"{path} is damaged at byte \d+: .*--to-revision \d+"):
        world.restored("last")
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(RefusedForSafety, match=rf"{path}: is not a file of a continuous backup"):
        world.restored("last")


def later(world: World, place: int) -> Path:
    """A backup behind the entry at this place, from which the restores of this world begin."""
    world.base.unlink()
    world.base = world.directory / f"warren-20261122T130000Z-{world.entries[place][1]:016d}.mdb"
    with small_state(world.directory.parent / "later", containers=3) as database:
        machine = StateMachine(database)
        for command_, index, term in world.entries[: place + 1]:
            content = entries.decode(command_)
            assert isinstance(content, list)
            machine.apply(index, term, content)
        world.old = snapshot_of(database, world.base)
    return world.base


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "all":
        data = bytearray(os.urandom(len(data)))
    elif kind == "header":
        data[0] ^= 1
    elif kind == "empty":
        data.clear()
    else:
        data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    if kind == "unreadable":
        path.unlink()
        path.symlink_to(path)


DAMAGES = ("middle", "header", "all", "unreadable")


@pytest.mark.parametrize("kind", ["middle", "header", "all", "empty"])
@pytest.mark.parametrize("more", [True, False])
def test_a_damaged_file_from_before_the_snapshot_is_a_warning(world: World, kind: str, more: bool) -> None:
    """(Pins a fault of a drill: an old damaged file forbade the restore of the newest backup and all behind it.)"""
    fill(world)
    old = world.ship(0, 2)
    world.ship(2, 4)
    if more:
        world.ship(4)
    later(world, 3)
    damage(old, kind)
    made, found = world.restored("last")
    newest = world.marks[4 if more else 3].revision
    assert found == world.nodes[newest]
    assert made.replayed is not None
    assert made.replayed.revision == newest
    assert [text.startswith(str(old)) and text.endswith("it was not needed") for text in made.replayed.warnings] == [
        True
    ]


def test_a_file_that_cannot_be_read_is_needed(world: World) -> None:
    """It may be whole: somebody can give the right to read it, or move it away."""
    fill(world)
    old = world.ship(0, 2)
    world.ship(2)
    later(world, 3)
    damage(old, "unreadable")
    with pytest.raises(RefusedForSafety, match=f"{old} cannot be read"):
        world.restored("last")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_began_with_another_one_is_needed(world: World, kind: str) -> None:
    """(Pins a fault: the clocks of two managers decided which of the two files counts.)"""
    fill(world)
    world.ship(0, 2)
    longer = world.ship(2)
    world.ship(2, 4, node_id="n2")  # the name has a later time
    damage(longer, kind)
    with pytest.raises(RefusedForSafety, match=rf"index {world.marks[3].index}: .*{longer}"):
        world.restored("last")


def test_an_empty_last_file_is_a_warning(world: World) -> None:
    """A manager was killed when it had made the file: nothing was in it."""
    fill(world)
    world.ship(0, 3)
    damage(world.ship(3), "empty")
    made, _ = world.restored("last")
    assert made.replayed is not None
    assert made.replayed.revision == world.marks[2].revision
    assert made.replayed.warnings[0].endswith("is empty; it was not needed")


def test_the_used_part_of_a_damaged_file_is_not_called_needless(world: World) -> None:
    fill(world)
    path = world.ship()
    damage(path, "middle")
    made, _ = world.restored(world.marks[0].revision)
    assert made.replayed is not None
    (warning,) = made.replayed.warnings
    assert warning.startswith(f"{path} is damaged at byte ")
    assert warning.endswith("; the part behind the damage was not needed")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_from_before_the_snapshot_that_goes_on_behind_it_is_needed(world: World, kind: str) -> None:
    fill(world)
    path = world.ship()
    later(world, 3)
    damage(path, kind)
    with pytest.raises(RefusedForSafety, match=rf"index {world.marks[3].index}: {path}"):
        world.restored("last")


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_last_file_is_needed_also_behind_a_gap(world: World, kind: str) -> None:
    """(Pins a fault: with a damaged header it was passed over, and "last" ended silently in front of it.)"""
    fill(world)
    world.ship(0, 2)
    path = world.ship(3)
    damage(path, kind)
    with pytest.raises(RefusedForSafety, match=rf"index {world.marks[1].index}: .*{path}"):
        world.restored("last")


def test_a_newer_format_is_said(world: World) -> None:
    fill(world)
    path = world.ship()
    data = path.read_bytes()
    _, _, length, _ = shipped_log._FRAME.unpack_from(data)
    text = data[shipped_log._FRAME.size :][:length]
    frame = shipped_log._FRAME.pack(b"WARRENBL", 2, length, 0)
    crc = shipped_log.crc32(text, shipped_log.crc32(frame))
    path.write_bytes(shipped_log._FRAME.pack(b"WARRENBL", 2, length, crc) + data[shipped_log._FRAME.size :])
    with pytest.raises(RefusedForSafety, match=r"has the format 2; this program knows format 1"):
        world.restored("last")


def test_a_mark_that_does_not_fit_the_state_is_found(world: World) -> None:
    """The entries are whole, but they do not continue this snapshot."""
    fill(world)
    world.marks[2] = replace(world.marks[2], digest=bytes(32))
    path = world.ship()
    with pytest.raises(
        SnapshotInvalid, match=rf"{path}: does not continue n1's snapshot: after entry \d+ the state has"
    ):
        world.restored("last")
    assert not (world.directory.parent / "restored-last").exists()


def test_two_histories_are_not_mixed(world: World, tmp_path: Path) -> None:
    """The machines were set back to an old image, and the cluster used the same indexes again."""
    fill(world)
    first = world.ship()
    with small_state(tmp_path / "again", containers=3) as database:
        other = World(database, tmp_path / "other")
        other.directory = world.directory
        other.now = world.now + timedelta(hours=1)
        other.write("x")
        second = other.ship(node_id="n2")
        with pytest.raises(RefusedForSafety) as caught:
            world.restored("last")
        assert f"{first} and {second} have different entries at index {other.marks[0].index}" in str(caught.value)


def test_entries_of_another_term_do_not_continue_a_snapshot(world: World) -> None:
    fill(world)
    world.old = replace(world.old, term=TERM - 3)
    path = world.ship()
    with pytest.raises(RefusedForSafety, match=rf"{path} has the entry {world.old.index} with another term"):
        world.restored("last")


# ---- torn and damaged bytes


@pytest.fixture
def shipped(world: World) -> Path:
    fill(world)
    return world.ship(each=2)


def groups_of(path: Path) -> tuple[list[object], str]:
    contents = Contents(str(path))
    return list(contents.groups), contents.problem


def test_what_was_written_is_read(world: World, shipped: Path) -> None:
    contents = Contents(str(shipped))
    assert [entry for group in contents.groups for entry in group.entries] == world.entries
    assert [group.mark for group in contents.groups] == [world.marks[1], world.marks[3], world.marks[4]]
    assert contents.header == Header(
        cluster_id="cluster-1", node_id="n1", first_index=world.entries[0][1], previous_term=world.old.term
    )
    assert contents.problem == ""
    assert [contents.entry_at(index) for _, index, _ in world.entries] == world.entries
    assert contents.entry_at(world.entries[0][1] - 1) is None
    assert contents.entry_at(world.entries[-1][1] + 1) is None


def test_a_file_that_is_cut_anywhere_is_its_whole_groups(shipped: Path) -> None:
    whole, _ = groups_of(shipped)
    data = shipped.read_bytes()
    start = len(data) - sum(len(part) for part in _records_of(shipped))
    for size in range(start, len(data), 5):
        shipped.write_bytes(data[:size])
        found, problem = groups_of(shipped)
        assert problem == ""
        assert found == whole[: len(found)]
        assert len(found) < len(whole)
        shipped.write_bytes(data[:size] + bytes(len(data) - size))  # the end was not written yet
        assert groups_of(shipped) == (found, "")


def _records_of(path: Path) -> list[bytes]:
    contents = Contents(str(path))
    return [contents._data[contents._start :]]


def test_one_flipped_bit_anywhere_never_gives_a_wrong_entry(shipped: Path) -> None:
    """It is found, or the last group is dropped as after a crash: nothing whole is behind it."""
    whole, _ = groups_of(shipped)
    data = shipped.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        shipped.write_bytes(flipped)
        try:
            found, problem = groups_of(shipped)
        except SnapshotInvalid:
            continue
        assert found == whole[: len(found)]
        assert len(found) < len(whole)
        assert problem or len(found) == len(whole) - 1


def test_names_sort_by_their_first_index(world: World) -> None:
    fill(world)
    paths = [world.ship(first, node_id=node_id) for first, node_id in ((0, "n2"), (2, "n1"), (1, "n3"))]
    names = [path.name for path in paths]
    assert names_in([*names, "warren-20261122T120000Z-0000000000000000.mdb", "notes"]) == [names[0], names[2], names[1]]
    assert max(os.listdir(world.directory)) == world.base.name, (
        "a backup sorts last, because an operator takes that one"
    )
    assert os.stat(paths[0]).st_mode & 0o777 == 0o600
    assert json.dumps(names)
    assert datetime.now(UTC) > NOON
