"""No message of a peer stops a manager or changes a committed entry. The answer is a dropped link and an alarm.

Messages go into Engine.step of a manager inside a running cluster: malformed ones (any field of any type), and
well-formed ones that no correct peer sends. Not here: the holes of PySyncObj, each told in test_holes.py.
"""

from __future__ import annotations

import tracemalloc
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine_harness import Cluster, Message, Node
from tests.hostile import append_to
from warren_raft.raft import guard
from warren_raft.raft.core import _typed
from warren_raft.raft.effects import CloseLink
from warren_raft.raft.events import Received
from warren_raft.raft.messages import PeerFault, decode

NO_OP = b"\x01"


def running(role: str = "follower") -> tuple[Cluster, Node, str]:
    """A cluster with a few writes, the manager that gets the messages, and the peer that sends them."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    for each in cluster.nodes.values():
        each.engine.use_wall_clock(lambda: 1_800_000_000.0 + cluster.now)
    cluster.write(leader.id, "a", "b", "c")
    cluster.check_writes()
    follower, other = cluster.followers()
    if role == "leader":
        return cluster, leader, follower
    if role == "candidate":
        cluster.nodes[follower].disk_seconds = None
        cluster.crash(leader.id)
        cluster.hold((other, follower))
        cluster.run_until(lambda: "pre_vote" in [s.message["type"] for s in cluster.sent if s.sender == follower])
        cluster.nodes[follower].engine._leading.campaign()
        return cluster, cluster.nodes[follower], other
    return cluster, cluster.nodes[follower], leader.id


def state(node: Node) -> tuple[Any, ...]:
    """The state of a manager that a refused message must not change."""
    log = node.log
    return (
        tuple(log.entries),
        log.current_term,
        log.voted_for,
        log.commit_index,
        log.note,
        tuple(node.machine.applied),
    )


def put(cluster: Cluster, node: Node, peer: str, *messages: Message) -> list[str]:
    """Deliver messages as they come from a link. Returns the reasons of the links that were closed in answer."""
    events = [Received(peer, cluster.links[node.id, peer], message) for message in messages]
    effects = node.engine.step(cluster.now, events)
    node.engine.apply()
    return [effect.reason for effect in effects if isinstance(effect, CloseLink)]


def reply_to(node: Node, **changes: Any) -> Message:
    """A correct success of a follower that has all entries."""
    return {
        "type": "append_reply",
        "next_index": node.log.last_index + 1,
        "success": True,
        "reset": False,
        "answers": [node.engine.term, 1000],
        **changes,
    }


# Impossible, though well-formed --------------------------------------------------------------------------------------


def entries(node: Node, *terms: int, first: int | None = None) -> list[list[Any]]:
    start = node.log.last_index + 1 if first is None else first
    return [[NO_OP, start + offset, term] for offset, term in enumerate(terms)]


IMPOSSIBLE_TO_A_FOLLOWER: dict[str, Any] = {
    "another entry at a committed index": lambda n: append_to(
        n, previous_index=3, previous_term=n.engine.term + 1, term=9
    ),
    "entries over committed ones": lambda n: append_to(
        n, term=9, previous_index=2, previous_term=n.log.entries[1][2], entries=entries(n, 9, 9, first=3)
    ),
    "entries with a gap": lambda n: append_to(n, entries=entries(n, n.engine.term, first=n.log.last_index + 2)),
    "entries with a repeated index": lambda n: append_to(n, entries=entries(n, n.engine.term) * 2),
    "an entry of a term before the last": lambda n: append_to(n, entries=entries(n, 0)),
    "an entry of a term after the leader's": lambda n: append_to(n, entries=entries(n, n.engine.term + 1)),
    "an entry with a float as its index": lambda n: append_to(
        n, entries=[[NO_OP, float(n.log.last_index + 1), n.engine.term]]
    ),
    "an entry with a text as its index": lambda n: append_to(
        n, entries=[[NO_OP, str(n.log.last_index + 1), n.engine.term]]
    ),
    "an entry without a command": lambda n: append_to(n, entries=[[b"", n.log.last_index + 1, n.engine.term]]),
    "an entry of text": lambda n: append_to(n, entries=[["x", n.log.last_index + 1, n.engine.term]]),
    "an index beyond 62 bits": lambda n: append_to(n, commit_index=1 << 62 | 1),
    "a vote request without a log": lambda _: {"type": "request_vote", "term": 9, "transfer": True},
    "a negative term": lambda n: append_to(n, term=-1),
}


@pytest.mark.parametrize("story", IMPOSSIBLE_TO_A_FOLLOWER)
def test_a_follower_drops_a_leader_that_says_what_cannot_be(story: str) -> None:
    cluster, node, leader = running()
    before = state(node)
    reasons = put(cluster, node, leader, IMPOSSIBLE_TO_A_FOLLOWER[story](node))
    assert len(reasons) == 1
    assert reasons[0].startswith(f"{leader} sent an impossible message, so its link is dropped: ")
    assert reasons[0] in node.alarm_texts
    assert state(node) == before
    assert node.engine.failure is None


def test_a_second_leader_of_one_term_is_dropped() -> None:
    cluster, node, leader = running()
    pretender = next(id_ for id_ in cluster.nodes if id_ not in (node.id, leader))
    before = state(node)
    reasons = put(cluster, node, pretender, append_to(node, entries=entries(node, node.engine.term)))
    assert f"{pretender} claims to lead term {node.engine.term}, which {leader} leads" in reasons[0]
    assert state(node) == before
    cluster.write(node.id, "after")
    cluster.check_writes()


IMPOSSIBLE_TO_A_LEADER: dict[str, Any] = {
    "an acknowledgement beyond the log": lambda n: reply_to(n, next_index=n.log.last_index + 2),
    "an acknowledgement of nothing": lambda n: reply_to(n, next_index=1),
    "a log shorter than acknowledged": lambda n: reply_to(n, next_index=2, success=False, reset=True),
    "a log that ends before it begins": lambda n: reply_to(n, next_index=0, success=False, reset=True),
    "a reset beyond the log": lambda n: reply_to(n, next_index=n.log.last_index + 2, success=False, reset=True),
    "an answer to nothing": lambda n: {**reply_to(n), "answers": None},
    "an answer to half of something": lambda n: reply_to(n, answers=[n.engine.term]),
    "another leader in its own term": lambda n: append_to(n),
}


@pytest.mark.parametrize("story", IMPOSSIBLE_TO_A_LEADER)
def test_a_leader_drops_a_follower_that_says_what_cannot_be(story: str) -> None:
    """One wiped or damaged follower must not stop a healthy leader."""
    cluster, node, follower = running("leader")
    before = state(node)
    reasons = put(cluster, node, follower, IMPOSSIBLE_TO_A_LEADER[story](node))
    assert len(reasons) == 1
    assert reasons[0] in node.alarm_texts
    assert state(node) == before
    assert node.engine.is_leader
    cluster.disconnect(node.id, follower)
    cluster.write(follower, "after")
    cluster.check_writes()


def test_for_a_member_whose_log_became_shorter_the_alarm_names_the_commands_that_mend_it() -> None:
    """An older copy of the member's directory was put back, as by a snapshot of a virtual machine. The member dials
    for ever without a link."""
    cluster, node, follower = running("leader")
    (reason,) = put(cluster, node, follower, IMPOSSIBLE_TO_A_LEADER["a log shorter than acknowledged"](node))
    assert f"an older copy, or its disk has lost synced bytes; move the data directory of {follower}" in reason
    assert f"warren-raft members remove {follower}; warren-raft members add {follower}=" in reason


def test_an_unknown_kind_of_message_is_passed_over() -> None:
    """A later version may have such a message. Its name is not remembered, because a peer could make up any number of
    names."""
    cluster, node, peer = running()
    before = state(node)
    for number in range(100):
        assert put(cluster, node, peer, {"type": f"novelty {number}"}) == []
    assert node.engine.guard_stats["unknown message dropped"] == 100
    assert len(node.engine.guard_stats) < 20
    assert state(node) == before


@pytest.mark.parametrize("kind", ["apply_command", "apply_command_response"])
def test_the_cores_own_forwarding_is_dropped_both_ways(kind: str) -> None:
    """PySyncObj's forwarding loses callbacks and applies twice (hole 10). raft/submit.py carries writes."""
    cluster, node, peer = running("leader")
    before = state(node)
    message = {"type": kind, "command": b"\x00x", "request_id": 1, "log_idx": 2, "log_term": 1}
    assert put(cluster, node, peer, message) == []
    assert _typed(message) is None, "the core does not send it"
    cluster.run(0.5)
    assert state(node) == before


