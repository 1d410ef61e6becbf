"""`warren-raft status`: what a running manager says of itself and of its cluster.

The manager makes the answer (`ReplicatedStore.status`), the verdict too; it is only printed here. Invariant: the exit
code of `--check` follows from the verdict's state alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from .common import WarrenCommand, manager, print_json, wants_json, wants_wide
from .tables import Column, age, one_line, print_fields, print_table, print_text, time_shown

CHECK_CODES: Final[Mapping[str, int]] = {"healthy": 0, "degraded": 1, "no quorum": 6}
NOT_LINES: Final = ("verdict", "waits")
"""Shown otherwise, or only where there is something to show."""
DIGEST_SHOWN: Final = 16
"""Characters of a digest: enough to compare two managers by; all of them with -o wide."""
MEMBER_COLUMNS: Final = ("id", "address", "connected", "voter", "leader")
CLUSTER_COLUMNS: Final = (
    *("id", "role", "contact", "applied", "lag", "free", "database"),
    Column("version", gives=True),
    Column("address", wide=True),
    Column("alarms", gives=True),
)


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
        print_cluster(answer["members"], wide=wants_wide())
    elif check:
        print_verdict(answer)
    else:
        print_status(answer, wide=wants_wide())
    return CHECK_CODES[answer["verdict"]["state"]] if check else 0


def print_verdict(answer: Mapping[str, Any]) -> None:
    """`healthy: m1 leads term 4, 3 of 3 connected, tolerates 1 failure`."""
    verdict = answer["verdict"]
    state = f"{verdict['state']}: "
    print_text(one_line(state + verdict["text"]), indent=len(state))


def print_status(answer: Mapping[str, Any], *, wide: bool = False) -> None:
    """The verdict, simple values as lines, then counts on one line, each alarm on its own, the members as a table."""
    print_verdict(answer)
    click.echo()
    shown = {name: value for name, value in answer.items() if name not in NOT_LINES and not isinstance(value, list)}
    if not wide and "digest" in shown:
        shown["digest"] = shown["digest"][:DIGEST_SHOWN]
    if shown.get("certificate") is not None:
        shown["certificate"] = _certificate_line(shown["certificate"], wide=wide)
    lines = sorted(shown.items(), key=lambda line: isinstance(line[1], dict))
    print_fields([*lines, *(("alarm", _alarm_line(alarm, wide=wide)) for alarm in answer["alarms"])])
    if answer["members"]:
        click.echo()
        print_members(answer["members"], wide=wide)


def _certificate_line(certificate: Mapping[str, Any], *, wide: bool) -> str:
    ends = time_shown(certificate["not_after"], wide=wide)
    return f"expires {ends}, serial {certificate['serial']}, trust domain {certificate['trust_domain']}"


def _alarm_line(alarm: Mapping[str, Any], *, wide: bool) -> str:
    about = f" {alarm['subject']}" if alarm["subject"] else ""
    since = f"since {alarm['since']}" if wide else f"for {time_shown(alarm['since'], wide=False)}"
    return f"{alarm['severity']} {alarm['name']}{about} {since}: {alarm['text']}"


def print_members(members: Sequence[Mapping[str, Any]], *, wide: bool) -> None:
    """Who belongs to the cluster, and whether the manager is connected with each."""
    print_table(MEMBER_COLUMNS, [[member[name] for name in MEMBER_COLUMNS] for member in members], wide=wide)


def print_cluster(members: Sequence[Mapping[str, Any]], *, wide: bool) -> None:
    """How each member is, as far as the manager has heard."""
    print_table(CLUSTER_COLUMNS, [_cluster_row(member) for member in members], wide=wide)


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
        member["address"],
        alarms,
    ]


def _contact(member: Mapping[str, Any]) -> str:
    seconds = member["contact_age_seconds"]
    heard = "never heard" if seconds is None else age(seconds)
    return heard if member["connected"] else f"away {heard}"


def _size(size_bytes: int | None) -> str | None:
    """In the largest unit of which there is at least one."""
    if size_bytes is None:
        return None
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{size_bytes} B"
