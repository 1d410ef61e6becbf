"""A bit that flips in the files of a stopped manager is found at the next start. It is never served, voted on or sent.

A real data directory, opened as a manager opens it (data_dir/opening.py). FLIPS in CI; `WARREN_RAFT_FLIPS=1000` for
more. Flips in a snapshot file are in tests/unit/snapshots; flips of every byte of a log are in test_log_sweep.py.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports
from tests.fsm_harness import Contents, contents, some_entities
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.files import OsFiles
from warren_raft.errors import Corrupted
from warren_raft.snapshots.verification import verify

FLIPS = int(os.environ.get("WARREN_RAFT_FLIPS", "150"))


def config(directory: Path) -> Config:
    return Config(node_id="m1", data_dir=directory, listen="127.0.0.1:7", members={"m1": "127.0.0.1:7"}, admin=False)


def opened(directory: Path) -> OpenedDirectory:
    return OpenedDirectory(
        config(directory),
        files=OsFiles(),
        random=Random(1),
        verify=lambda path, records, _cancel: verify(path, records=records),
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a manager that was closed, with a snapshot and a log behind it."""

    directory = tmp_path_factory.mktemp("original") / "m1"
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with wr.ReplicatedStore(
        Config(node_id="m1", data_dir=directory, listen=address, members={"m1": address}, admin=False)
    ) as store:
        store.wait_ready()
        for entity in some_entities():
            if isinstance(entity, bytes):
                store.save_ca(entity)
            else:
                getattr(store, f"create_{_word(entity)}")(entity)
        for number in range(0, 600, 100):
            with store.batch() as batch:
                for each in range(number, number + 100):
                    batch.create_container(wr.Container(id=f"c{each}", service_id="s-1", env=("word " * 60,)))
    return directory


def _word(entity: object) -> str:
    return {"TLSCertificate": "tls_certificate"}.get(type(entity).__name__, type(entity).__name__.lower())


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "m1"
    shutil.copytree(original, directory)
    return directory


def flip(path: Path, random: Random, size: int | None = None) -> str:
    offset, bit = random.randrange(size or path.stat().st_size), random.randrange(8)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {offset}"


def put_back(original: Path, directory: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(original, directory)


def without_history(directory: OpenedDirectory) -> Contents:
    found = contents(directory.database)
    del found["history"]
    return found


def state_file(directory: Path) -> Path:
    (path,) = (directory / "state").glob("*.mdb")
    return path


@pytest.mark.slow
def test_a_flipped_bit_in_the_state_of_a_closed_manager(original: Path, copy: Path) -> None:
    """The manager rebuilds its state from its log; a mere reader is refused."""
    random = Random(7)
    for _ in range(FLIPS):
        where = flip(state_file(copy), random)
        with pytest.raises(Corrupted):
            wr.ReadOnlyStore(copy).close()
        directory = opened(copy)
        try:
            assert directory.database.generation > 1, f"{where}: the damaged state was opened"
            assert directory.machine.applied_index == 1, f"{where}: nothing of it is served; the log has it all"
        finally:
            directory.release()
        put_back(original, copy)


@pytest.mark.slow
def test_a_flipped_bit_in_the_state_of_a_manager_that_died(original: Path, copy: Path, tmp_path: Path) -> None:
    """There is no seal then; every record that is served is proved. A flip in an unused page has no effect, and a flip
    in the history of changes is not found: nothing serves the history yet."""
    directory = opened(copy)
    whole = without_history(directory)
    directory.release()  # as the end of the process would
    died = tmp_path / "died"
    shutil.copytree(copy, died, copy_function=os.link)  # the same files: the marker names their inodes
    path = state_file(copy)
    sound = path.read_bytes()
    random = Random(8)
    rebuilt = 0
    for _ in range(FLIPS):
        where = flip(path, random)
        directory = opened(copy)
        try:
            if directory.database.generation == 1:
                assert without_history(directory) == whole, f"{where} is served"
            else:
                rebuilt += 1
                assert directory.machine.applied_index == 1, where
        finally:
            directory.release()
        shutil.rmtree(copy)
        shutil.copytree(died, copy, copy_function=os.link)
        path.write_bytes(sound)
    assert rebuilt > FLIPS // 10, "hardly a flip was found: they hit nothing"


@pytest.mark.slow
def test_a_flipped_bit_in_the_log_of_a_closed_manager(original: Path, copy: Path) -> None:
    """It starts with all that it had, or not at all."""
    directory = opened(copy)
    entries = list(directory.log.entries)
    directory.release()
    put_back(original, copy)
    random = Random(9)
    refused = 0
    for _ in range(FLIPS):
        segments = sorted((copy / "log").glob("*.log"))
        where = flip(random.choice(segments), random)
        complaint = ""
        try:
            directory = opened(copy)
        except Corrupted as error:
            refused += 1
            complaint = str(error)
        else:
            assert directory.log.entries == entries, where
            directory.release()
        assert not complaint or "docs/recovery.md" in complaint, "it does not say how to go on"
        put_back(original, copy)
    assert refused, "not one flip was found: they hit nothing"
