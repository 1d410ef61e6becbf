"""The promise: a Go Warren's database comes in completely or not at all, whatever was done to the file.

The files in tests/data were written by Go's bbolt, each beside its records as JSON lines. A damaged file ends in one
clear error: no traceback, no endless loop, and no record that bbolt's own `check` would refuse.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_raft.errors import Corrupted, InUse, InvalidEntity
from warren_raft.migrate import bolt_writer, database
from warren_raft.migrate.bolt import META_BODY, PAGE_HEADER, BoltFile, Record, fnv_1a
from warren_raft.migrate.lines import operation_of
from warren_raft.migrate.records import format_stored, parse_line, parse_stored

DATA = Path(__file__).parents[1] / "data"
PAGE = 4096
GO_PATH = Path("/usr/share/gocode")
"""Where Debian's golang-go.etcd.io-bbolt-dev puts the library."""
CHECK = """
package main

import (
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
)

func main() {
	db, err := bolt.Open(os.Args[1], 0600, nil)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	count, faults := 0, 0
	db.View(func(tx *bolt.Tx) error {
		for fault := range tx.Check() {
			fmt.Println(fault)
			faults++
		}
		return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(_, _ []byte) error { count++; return nil })
		})
	})
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("nodes"))
		if err != nil {
			return err
		}
		return bucket.Put([]byte("node-new"), []byte("{}"))
	})
	fmt.Println(count, "records", faults, "faults", err)
}
"""


def unpacked(name: str, to: Path) -> Path:
    path = to / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return path


def records_of(path: Path) -> list[Record]:
    with BoltFile(path) as file:
        return file.records()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """66 records in 46 pages; the containers are in the old bucket, `tasks`."""
    return unpacked("warren-tasks.db", tmp_path)


def changed(path: Path, change: Callable[[bytearray], object]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


# ---- sound files


@pytest.mark.parametrize("name", ["warren-small", "warren-tasks"])
def test_every_record_that_bbolt_wrote_comes_in(tmp_path: Path, name: str) -> None:
    lines = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
    contents = database.read(unpacked(f"{name}.db", tmp_path))
    assert sorted(contents.operations) == sorted(map(operation_of, lines))
    assert len(contents.operations) == len(lines) > 60
    assert not contents.has_one_meta


def test_the_quick_way_gives_what_the_careful_one_gives(tasks: Path) -> None:
    stored = {(names[0].decode(), key): value for names, key, value in records_of(tasks)}
    lines = gzip.decompress((DATA / "warren-tasks.jsonl.gz").read_bytes()).decode().splitlines()
    careful = {parse_stored(bucket, key, value) for (bucket, key), value in stored.items()}
    assert careful == set(map(parse_line, lines))


buckets = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.dictionaries(st.binary(min_size=1, max_size=3000), st.binary(max_size=9000), max_size=12),
    max_size=4,
)


@given(buckets)
def test_a_written_database_is_read_back(tmp_path_factory: pytest.TempPathFactory, given_in: dict) -> None:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("bolt") / "any.db"
    with path.open("wb") as file:
        bolt_writer.write(file, {name: sorted(bucket.items()) for name, bucket in given_in.items()})
    named = sorted((name.encode(), bucket) for name, bucket in given_in.items())
    assert records_of(path) == [((name,), *record) for name, bucket in named for record in sorted(bucket.items())]


def test_a_tree_of_many_pages_is_read_back(tmp_path: Path) -> None:
    """Three levels, and keys so long that a branch page has only two children."""
    path = tmp_path / "large.db"
    long = [(f"{number:03}".encode() + b"k" * 3000, b"v") for number in range(200)]
    many = [(b"%06d" % number, b"value %d" % number) for number in range(30_000)]
    with path.open("wb") as file:
        bolt_writer.write(file, {"long": long, "many": many})
    assert records_of(path) == [((b"long",), *each) for each in long] + [((b"many",), *each) for each in many]


