"""Every event is one line, `what key=value: text`, whatever is in its values."""

from __future__ import annotations

import logging

import pytest

from warren_raft.log_lines import event, line


def test_keys_come_before_the_sentence_and_those_without_a_value_are_left_out() -> None:
    told = line("leader changed", "the old one hung", node="m1", peer=None, term=4, age_seconds=0.5, full=False)
    assert told == "leader changed node=m1 term=4 age_seconds=0.5 full=False: the old one hung"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("m1", "m1"),
        ("/var/lib/m1", "/var/lib/m1"),
        ("", '""'),
        ("a b", '"a b"'),
        ('say "no"', r'"say \"no\""'),
        ("a=b", '"a=b"'),
        ("one\ntwo", r'"one\ntwo"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("Zürich", "Zürich"),
        (1e-9, "0"),
        (float("inf"), "inf"),
    ],
)
def test_a_value_is_one_word_or_in_quotes(value: object, shown: str) -> None:
    assert line("x", key=value) == f"x key={shown}"


def test_a_sentence_of_several_lines_becomes_one() -> None:
    assert line("refused", "first\n  second\r\n") == "refused: first second"


def test_the_sentence_may_hold_percent_signs(caplog: pytest.LogCaptureFixture) -> None:
    event(logging.getLogger("warren_raft.test"), logging.ERROR, "disk low", "100 %s full", used="99%d")
    assert caplog.messages == ["disk low used=99%d: 100 %s full"]
