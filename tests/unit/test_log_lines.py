"""Every event is one line, `what key=value: text`, with any text in its values."""

from __future__ import annotations

import ast
import functools
import logging
from pathlib import Path

import pytest

from tests.sources import trees_with
from warren_raft.raft import reasons
from warren_raft.support.log_lines import LINE_CHARACTERS, RECENT_MAX, log_event, recent
from warren_raft_cli.serve import KeyValueFormatter

ROOT = Path(__file__).parents[2]
logger = logging.getLogger("warren_raft.test")


def test_keys_come_before_the_sentence_and_those_without_a_value_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log_event(
        logger, logging.ERROR, "leader changed", "it hung", node="m1", peer=None, term=4, age_seconds=0.5, full=False
    )
    assert caplog.messages == ["leader changed node=m1 term=4 age_seconds=0.5 full=false: it hung"]


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
        (120.0, "120"),
        (float("inf"), "inf"),
    ],
)
def test_a_value_is_one_word_or_in_quotes(value: object, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    log_event(logger, logging.ERROR, "x", key=value)
    assert caplog.messages == [f"x key={shown}"]


def test_a_sentence_of_several_lines_becomes_one(caplog: pytest.LogCaptureFixture) -> None:
    log_event(logger, logging.ERROR, "refused", "first\n  second 100 %s\r\n", used="99%d")
    assert caplog.messages == ["refused used=99%d: first second 100 %s"]


def test_a_record_has_its_parts_for_handlers_and_the_place_that_logged_it(caplog: pytest.LogCaptureFixture) -> None:
    log_event(logger, logging.ERROR, "disk low", "free some", node="m1", bytes=3)
    (record,) = caplog.records
    assert record.__dict__["warren_event"] == "disk low"
    assert record.__dict__["warren_keys"] == {"node": "m1", "bytes": "3"}
    assert record.__dict__["warren_text"] == "free some"
    assert record.pathname == __file__


def test_an_error_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log_event(logger, logging.ERROR, "failed", exc_info=ZeroDivisionError("a mistake"))
    assert "ZeroDivisionError: a mistake" in caplog.text


def test_the_last_lines_of_each_manager_are_kept_at_any_level_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """For a bug report. They are bounded, and have no words of an exception, which may quote an entity."""
    caplog.set_level(logging.CRITICAL, logger=logger.name)
    log_event(logger, logging.INFO, "of m8", node="of-no-test")
    log_event(logger, logging.DEBUG, "too low", node="of-this-test")
    try:
        raise ZeroDivisionError("planted")
    except ZeroDivisionError as error:
        log_event(logger, logging.ERROR, "failed", node="of-this-test", exc_info=error)
    log_event(logger, logging.INFO, "long", "x" * 5000, node="of-this-test")
    assert caplog.text == ""
    failed, long = (line for line in recent("of-this-test") if line.node)
    assert failed.text.startswith("failed node=of-this-test [ZeroDivisionError at ")
    assert "planted" not in failed.text
    assert (long.level, len(long.text)) == (logging.INFO, LINE_CHARACTERS)
    for n in range(2 * RECENT_MAX):
        log_event(logger, logging.INFO, "one", node="of-this-test", n=n)
    assert [line.text for line in recent("of-this-test")][-1] == f"one node=of-this-test n={2 * RECENT_MAX - 1}"
    assert len(recent("of-this-test")) == RECENT_MAX


METHODS = ("debug", "info", "warning", "error", "critical", "exception", "log")
LOGGERS = ("logger", "log", "_log", "logging")


def logged_otherwise(paths: list[Path]) -> list[str]:
    """Calls like `logger.warning(…)` and `log.exception(…)`."""
    return [
        f"{path}:{node.lineno}"
        for path, tree in trees_with(rf"\b({'|'.join(LOGGERS)})\s*\.\s*({'|'.join(METHODS)})\b", paths)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in LOGGERS
    ]


def test_a_line_of_another_form_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("log_event(logger, 20, 'x')\nlogging.basicConfig()\nlogger.warning('x')\n_log . info('x')\n")
    assert logged_otherwise([path]) == [f"{path}:3", f"{path}:4"]


def test_every_line_has_this_form() -> None:
    paths = [*(ROOT / "warren_raft").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    assert len(paths) > 50
    assert logged_otherwise([path for path in paths if path.name != "log_lines.py"]) == []


@functools.cache
def events() -> list[ast.Call]:
    """The calls of log_event with a fixed phrase."""
    trees = trees_with(r"\blog_event\b", [*python("warren_raft"), *python("cli")])
    calls = (node for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "log_event"]


def python(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def test_no_key_of_an_event_is_one_of_the_line() -> None:
    """(Pins a bug: the key `level` of one event stood in the place of its severity, in the lines of `serve`.)"""
    keys = {keyword.arg for call in events() for keyword in call.keywords}
    assert "node" in keys
    assert not keys & {"time", "level", "logger", "message", "text"}


def test_every_event_is_documented() -> None:
    text = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    phrases = {call.args[2].value for call in events() if isinstance(call.args[2], ast.Constant)}
    assert len(phrases) > 70
    assert sorted(str(phrase) for phrase in phrases if f"`{phrase}`" not in text) == []


def test_every_reason_of_a_change_of_leader_is_documented() -> None:
    text = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    values = [value for name, value in vars(reasons).items() if name.isupper() and name != "TEXT_CHARACTERS"]
    words = {value.word if isinstance(value, reasons.Reason) else value for value in values}
    assert len(words) > 5
    assert all(f"`{word}`" in text for word in words), words


def test_a_control_character_is_escaped_in_every_part_of_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A program may log to a terminal, and a peer's text must not control it."""
    wild = "\x07\x1b[2J\x9b8m\x7f\u202e"
    with caplog.at_level(logging.INFO):
        log_event(logging.getLogger("wild"), logging.INFO, "heard", f"said\n{wild}", node=wild)
    assert caplog.messages == [
        'heard node="\\u0007\\u001b[2J\\u009b8m\\u007f\\u202e": said \\x07\\x1b[2J\\x9b8m\\x7f\\u202e'
    ]
    record = caplog.records[0]
    assert KeyValueFormatter().format(record).isprintable()
    assert recent(wild)[-1].text.isprintable()