@pytest.mark.slow  # Go compiles bbolt
@pytest.mark.skipif(
    not (shutil.which("go") and (GO_PATH / "src/go.etcd.io/bbolt").is_dir()),
    reason="needs Debian's packages golang and golang-go.etcd.io-bbolt-dev",
)
def test_bbolt_takes_a_written_database(tmp_path: Path) -> None:
    """Its own check finds no fault, and a write of its own succeeds."""
    path = tmp_path / "written.db"
    many = [(b"%06d" % number, b"x" * (number % 300)) for number in range(5_000)]
    with path.open("wb") as file:
        bolt_writer.write(file, {"empty": [], "nodes": many, "large": [(b"k", b"v" * 100_000)]})
    (tmp_path / "main.go").write_text(CHECK)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(tmp_path / "cache")}
    command = ["go", "run", str(tmp_path / "main.go"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "5001 records 0 faults <nil>\n"
    assert len(records_of(path)) == 5002


def test_entities_go_out_and_come_back(tmp_path: Path, tasks: Path) -> None:
    before = [parse_stored(names[0].decode(), key, value) for names, key, value in records_of(tasks)]
    path = tmp_path / "back.db"
    with path.open("wb") as file:
        of_kind = {kind: sorted((key, entity) for name, key, entity in before if name == kind) for kind, _, _ in before}
        assert database.write(file, lambda kind: of_kind.get(kind.name, [])) == len(before)
    assert b"tasks" not in {names[0] for names, _, _ in records_of(path)}
    after = [parse_stored(names[0].decode(), key, value) for names, key, value in records_of(path)]
    assert sorted(after, key=repr) == sorted(before, key=repr)
    assert format_stored("ca", b"\0plain") == b"\0plain"


def test_keys_that_do_not_ascend_are_not_written(tmp_path: Path) -> None:
    with (tmp_path / "x.db").open("wb") as file, pytest.raises(ValueError, match="comes after"):
        bolt_writer.write(file, {"nodes": [(b"b", b""), (b"a", b"")]})


def test_of_two_records_for_a_container_the_newer_bucket_counts(tmp_path: Path) -> None:
    path = tmp_path / "both.db"
    with path.open("wb") as file:
        bolt_writer.write(file, {n: [(b"c", b'{"ID":"c","Image":"%s"}' % n.encode())] for n in ("tasks", "containers")})
    last = database.read(path).operations[-1]
    assert last == operation_of('{"bucket":"containers","key":"c","value":{"ID":"c","Image":"containers"}}')


def test_a_bucket_in_a_bucket_is_no_record_of_warrens(tmp_path: Path) -> None:
    path = tmp_path / "nested.db"
    inner = bytes(16) + PAGE_HEADER.pack(0, 2, 1, 0) + (0).to_bytes(4, "little") + (16).to_bytes(4, "little")
    inner += (1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"kv"
    with path.open("wb") as file:
        pages = bolt_writer._Pages(file)
        freelist = pages.add(0x10, 0, b"")
        nodes = pages.tree([(1, b"inner", inner)])
        root = pages.tree([(1, b"nodes", nodes.to_bytes(8, "little") + bytes(8))])
        for number in range(2):
            body = META_BODY.pack(0xED0CDAED, 2, PAGE, 0, root, 0, freelist, pages.end, number, 0)[:-8]
            pages.put(number, 4, 0, body + fnv_1a(body).to_bytes(8, "little"))
    assert records_of(path) == [((b"nodes", b"inner"), b"k", b"v")]
    contents = database.read(path)
    with pytest.raises(InvalidEntity, match="'nodes/inner' is a bucket in a bucket"):
        _ = contents.operations


# ---- damaged files


def test_the_file_of_a_running_warren_is_refused(tasks: Path) -> None:
    with tasks.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InUse, match="stop Warren, or give a copy"):
            BoltFile(tasks)


def test_with_one_meta_page_the_other_one_counts(tasks: Path) -> None:
    """As in bbolt: a crash may leave one of them half written. The caller is told."""
    complete = records_of(tasks)
    changed(tasks, lambda data: data.__setitem__(PAGE + 20, data[PAGE + 20] ^ 1))
    with BoltFile(tasks) as file:
        assert file.has_one_meta
        assert file.records() == complete
    changed(tasks, lambda data: data.__setitem__(20, data[20] ^ 1))
    with pytest.raises(Corrupted, match="neither of its two meta pages is sound"):
        BoltFile(tasks)


def test_a_file_that_was_cut_is_refused(tasks: Path) -> None:
    """At any length the reason is the length: so many pages fit, and the second meta page may be gone as well."""
    whole = 46 * PAGE  # behind it are pages that no transaction has used
    for size_bytes in (45 * PAGE, 45 * PAGE + 1, 2 * PAGE, PAGE + 20, PAGE, 100, 0):
        os.truncate(tasks, size_bytes)
        with pytest.raises(Corrupted) as caught:
            BoltFile(tasks)
        assert "truncated" in caught.value.detail, size_bytes
        if size_bytes >= 100:
            assert f"shorter than its pages, {size_bytes} of {whole} bytes" in caught.value.detail


@pytest.mark.parametrize("content", [b"", b"\0" * 10, b"{}\n", b"\xff" * 100_000])
def test_another_file_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(Corrupted, match="meta pages"):
        BoltFile(path)


def with_meta(data: bytearray, number: int, **values: int) -> None:
    """Change the fields of a meta page, and make it sound again: an attacker can do that."""
    names = ("magic", "version", "page_size", "flags", "root", "sequence", "freelist", "end", "transaction", "checksum")
    place = number * PAGE + PAGE_HEADER.size
    fields = dict(zip(names, META_BODY.unpack_from(data, place), strict=True)) | values
    body = META_BODY.pack(*fields.values())[:-8]
    data[place : place + META_BODY.size] = body + fnv_1a(body).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"root": 2**63}, "a page 9223372036854775808 is named"),
        ({"root": 1}, "a page 1 is named"),
        ({"freelist": 5}, "page 5 is used twice"),
        ({"end": 2**60}, f"262144 of {2**72} bytes"),
        ({"end": 2}, "a page size of 4096 and 2 pages"),
        ({"end": 47}, "page 46 is neither used nor free: records are missing"),
        ({"page_size": 3}, "a page size of 3"),
        ({"page_size": 8192}, "262144 of 376832 bytes"),
    ],
)
def test_no_number_of_a_meta_page_is_trusted(tasks: Path, values: dict[str, int], text: str) -> None:
    changed(tasks, lambda data: with_meta(data, 0, **values))
    with pytest.raises(Corrupted, match=text):
        records_of(tasks)


