"""At 80 columns no value that people copy or compare is folded or cut. Text is shortened instead, and the tables name
the columns that they leave out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from warren_raft_cli import tables
from warren_raft_cli.tables import Column, age, print_fields, print_table, time_shown

ID = "container-00cc225996ed76b3"
ADDRESS = "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:7946"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A terminal of 80 columns."""
    monkeypatch.setattr(tables, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return monkeypatch


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    captured = capsys.readouterr()
    return captured.out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines(), captured.err


def test_text_is_cut_and_ids_and_addresses_are_whole(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["id", "address", Column("image", gives=True)]
    print_table(columns, [[ID, ADDRESS, "registry.example.com/team/nginx:1.25-alpine"], ["c", "a", "b"]])
    (header, row, short), said = printed(capsys)
    assert header.split() == ["ID", "ADDRESS"]
    assert row == f"{ID}  {ADDRESS}"
    assert short.split() == ["c", "a"]
    assert said == "the terminal is too narrow for: image (-o wide shows all columns)\n"
    terminal.setenv("COLUMNS", "90")
    print_table(columns, [[ID, ADDRESS, "registry.example.com/team/nginx:1.25-alpine"]])
    (_, row), said = printed(capsys)
    assert row == f"{ID}  {ADDRESS}  registry.example…"
    assert len(row) == 90
    assert said == ""


def test_the_widest_text_gives_way_first_and_the_last_column_is_left_out_first(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["id", Column("name", gives=True), Column("image", gives=True), Column("labels", gives=True), "age"]
    print_table(columns, [["x" * 40, "a name", "i" * 30, "l" * 50, "412d"]])
    (_, row), said = printed(capsys)
    assert row == f"{'x' * 40}  a name  {'i' * 10}…  {'l' * 10}…  412d"
    assert len(row) == 80
    assert said == ""
    terminal.setenv("COLUMNS", "66")
    print_table(columns, [["x" * 40, "a name", "i" * 30, "l" * 50, "412d"]])
    (_, row), said = printed(capsys)
    assert row == f"{'x' * 40}  a name  {'i' * 9}…  412d"
    assert "labels" in said
    assert "image" not in said


def test_what_cannot_give_way_is_printed_whole_and_runs_over(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(["id", "address"], [["x" * 70, ADDRESS]])
    (_, row), _ = printed(capsys)
    assert row == f"{'x' * 70}  {ADDRESS}"


def test_wide_and_a_pipe_show_everything_whole(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["id", Column("image", gives=True), Column("created", wide=True)]
    rows = [[ID, "i" * 99, "2025-10-09T08:53:20.123456Z"]]
    print_table(columns, rows, wide=True)
    (_, row), _ = printed(capsys)
    assert row == f"{ID}  {'i' * 99}  2025-10-09T08:53:20.123456Z"
    terminal.setattr(tables, "is_terminal", lambda: False)
    print_table(columns, rows)
    (header, row), said = printed(capsys)
    assert header.split() == ["ID", "IMAGE"]
    assert row == f"{ID}  {'i' * 99}"
    assert said == ""


def test_characters_of_two_cells_keep_columns_straight(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "20")
    print_table(["id", Column("name", gives=True), "n"], [["a", "容器容器容器容器", 1], ["b", "x", 2]])
    (header, two_cells, one_cell), _ = printed(capsys)
    assert header == "ID  NAME           N"
    assert two_cells == "a   容器容器容器…  1", "20 cells"
    assert one_cell == "b   x              2"


def test_a_long_value_goes_on_below_itself_and_a_word_is_never_broken(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_fields({"id": "x" * 90, "labels": [f"key-{number}=value" for number in range(9)]})
    lines, _ = printed(capsys)
    assert lines[0] == f"id      {'x' * 90}"
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines[1:])
    assert lines[2].startswith("        key-")
    assert "".join(line.strip() for line in lines[1:]).removeprefix("labels").strip().count("key-") == 9


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (47.9 * 3600, "47h"),
        (172_800, "2d"),
        (4e7, "462d"),
    ],
)
def test_an_age_is_short(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_a_time_is_an_age_and_whole_with_wide() -> None:
    past = (datetime.now(UTC) - timedelta(hours=5, minutes=1)).isoformat()
    future = (datetime.now(UTC) + timedelta(days=30, minutes=1)).isoformat().replace("+00:00", "Z")
    assert time_shown(past, wide=False) == "5h"
    assert time_shown(future, wide=False) == "in 30d"
    assert time_shown(future, wide=True) == future
    assert time_shown(None, wide=False) is None
