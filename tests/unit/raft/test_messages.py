"""The quick way to decode a message gives what the careful way gives, or leaves the message to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from warren_raft.raft import messages
from warren_raft.raft.membership import INDEX_MAX
from warren_raft.raft.messages import AppendEntries, AppendReply, Message, PeerFault, decode, encode

SENT: Final = [
    AppendEntries(term=3, commit_index=7, previous_index=8, previous_term=2, entries=[[b"x", 9, 3]], sequence=5),
    AppendEntries(term=0, commit_index=0, previous_index=0, previous_term=0, entries=[], sequence=INDEX_MAX),
    AppendReply(answers=[3, 5], next_index=10, success=True, reset=False, hint=False, kept=8),
    AppendReply(answers=[0, INDEX_MAX], next_index=0, success=False, reset=True, hint=True, kept=0),
]
ODD: Final = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        INDEX_MAX,
        INDEX_MAX + 1,
        -INDEX_MAX,
        1 << 200,
        1.0,
        float("nan"),
        "",
        "1",
        b"",
        b"1",
    ),
    *([], [1], [1, 2], [1, 2, 3], [True, 1], [1, None], [-1, 1], [1, INDEX_MAX + 1], [[1], 2], (1, 2), {}, {1: 2}),
]


def slowly(wire: Mapping[str, Any]) -> Message | None:
    """What the careful way makes of it; None: a fault of the peer."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(messages.BY_NAME[wire["type"]], "quickly", classmethod(lambda _cls, _wire: None))
        try:
            return decode(wire)
        except PeerFault:
            return None


@pytest.mark.parametrize("message", SENT)
def test_a_message_as_managers_send_it_is_decoded_quickly(message: Message) -> None:
    assert type(message).quickly(encode(message)) == message == slowly(encode(message))


@pytest.mark.parametrize("message", SENT)
def test_the_quick_way_takes_nothing_that_the_careful_way_refuses_and_changes_nothing(message: Message) -> None:
    whole = encode(message)
    odd = [{**whole, key: value} for key in type(message)._keys for value in ODD]
    odd += [{key: whole[key] for key in whole if key != left_out} for left_out in type(message)._keys]
    odd += [{**whole, "of a later version": 1}]
    quick = 0
    for wire in odd:
        made = type(message).quickly(wire)
        if made is None:
            continue
        quick += 1
        assert made == slowly(wire)
        for name, check, _ in type(message).CHECKS:
            assert check(getattr(made, name))
    assert 0 < quick < len(odd)


def test_a_sign_of_life_and_a_message_of_a_later_version_are_decoded_all_the_same() -> None:
    alive = AppendReply(answers=[3, 5], next_index=0, success=False, reset=False)
    assert AppendReply.quickly(encode(alive)) is None
    assert decode(encode(alive)) == alive
    assert decode({**encode(SENT[0]), "of a later version": 1}) == SENT[0]
