"""`warren-raft status`: what a running manager says of itself and of its cluster.

The manager makes the answer (`ReplicatedStore.status`); it is only printed here.
"""

from __future__ import annotations

from typing import Any

import click

from .common import WarrenCommand, cell, manager, one_line, print_json, print_table, wants_json


@click.command("status", cls=WarrenCommand)
def status() -> None:
    """Show a running manager and its cluster.

    Its role, leader, indexes, digest, members and counts.

    \b
    Example: warren-raft status --data-dir data/m1 -o json
    """
    answer = manager().status()
    if wants_json():
        print_json(answer)
    else:
        print_status(answer)


def print_status(answer: dict[str, Any]) -> None:
    """Simple values as lines, then counts on one line, each alarm on its own, the members as a table."""
    simple = {name: value for name, value in answer.items() if not isinstance(value, dict | list)}
    lines = simple | {name: value for name, value in answer.items() if isinstance(value, dict)}
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {cell(value)}")
    for alarm in answer.get("alarms") or []:
        click.echo(f"{'alarm':<{width}}  {_alarm_line(alarm)}")
    if not answer.get("alarms"):
        click.echo(f"{'alarm':<{width}}  -")
    members = answer.get("members") or []
    if members:
        click.echo()
        print_members(members)


def _alarm_line(alarm: dict[str, Any]) -> str:
    about = f" {alarm['subject']}" if alarm["subject"] else ""
    return cell(f"{alarm['severity']} {alarm['name']}{about} since {alarm['since']}: {alarm['text']}")


def print_members(members: list[dict[str, Any]]) -> None:
    """Members as a table; the columns are what the manager tells of each."""
    headers = list(dict.fromkeys(name for member in members for name in member))
    print_table([one_line(header) for header in headers], [[m.get(name) for name in headers] for m in members])