def test_a_term_from_a_pre_vote_reply_is_checked_before_it_is_believed() -> None:
    """(Pins a bug: a manager entered a term beyond 64 bits, and the log could not write it.)"""
    cluster, node, peer = running()
    cluster.crash(peer)
    other = next(id_ for id_ in cluster.nodes if id_ != node.id)
    before = state(node)
    reply = {"type": "pre_vote_reply", "round": 1, "granted": False, "term": 1 << 80}
    assert len(put(cluster, node, other, reply)) == 1
    assert state(node) == before


def test_commands_that_are_no_bytes_are_not_submitted() -> None:
    cluster, node, peer = running("leader")
    before = state(node)
    assert len(put(cluster, node, peer, {"type": "submit", "commands": [b"x", "y"]})) == 1
    assert state(node) == before


# Malformed -----------------------------------------------------------------------------------------------------------

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([1 << 62, (1 << 62) + 1, 1 << 63, (1 << 64) - 1, -(1 << 63)]),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.integers(-1, 9), st.binary(max_size=2), st.text(max_size=2), st.none()), max_size=4),
    st.dictionaries(st.one_of(st.text(max_size=2), st.binary(max_size=2)), st.integers(0, 9), max_size=2),
)


@st.composite
def entry_lists(draw: st.DrawFn) -> Any:
    """Entries that are nearly right: sometimes consecutive, sometimes of rising terms."""
    first = draw(st.integers(0, 9))
    term = draw(st.integers(0, 4))
    items: list[Any] = []
    for offset in range(draw(st.integers(0, 3))):
        term += draw(st.sampled_from([0, 0, 0, 1, -1]))
        items.append([draw(st.sampled_from([NO_OP, b"", b"\x00\x01\x80", 7])), first + offset, term])
    return items


