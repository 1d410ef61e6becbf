"""`warren-raft status`: what a running manager says of itself and of its cluster.

The manager makes the answer (`ReplicatedStore.status`), the verdict too; it is only printed here. Invariant: the exit
code of `--check` follows from the verdict's state alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from .common import WarrenCommand, cell, manager, one_line, print_json, print_table, wants_json

CHECK_CODES: Final[Mapping[str, int]] = {"healthy": 0, "degraded": 1, "no quorum": 6}
NOT_LINES: Final = ("verdict", "waits")
"""Shown otherwise, or only where there is something to show."""
MEMBER_COLUMNS: Final = ("id", "address", "connected", "voter", "leader")


@click.command("status", cls=WarrenCommand)
@click.option("--check", is_flag=True, help="Print the verdict only; the exit code says the same.")
@click.option("--cluster", is_flag=True, help="Show what every member last told of itself.")
def status(*, check: bool, cluster: bool) -> int:
    """Show a running manager and its cluster.

    Begins with a verdict: healthy, degraded or no quorum, and why. Then its role, leader, indexes, digest, members,
    counts and alarms. With --check the exit code is 0 healthy, 1 degraded (or no manager runs), 6 no quorum.

    \b
    Example: warren-raft status --data-dir data/m1 -o json
    Example: warren-raft status --check --data-dir data/m1
    """
    answer = manager().status()
    if wants_json():
        print_json(answer)
    elif cluster:
        print_verdict(answer)
        click.echo()
        print_cluster(answer["members"])
    elif check:
        print_verdict(answer)
    else:
        print_status(answer)
    return CHECK_CODES[answer["verdict"]["state"]] if check else 0


def print_verdict(answer: Mapping[str, Any]) -> None:
    """`healthy: m1 leads term 4, 3 of 3 connected, tolerates 1 failure`."""
    verdict = answer["verdict"]
    click.echo(one_line(f"{verdict['state']}: {verdict['text']}"))


def print_status(answer: Mapping[str, Any]) -> None:
    """The verdict, simple values as lines, then counts on one line, each alarm on its own, the members as a table."""
    print_verdict(answer)
    click.echo()
    shown = {name: value for name, value in answer.items() if name not in NOT_LINES and not isinstance(value, list)}
    lines = sorted(shown.items(), key=lambda line: isinstance(line[1], dict))
    width = max(map(len, shown))
    for name, value in lines:
        click.echo(f"{name:<{width}}  {cell(value)}")
    for alarm in answer["alarms"]:
        click.echo(f"{'alarm':<{width}}  {_alarm_line(alarm)}")
    if answer["members"]:
        click.echo()
        print_members(answer["members"])


def _alarm_line(alarm: Mapping[str, Any]) -> str:
    about = f" {alarm['subject']}" if alarm["subject"] else ""
    return cell(f"{alarm['severity']} {alarm['name']}{about} since {alarm['since']}: {alarm['text']}")


def print_members(members: Sequence[Mapping[str, Any]]) -> None:
    """Who belongs to the cluster, and whether the manager is connected with each."""
    print_table(MEMBER_COLUMNS, [[member[name] for name in MEMBER_COLUMNS] for member in members])


def print_cluster(members: Sequence[Mapping[str, Any]]) -> None:
    """How each member is, as far as the manager has heard."""
    headers = ("id", "role", "contact", "applied", "lag", "free", "database", "version", "alarms")
    print_table(headers, [_cluster_row(member) for member in members])


def _cluster_row(member: Mapping[str, Any]) -> list[object]:
    role = "leader" if member["leader"] else "voter" if member["voter"] else "learner"
    alarms = [f"{alarm['name']} {alarm['subject']}".rstrip() for alarm in member["alarms"] or []]
    return [
        member["id"],
        role,
        _contact(member),
        member["applied_index"],
        member["lag_entries"],
        _size(member["disk_free_bytes"]),
        _size(member["database_bytes"]),
        member["version"],
        alarms,
    ]


def _contact(member: Mapping[str, Any]) -> str:
    age = member["contact_age_seconds"]
    heard = "never heard" if age is None else f"{age:.1f} s"
    return heard if member["connected"] else f"away, {heard}"


def _size(size_bytes: int | None) -> str | None:
    """In the largest unit of which there is at least one."""
    if size_bytes is None:
        return None
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{size_bytes} B"
