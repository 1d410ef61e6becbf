"""The promise: bytes from outside are read in bounded time and memory, or refused, wherever they come from.

A hello of 478 bytes stopped a manager for ever: its founding record was read with all of cbor2's features, shared
references and lists as keys included, and the hash of such a key doubles with each level. 1 MiB of empty lists stalled
one for a second.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cbor_readers import READERS
from tests.hostile_cbor import NOT_OURS, empty_lists, hash_bomb
from warren_raft.errors import InvariantViolation
from warren_raft.fsm.sessions import Session
from warren_raft.raft import entries
from warren_raft.raft.membership import Change, Member, Membership
from warren_raft.support.strict_cbor import (
    MAX_DEPTH,
    MAX_ITEMS,
    BadCbor,
    decode,
    decode_record,
)

PROJECT = Path(__file__).parents[2]


def outcome_of(read: Callable[[bytes], object], data: bytes) -> str:
    """The name of the error that was raised."""
    try:
        return f"returned {read(data)!r:.80}"
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


def main() -> None:
    for name, (read, _) in READERS.items():
        print(f"{name}: {outcome_of(read, hash_bomb())}", flush=True)


def test_a_hash_bomb_of_478_bytes_is_refused_by_everything_that_reads_cbor() -> None:
    """In a process of its own: with the interpreter lock held for ever, no timeout in it would end the test."""
    assert len(hash_bomb()) <= 478
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, timeout=60, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [f"{name}: {error.__name__}" for name, (_, error) in READERS.items()]


@pytest.mark.parametrize("reader", READERS)
def test_cbor_that_no_manager_writes_is_refused(reader: str) -> None:
    read, error = READERS[reader]
    for name, data in NOT_OURS.items():
        if name == "nothing" and reader in ("the note of a log", "the founders in a hello"):
            continue
        for wrapped in (data, b"\x81" + data, b"\xa1\x64type" + data):
            with pytest.raises(error) as caught:
                read(wrapped)
            assert len(str(caught.value)) < 1000, name


@pytest.mark.parametrize("reader", READERS)
def test_a_mebibyte_of_empty_lists_is_refused_before_it_becomes_objects(
    reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(*_arguments: object, **_named: object) -> object:
        raise AssertionError("cbor2 was let at it")

    for name in ("loads", "CBORDecoder"):
        monkeypatch.setattr(cbor2, name, must_not)
    read, error = READERS[reader]
    with pytest.raises(error):
        read(b"\x82\x01" + empty_lists(1 << 20))


@pytest.mark.parametrize(
    "item", [b"\x80", b"\xa0", b"\x00", b"\x60", b"\x61a", b"\x78\x01a", b"\x18\x18", b"\xf6", b"\xfa\0\0\0\0"]
)
def test_the_number_of_items_is_counted_exactly_whatever_they_are(item: bytes) -> None:
    for count, is_refused in ((MAX_ITEMS - 1, False), (MAX_ITEMS, True)):
        data = b"\x9a" + count.to_bytes(4, "big") + item * count
        if is_refused:
            with pytest.raises(BadCbor, match=f"over {MAX_ITEMS} items"):
                decode(data)
        else:
            assert len(decode(data)) == count


def test_a_large_value_of_few_items_passes() -> None:
    value = {"type": "x", "data": bytes(5 << 20), "text": "ä" * 100_000}
    assert decode(cbor2.dumps(value)) == value
    assert decode_record(cbor2.dumps([1, ["x" * 400_000, "y" * 400_000]])) == (1, ("x" * 400_000, "y" * 400_000))


def test_nesting_has_a_bound() -> None:
    assert decode(b"\x81" * MAX_DEPTH + b"\x00")
    with pytest.raises(BadCbor, match="depth"):
        decode(b"\x81" * (MAX_DEPTH + 1) + b"\x00")


def test_bytes_after_the_end_are_refused_except_after_a_record() -> None:
    for more in (b"\x00", b"\xff", bytes(50_000)):
        with pytest.raises(BadCbor, match=f"{len(more)} bytes follow"):
            decode(b"\x82\x01\x80" + more)
        assert decode_record(b"\x82\x01\x80" + more) == (1, ())


def test_the_reason_names_the_fault() -> None:
    with pytest.raises(BadCbor, match=r"tag 28.*tags are not used"):
        decode(hash_bomb())


PLAIN = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    PLAIN, lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(), v, max_size=5), max_leaves=20
)


@given(VALUES)
def test_plain_values_come_back(value: object) -> None:
    assert decode(cbor2.dumps(value)) == value
    frozen = decode_record(cbor2.dumps(value))
    assert thawed(frozen) == value
    assert hash(frozen) == hash(decode_record(cbor2.dumps(value)))


def thawed(value: object) -> object:
    """The value of a record with lists and dicts in place of the immutable types."""
    if type(value) is tuple:
        return [thawed(item) for item in value]
    if type(value) is cbor2.frozendict:
        return {key: thawed(item) for key, item in value.items()}
    return value


PLAIN_TYPES = (type(None), bool, int, float, str, bytes, cbor2.CBORSimpleValue, type(cbor2.undefined))


def assert_plain(value: object) -> None:
    if type(value) is list or type(value) is tuple:
        for item in value:
            assert_plain(item)
    elif type(value) is dict or type(value) is cbor2.frozendict:
        for key, item in value.items():
            assert type(key) in (str, bytes)
            assert_plain(item)
    else:
        assert type(value) in PLAIN_TYPES, type(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_plain_values_or_refused(data: bytes) -> None:
    for read in (decode, decode_record):
        try:
            value = read(data)
        except BadCbor:
            continue
        assert_plain(value)


@pytest.mark.slow
def test_nothing_else_calls_cbor2s_decoder() -> None:
    """The one place is support/strict_cbor.py: `cbor2.loads` elsewhere would be the next hash bomb."""
    found = []
    for path in sorted([*(PROJECT / "warren_raft").rglob("*.py"), *(PROJECT / "cli").rglob("*.py")]):
        names = {"cbor2"}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.asname for alias in node.names if alias.name == "cbor2" and alias.asname}
            if isinstance(node, ast.ImportFrom) and node.module == "cbor2":
                found += [(path.name, alias.name) for alias in node.names]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                found.append((path.name, node.attr))
    decoding = {(file, name) for file, name in found if "dump" not in name and "Encode" not in name}
    assert decoding == {("strict_cbor.py", name) for name in ("CBORDecoder", "CBORDecodeError", "loads", "frozendict")}


# ---- plain values of a wrong type for their reader


MEMBER = ["m1", "127.0.0.1:7946", "inc-1", True]
ROWS = {
    "not a list": b"\x00",
    "too short": cbor2.dumps(["c"]),
    "too long": cbor2.dumps(["c", 1, [MEMBER], [], "", 0, 0, 0, 0, 0]),
    "a cluster id of another type": cbor2.dumps([7, 1, [MEMBER], []]),
    "an index of another type": cbor2.dumps(["c", "1", [MEMBER], []]),
    "an index below 0": cbor2.dumps(["c", -1, [MEMBER], []]),
    "members that are not a list": cbor2.dumps(["c", 1, "abcd", []]),
    "no members": cbor2.dumps(["c", 1, [], []]),
    "a member that is not a list": cbor2.dumps(["c", 1, ["abcd"], []]),
    "a member without an incarnation": cbor2.dumps(["c", 1, [MEMBER[:2]], []]),
    "a member with an id that is not a text": cbor2.dumps(["c", 1, [[["m1"], *MEMBER[1:]]], []]),
    "a voter of another type": cbor2.dumps(["c", 1, [[*MEMBER[:3], 1]], []]),
    "the same member twice": cbor2.dumps(["c", 1, [MEMBER, MEMBER], []]),
    "65 members": cbor2.dumps(["c", 1, [[f"m{n}", *MEMBER[1:]] for n in range(65)], []]),
    "removed that is not a list": cbor2.dumps(["c", 1, [MEMBER], "inc"]),
    "removed of another type": cbor2.dumps(["c", 1, [MEMBER], [1]]),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_list_of_members_that_cannot_be_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="not a list of members"):
        Membership.decode(ROWS[what])


def test_lists_changes_and_founders_come_back() -> None:
    members = {id_: Member(id_, "127.0.0.1:1", f"inc-{id_}", voter=id_ != "m3") for id_ in ("m1", "m2", "m3")}
    for removed in ((), ("a", "b")):
        membership = Membership("cluster", 17, members, removed)
        assert Membership.decode(membership.encode()) == membership
    for change in (Change("form", cluster_id="c", members=tuple(members.values())), Change("remove", "m1", "", "inc")):
        assert Change.decode(change.encode()) == change
        assert entries.decode(entries.encode_change(change)) == change


CHANGES = {
    "not a list": b"\x00",
    "too short": cbor2.dumps(["add"]),
    "a verb of another type": cbor2.dumps([1, "m1", "", "inc", "", []]),
    "a verb that nobody knows": cbor2.dumps(["explode", "m1", "", "inc", "", []]),
    "an id of another type": cbor2.dumps(["add", 1, "", "inc", "", []]),
    "members of another type": cbor2.dumps(["form", "", "", "", "c", {"m1": 1}]),
    "65 members": cbor2.dumps(["form", "", "", "", "c", [[f"m{n}", *MEMBER[1:]] for n in range(65)]]),
    "a member of another type": cbor2.dumps(["form", "", "", "", "c", [[1, 2, 3, 4]]]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_cannot_be_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="not a change of members"):
        Change.decode(CHANGES[what])
    with pytest.raises(InvariantViolation):
        entries.decode(b"\x00\x02" + CHANGES[what])


def test_commands_that_are_not_bytes_are_refused() -> None:
    for commands in ([1], ["text"], [[b"x"]], [b"x", None], {"a": b"x"}, b"x"):
        with pytest.raises(InvariantViolation):
            entries.decode(b"\x00\x01" + cbor2.dumps(commands))
    assert entries.decode(entries.encode_commands([b"x", b"y"])) == [b"x", b"y"]


SESSIONS = {
    "not a list": b"\x00",
    "too short": cbor2.dumps([1, 2, False, b""]),
    "an index of another type": cbor2.dumps(["1", 2, False, b"", []]),
    "a lowest of another type": cbor2.dumps([1, None, False, b"", []]),
    "closed of another type": cbor2.dumps([1, 2, 0, b"", []]),
    "answers of another type": cbor2.dumps([1, 2, False, "", []]),
    "answers with a part missing": cbor2.dumps([1, 2, False, bytes(15), []]),
    "refusals of another type": cbor2.dumps([1, 2, False, b"", "ab"]),
    "a refusal of another type": cbor2.dumps([1, 2, False, b"", [7]]),
    "a refusal without a revision": cbor2.dumps([1, 2, False, b"", [[7]]]),
    "a refused sequence that is a list": cbor2.dumps([1, 2, False, b"", [[[7], 1, 2]]]),
    "a refusal with a map": cbor2.dumps([1, 2, False, b"", [[7, 1, {"a": 1}]]]),
}


@pytest.mark.parametrize("what", SESSIONS)
def test_a_session_that_cannot_be_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="not a session"):
        Session.decode(SESSIONS[what])


if __name__ == "__main__":
    main()