SMALL = st.integers(0, 12)
WELL_FORMED: dict[str, st.SearchStrategy[Message]] = {
    "append_entries": st.fixed_dictionaries(
        {
            "term": SMALL,
            "commit_index": SMALL,
            "previous_index": SMALL,
            "previous_term": st.integers(0, 4),
            "entries": entry_lists(),
            "sequence": SMALL,
        }
    ),
    "append_reply": st.fixed_dictionaries(
        {
            "next_index": SMALL,
            "success": st.booleans(),
            "reset": st.booleans(),
            "hint": st.booleans(),
            "answers": st.tuples(st.integers(0, 4), SMALL).map(list),
        }
    ),
    "request_vote": st.fixed_dictionaries(
        {"term": SMALL, "last_log_index": SMALL, "last_log_term": SMALL, "transfer": st.booleans()}
    ),
    "response_vote": st.fixed_dictionaries({"term": SMALL}),
    "nack": st.fixed_dictionaries({"term": SMALL}),
    "pre_vote": st.fixed_dictionaries({"round": SMALL, "term": SMALL, "last_log_index": SMALL, "last_log_term": SMALL}),
    "pre_vote_reply": st.fixed_dictionaries({"round": SMALL, "granted": st.booleans(), "term": SMALL}),
    "timeout_now": st.fixed_dictionaries({"term": SMALL}),
    "founding": st.fixed_dictionaries({"founding": st.binary(max_size=8)}),
    "founding_view": st.fixed_dictionaries(
        {"view": st.dictionaries(st.text(max_size=2), st.text(max_size=2)), "configured": st.just({"m1": "a:1"})}
    ),
    "submit_refused": st.just({}),
    "read_index": st.fixed_dictionaries({"number": st.integers(1, 12)}),
    "read_index_is": st.fixed_dictionaries({"number": st.integers(1, 12), "index": SMALL}),
    "confirm": st.fixed_dictionaries({"term": SMALL, "round": SMALL}),
    "confirmed": st.fixed_dictionaries({"term": SMALL, "round": SMALL}),
    "health": st.fixed_dictionaries(
        {
            "digests": st.just([[1, bytes(32)]]),
            "low": st.booleans(),
            "full": st.booleans(),
            "report": st.fixed_dictionaries(
                {
                    "applied_index": SMALL,
                    "version": st.text(max_size=8),
                    "disk_free_bytes": st.none() | SMALL,
                    "database_bytes": st.none() | SMALL,
                    "fetching": st.none() | st.just([1, 2]),
                    "time_ms": st.none() | SMALL | st.just(1 << 62),
                    "alarms": st.just([["disk-low", "", "warning"]]),
                }
            ),
        }
    ),
    "addresses": st.fixed_dictionaries(
        {
            "said": st.lists(
                st.lists(st.sampled_from(["m1", "m3", "m9", "", "127.0.0.1:7002", "nowhere"]), min_size=2, max_size=3),
                max_size=3,
            )
        }
    ),
    "change": st.fixed_dictionaries(
        {
            "number": SMALL,
            "verb": st.sampled_from(["add", "remove", "update", "promote", "form", "transfer", "?"]),
            "id": st.sampled_from(["", "m1", "m2", "m3", "m9", "\n"]),
            "address": st.sampled_from(["", "nowhere", "127.0.0.1:7001", "127.0.0.1:0", "127.0.0.1:99999"]),
        }
    ),
    "change_answer": st.fixed_dictionaries(
        {"number": SMALL, "state": st.sampled_from(["done", "wait", "refused", "?"]), "text": st.text(max_size=3)}
    ),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A message of any kind, sometimes with a missing field, a wrong one, or one too many."""
    kind = draw(st.sampled_from(sorted(WELL_FORMED)))
    message = {"type": kind, **draw(WELL_FORMED[kind])}
    for name in sorted(message.keys() - {"type"}):
        fate = draw(st.integers(0, 11))
        if fate == 0:
            del message[name]
        elif fate == 1:
            message[name] = draw(ODD)
    if draw(st.integers(0, 9)) == 0:
        message[draw(st.sampled_from(["serialized", "transmission", "data", "request_id", "x"]))] = draw(ODD)
    return message


@pytest.mark.slow
@pytest.mark.parametrize("role", ["leader", "follower", "candidate"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_message_raises_or_reaches_below_commit(role: str, data: st.DataObject) -> None:
    """No message raises an exception or stops the manager. The commit index never goes back, and no entry up to it
    changes. No entry is applied twice or beyond the synced log (the harness checks that). Then the cluster works."""
    cluster, node, peer = running(role)
    incoming = data.draw(st.lists(messages(), min_size=1, max_size=6))
    for message in incoming:
        if (node.id, peer) not in cluster.links:
            break
        committed = [entry for entry in node.log.entries if entry[1] <= node.log.commit_index]
        kept = deepcopy(message)
        reasons = put(cluster, node, peer, message)
        assert node.engine.failure is None, message
        assert message == kept
        assert node.log.entries[: len(committed)] == committed
        assert committed[-1][1] <= node.log.commit_index <= node.log.last_index
        if reasons:
            cluster.disconnect(node.id, peer)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["leader", "follower"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_peer_that_sends_malformed_messages_changes_nothing(role: str, data: st.DataObject) -> None:
    """Each field of each kind in turn has a wrong type. The link is dropped, and nothing else changes."""
    cluster, node, peer = running(role)
    kind = data.draw(st.sampled_from(sorted(WELL_FORMED.keys() - {"submit_refused"})))
    message = {"type": kind, **data.draw(WELL_FORMED[kind])}
    name = data.draw(st.sampled_from(sorted(message.keys() - {"type", "hint", "success", "reset", "transfer"})))
    message[name] = data.draw(st.sampled_from([None, 0.5, object]).map(lambda odd: "odd" if odd is object else odd))
    if isinstance(message[name], str) and (kind, name) in TEXT_FIELDS:
        message[name] = None
    before = state(node)
    put(cluster, node, peer, message)
    assert state(node) == before
    assert node.engine.failure is None


TEXT_FIELDS = {("change", "verb"), ("change", "id"), ("change", "address"), ("change_answer", "text")}


def test_after_a_storm_of_nonsense_the_cluster_works() -> None:
    cluster, node, peer = running("leader")
    for number in range(200):
        odd: Message = {"type": sorted(WELL_FORMED)[number % len(WELL_FORMED)], "term": number * 1.5}
        if (node.id, peer) in cluster.links and put(cluster, node, peer, odd):
            cluster.disconnect(node.id, peer)
        cluster.turn()
    cluster.write(peer, "after")
    cluster.check_writes()
    assert len(node.alarm_texts) <= 20


# The window ----------------------------------------------------------------------------------------------------------


def test_a_follower_that_does_not_answer_is_sent_no_more_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock pours the whole backlog into the link's buffer in one tick (hole 9). Here at most 4 MiB wait for an
    answer."""
    monkeypatch.setattr(guard, "WINDOW_BYTES", 5000)
    cluster = Cluster()
    leader = cluster.wait_ready()
    silent, other = cluster.followers()
    cluster.hold((leader.id, silent))
    for number in range(60):
        cluster.submit(leader.id, f"w{number}" + "." * 400)
        cluster.run(0.03)
    cluster.run_until(lambda: len(cluster.acknowledged) == 60)
    waiting = [entry for message in cluster.on_wire(leader.id, silent) for entry in message.get("entries", ())]
    assert 5000 <= sum(len(entry[0]) for entry in waiting) < 7000
    cluster.heal()
    cluster.run_until(lambda: leader.engine.is_leader and cluster.converged(), seconds=3)
    cluster.check_writes()
    assert other in cluster.nodes


@pytest.mark.parametrize(
    "value", [bytes(16 << 20), "\x01" * (16 << 20), [[bytes(1 << 20)] * 4] * 4, {"a": bytes(16 << 20)}]
)
def test_a_large_field_that_cannot_be_is_quoted_at_no_cost(value: object) -> None:
    """(Pins a fault: the text about one message of 16 MiB took half a second of the raft thread and 64 MiB.)"""
    tracemalloc.start()
    try:
        for message in ({"type": "submit", "commands": {"x": value}}, {"type": "nack", "term": value}):
            with pytest.raises(PeerFault) as caught:
                decode(message)
            assert len(str(caught.value)) <= 500
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