def test_a_page_that_goes_on_into_a_hole_is_refused_before_it_is_read(tasks: Path) -> None:
    """A sparse file costs nothing on the disk, and its pages would fill the memory."""
    end = 1 << 20
    with BoltFile(tasks) as file:
        root, number = file.meta.root, file.meta.transaction & 1
    for page, flags in ((root, None), (root, 0x80), (root, 0x10)):
        data = bytearray(tasks.read_bytes())
        with_meta(data, number, end=end)
        if flags is not None:
            data[page * PAGE + 8 : page * PAGE + 10] = flags.to_bytes(2, "little")
        data[page * PAGE + 12 : page * PAGE + 16] = (end - page - 1).to_bytes(4, "little")
        hole = tasks.with_name("hole.db")
        hole.write_bytes(data)
        os.truncate(hole, end * PAGE)
        tracemalloc.start()
        try:
            with pytest.raises(Corrupted, match=f"page {page}"):
                records_of(hole)
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
        finally:
            tracemalloc.stop()


def test_a_file_of_more_pages_than_any_warren_has_takes_no_memory(tasks: Path) -> None:
    """A hole of terabytes needs no disk. A mark for each of its pages would fill the memory."""
    end = 1 << 30
    with BoltFile(tasks) as file:
        number = file.meta.transaction & 1
    changed(tasks, lambda data: with_meta(data, number, end=end))
    os.truncate(tasks, end * PAGE)
    tracemalloc.start()
    try:
        with pytest.raises(Corrupted, match="it has 1073741824 pages, more than 67108864"):
            records_of(tasks)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def damaged(source: bytes, chance: random.Random) -> bytes:
    """One to fifty damages: bits, bytes, lengths, whole pages, the end, and runs of bytes."""
    data = bytearray(source)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 50))):
        page = chance.randrange(len(source) // PAGE) * PAGE
        place = chance.randrange(len(data))
        match chance.randrange(7):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[min(page + chance.randrange(64), len(data) - 1)] = chance.randrange(256)
            case 2:
                at = page + chance.randrange(0, 200, 4)
                value = chance.choice((0, 1, 2**32 - 1, 2**31 - 1, chance.randrange(100), chance.randrange(2**32)))
                data[at : at + 4] = value.to_bytes(4, "little")
            case 3:
                other = chance.randrange(len(source) // PAGE) * PAGE
                data[page : page + PAGE] = source[other : other + PAGE]
            case 4:
                return bytes(data[:place])
            case 5:
                data[place : place + chance.randrange(1, PAGE)] = b""
            case _:
                run = min(chance.randrange(1, PAGE), len(data) - place)
                data[place : place + run] = bytes(run) if chance.random() < 0.5 else chance.randbytes(run)
    return bytes(data)


def try_damages(path: Path, first: int, count: int) -> dict[str, int]:
    """Read so many damaged forms of a file. Returns how often each result came."""
    source = path.read_bytes()
    sound = records_of(path)
    older = len(records_of(changed(path, lambda data: data.__setitem__(20, data[20] ^ 1))))
    results = dict.fromkeys(("refused", "same", "older", "other bytes"), 0)
    for seed in range(first, first + count):
        path.write_bytes(damaged(source, random.Random(seed)))
        try:
            with BoltFile(path) as file:
                found = file.records()
        except Corrupted:
            results["refused"] += 1
            continue
        if file.has_one_meta and len(found) == older:
            results["older"] += 1
            continue
        kept = {record.buckets for record in found}
        if len(found) != len(sound):  # a small bucket whose one page now says that it is empty: bbolt has such pages
            assert len(found) == len([record for record in sound if record.buckets in kept]), seed
        results["same" if found == sound else "other bytes"] += 1
    path.write_bytes(source)
    return results


def test_damages_are_refused_or_change_only_the_bytes_of_a_record(tasks: Path) -> None:
    """bbolt has no checksum of a page, so a changed byte of a value is found only by the check of the record."""
    results = try_damages(tasks, 0, 400)
    assert results["refused"] > 200
    assert sum(results.values()) == 400
