"""`warren-raft status`: prints the report of a running manager about itself and its cluster.

Not here: the report and its verdict, which the manager makes (`ReplicatedStore.status`). Invariant: the exit code of
`--check` follows from the verdict's state alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import starmap
from typing import Any, Final

import click

from warren_raft.support.wording import in_units

from .common import WarrenCommand, manager, print_json, require_stdout, wants_json, wants_wide
from .streams import loss_accepted
from .tables import Column, age, end_shown, one_line, print_fields, print_table, print_text, say, time_shown, with_units

CHECK_CODES: Final[Mapping[str, int]] = {"healthy": 0, "degraded": 1, "no quorum": 6}
NOT_LINES: Final = ("verdict", "waits")
"""Fields that `status` does not print as a line: the verdict is printed first, and `waits` is part of its text."""
DIGEST_SHOWN: Final = 16
"""Characters of a digest: enough to compare two managers. With -o wide all characters are shown."""
LAG_NOTE: Final = (
    "Members report once a second. During writes each of them, the leader too, may show the lag of its last report."
)
MEMBER_COLUMNS: Final = ("id", "address", "connected", "voter", "leader")
CLUSTER_COLUMNS: Final = (
    *("id", "role", "contact", "applied", "lag", "free", "database"),
    Column("version", gives=True),
    "reads",
    Column("address", wide=True),
    Column("alarms", gives=True),
)


@click.command("status", cls=WarrenCommand)
@click.option("--check", is_flag=True, help="Print the verdict only; the exit code gives it too.")
@click.option("--cluster", is_flag=True, help="Show the last report of every member; the exit code is as for --check.")
def status(*, check: bool, cluster: bool) -> int:
    """Show a running manager and its cluster.

    Begins with a verdict (healthy, degraded or no quorum) and its reasons. Then it shows the manager's role, leader,
    indexes, digest, members, counts and alarms. With --check or --cluster the exit code is 0 for healthy, 1 for
    degraded (or if no manager runs), 6 for no quorum.

    \b
    Example: warren-raft status --data-dir data/m1 -o json
    Example: warren-raft status --check --data-dir data/m1
    """
    if not check:
        require_stdout()
    answer = manager().status()
    with loss_accepted(sys.stdout) if check else nullcontext():  # with --check the exit code is enough
        _print(answer, check=check, cluster=cluster)
    return CHECK_CODES[answer["verdict"]["state"]] if check or cluster else 0


def _print(answer: Mapping[str, Any], *, check: bool, cluster: bool) -> None:
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


def print_verdict(answer: Mapping[str, Any]) -> None:
    """Prints one line: `healthy: m1 leads term 4, 3 of 3 connected, tolerates 1 failure`, and a line `warning: …` if
    there is a warning."""
    verdict = answer["verdict"]
    _print_led(verdict["state"], verdict["text"])
    if verdict.get("warning"):  # a manager of an earlier release has none
        _print_led("warning", verdict["warning"])


def _print_led(lead: str, text: str) -> None:
    print_text(one_line(f"{lead}: {text}"), indent=len(lead) + 2)


def print_status(answer: Mapping[str, Any], *, wide: bool = False) -> None:
    """Prints the verdict, each simple value on a line, the counts on one line, each alarm on a line, the members as a
    table."""
    print_verdict(answer)
    click.echo()
    shown = {name: value for name, value in answer.items() if name not in NOT_LINES and not isinstance(value, list)}
    if not wide and "digest" in shown:
        shown["digest"] = shown["digest"][:DIGEST_SHOWN]
    if shown.get("certificate") is not None:
        shown["certificate"] = _certificate_line(shown["certificate"], wide=wide)
    if shown.get("backup") is not None:
        shown["backup"] = _backup_line(shown["backup"], answer, wide=wide)
    if not wide and shown.get("snapshot") is not None:
        shown["snapshot"] = _snapshot_line(shown["snapshot"])
    if not wide and shown.get("fetching") is not None:
        shown["fetching"] = f"{in_units(shown['fetching']['bytes'])} of {in_units(shown['fetching']['of'])}"
    if shown.get("oldest_foreign_read") is not None:
        shown["oldest_foreign_read"] = _foreign_read_line(shown["oldest_foreign_read"])
    lines = sorted(starmap(partial(_line, wide=wide), shown.items()), key=lambda line: isinstance(line[1], dict))
    print_fields([*lines, *(("alarm", one_line(_alarm_line(alarm, wide=wide))) for alarm in answer["alarms"])])
    if answer["members"]:
        click.echo()
        print_members(answer["members"], wide=wide)


def _line(name: str, value: Any, *, wide: bool) -> tuple[str, Any]:
    if wide:
        return name, value
    return ("uptime", age(value)) if name == "uptime_seconds" else with_units(name, value)


def _snapshot_line(snapshot: Mapping[str, Any]) -> str:
    return f"{age(snapshot['age_seconds'])} old, index {snapshot['index']}, {in_units(snapshot['size_bytes'])}"


def _certificate_line(certificate: Mapping[str, Any], *, wide: bool) -> str:
    ends = certificate["not_after"] if wide else end_shown(certificate["not_after"])
    text = ends if ends.startswith("EXPIRED") else f"expires {ends}"
    return f"{text}, serial {certificate['serial']}, trust domain {certificate['trust_domain']}"


def _foreign_read_line(read: Mapping[str, Any]) -> str:
    there = "" if read["pid_namespace"] is None else f" of namespace {read['pid_namespace']}"
    return f"process {read['pid']}{there} has kept pages for {age(read['age_seconds'])}"


def _backup_line(backup: Mapping[str, Any], answer: Mapping[str, Any], *, wide: bool) -> str:
    parts = ["none"]
    if backup["saved_at"] is not None:
        saved = time_shown(backup["saved_at"], wide=wide)
        size = size_shown(backup["size_bytes"])
        parts = [f"{saved if wide else f'{saved} old'}, index {backup['index']}, revision {backup['revision']}, {size}"]
    if backup["log_index"] is not None:
        parts.append(f"changes up to index {backup['log_index']}")
    if backup["unsaved_seconds"] is not None:
        unsaved = backup["unsaved_seconds"]
        parts.append(f"newer changes are {age(unsaved)} old" if unsaved else "every change is saved")
    if backup["failed_at"] is not None:
        parts.append(f"last failure {time_shown(backup['failed_at'], wide=wide)}{'' if wide else ' ago'}")
    text = f"{', '.join(parts)}, in {backup['directory']}"
    if answer["role"] != "leader":
        also = "" if backup["command"] is None else " and runs the backup command"
        text += f"; this manager saves backups{also} only while it leads"
    return text + _command_text(backup["command"], is_leader=answer["role"] == "leader", wide=wide)


def _command_text(command: Mapping[str, Any] | None, *, is_leader: bool, wide: bool) -> str:
    if command is None:
        return ""
    if command["running_seconds"] is not None:
        return f"; its command has run for {age(command['running_seconds'])}"
    if command["succeeded_at"] is None:
        return "; its command has not succeeded yet" if is_leader else ""
    at = time_shown(command["succeeded_at"], wide=wide)
    here = "" if is_leader else " here"
    return f"; its command succeeded{here} {at}{'' if wide else ' ago'} for index {command['index']}"


def _alarm_line(alarm: Mapping[str, Any], *, wide: bool) -> str:
    about = f" {alarm['subject']}" if alarm["subject"] else ""
    since = f"since {alarm['since']}" if wide else f"for {time_shown(alarm['since'], wide=False)}"
    return f"{alarm['severity']} {alarm['name']}{about} {since}: {alarm['text']}"


def print_members(members: Sequence[Mapping[str, object]], *, wide: bool) -> None:
    """Prints the members, whether the manager is connected to each of them, and if not, why."""
    print_table(MEMBER_COLUMNS, [[member[name] for name in MEMBER_COLUMNS] for member in members], wide=wide)
    _print_link_problems(members)


def print_cluster(members: Sequence[Mapping[str, object]], *, wide: bool) -> None:
    """Prints the last report of each member, and why a member that keeps up may show a lag."""
    print_table(CLUSTER_COLUMNS, [_cluster_row(member) for member in members], wide=wide)
    _print_link_problems(members)
    if any(member["connected"] and member["lag_entries"] for member in members):
        say(f"\n{LAG_NOTE}")


def _print_link_problems(members: Sequence[Mapping[str, object]]) -> None:
    """Prints a line for each member without a link of which the reason is known."""
    problems = [(member["id"], member.get("link_problem")) for member in members]  # an earlier release tells no reason
    lines = [f"no link with {id_}: {why}" for id_, why in problems if why]
    if lines:
        click.echo()
    for line in lines:
        print_text(one_line(line), indent=len("no link "))


def _cluster_row(member: Mapping[str, Any]) -> list[object]:
    alarms = [f"{alarm['name']} {alarm['subject']}".rstrip() for alarm in member["alarms"] or []]
    return [
        member["id"],
        role_shown(member),
        contact_shown(member),
        member["applied_index"],
        member["lag_entries"],
        size_shown(member["disk_free_bytes"]),
        size_shown(member["database_bytes"]),
        member["version"],
        member["level_max"],
        member["address"],
        alarms,
    ]


def role_shown(member: Mapping[str, Any]) -> str:
    """Its part in the cluster, in one word."""
    return "leader" if member["leader"] else "voter" if member["voter"] else "learner"


def contact_shown(member: Mapping[str, Any]) -> str:
    """The time since it was heard."""
    seconds = member["contact_age_seconds"]
    if seconds is None:
        return "never"
    return age(seconds) if member["connected"] else f"away {age(seconds)}"


def size_shown(size_bytes: int | None) -> str | None:
    """The size for people; None if it is not known."""
    return None if size_bytes is None else in_units(size_bytes)
