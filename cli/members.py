"""`warren-raft members …` and `warren-raft leader …`: the members of the cluster, and its leader.

Not here: whether a change is safe, which the manager decides. Invariant: each command asks for one change at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from warren_raft.certificates.identity import LOCAL_TRUST_DOMAIN
from warren_raft.raft.way_back import way_back

from .common import (
    MemberType,
    NodeIdType,
    ShowingCommand,
    WarrenGroup,
    manager,
    print_json,
    timeout_option,
    wants_json,
    wants_wide,
)
from .status import print_members
from .tables import one_line, say


@click.group("members", cls=WarrenGroup)
def members() -> None:
    """List, add, move and remove managers.

    \b
    Example: warren-raft members list --data-dir data/m1
    """


@members.command("list", cls=ShowingCommand)
def list_() -> None:
    """Show every manager of the cluster.

    For each manager: its address, whether this manager is connected to it, whether it votes and whether it leads.

    \b
    Example: warren-raft members list --data-dir data/m1 -o json
    """
    answer = manager().members()
    if wants_json():
        print_json(answer)
    else:
        print_members(answer, wide=wants_wide())


@members.command("add")
@click.argument("member", type=MemberType(), metavar="ID=HOST:PORT")
@timeout_option
def add(member: tuple[str, str], timeout: float | None) -> None:
    """Add a manager that runs on an empty directory.

    Start the manager first, with the cluster's members and itself as --member. The command is done when the manager
    has caught up and votes. If it is a member already, at this address, the command says so and succeeds.

    \b
    Example: warren-raft members add m4=127.0.0.1:7949 --data-dir data/m1
    """
    asked, (member_id, address) = manager(), member
    was_member = any(each["id"] == member_id for each in asked.members())
    asked.add_member(member_id, address, timeout=timeout)
    _say_done(f"{member_id} is a member already, at {address}" if was_member else f"added {member_id} at {address}")


@members.command("update")
@click.argument("member", type=MemberType(), metavar="ID=HOST:PORT")
@timeout_option
def update(member: tuple[str, str], timeout: float | None) -> None:
    """Tell the cluster that a manager has moved to another address.

    If the manager does not answer there, its address is changed too, and the command says that it does not answer.

    \b
    Example: warren-raft members update m3=127.0.0.1:8948 --data-dir data/m1
    """
    asked, (member_id, address) = manager(), member
    before = asked.status()
    warning = asked.update_member(member_id, address, timeout=timeout)
    if wants_json():
        print_json({"done": f"moved {member_id} to {address}", "warning": warning or None})
        return
    say(f"moved {member_id} to {address}")
    if warning:
        say(f"warren-raft: {one_line(warning)}", err=True)
        earlier = {each["id"]: each["address"] for each in before["members"]}.get(member_id, address)
        undo = f"warren-raft members update {member_id}={earlier}"
        if earlier != address and undo not in warning:
            say(f"to undo that, type: {undo}")
    elif _has_ca(before):
        say(f"next: tell the cluster's CA too: warren-raft cert issue {member_id}={address} --ca DIR")


@members.command("remove")
@click.argument("member_id", type=NodeIdType(), metavar="ID")
@timeout_option
def remove(member_id: str, timeout: float | None) -> None:
    """Remove a manager. If ID is not a member, the command says so and succeeds.

    Refused if the cluster would lose its quorum. Also refused while the state of another member is wrong, if no
    majority with the right state would stay. A removed manager stops; its directory cannot be used again. Leave the
    manager running until the command is done: its vote may be needed until then.

    \b
    Example: warren-raft members remove m3 --data-dir data/m1
    """
    asked = manager()
    before = asked.status()
    was_member = any(member["id"] == member_id for member in before["members"])
    asked.remove_member(member_id, timeout=timeout)  # also if it is not a member here: it may have been added just now
    _say_done(f"removed {member_id}" if was_member else f"{member_id} is not a member")
    if was_member and not wants_json():
        address = next(member["address"] for member in before["members"] if member["id"] == member_id)
        trust_domain = before["certificate"]["trust_domain"] if before["certificate"] else ""
        say(f"to add {member_id} again: {way_back(member_id, address, trust_domain, is_removed=True)}")
        if _has_ca(before):
            say(f"if {member_id} does not come back: warren-raft cert issue ID --forget {member_id} --ca DIR")


def _has_ca(status: Mapping[str, Any]) -> bool:
    """Whether an operator's CA knows the addresses of the members."""
    certificate = status["certificate"]
    return certificate is not None and certificate["trust_domain"] != LOCAL_TRUST_DOMAIN


@click.group("leader", cls=WarrenGroup)
def leader() -> None:
    """Hand leadership over.

    \b
    Example: warren-raft leader transfer m2 --data-dir data/m1
    """


@leader.command("transfer")
@click.argument("member_id", type=NodeIdType(), metavar="[ID]", required=False)
@timeout_option
def transfer(member_id: str | None, timeout: float | None) -> None:
    """Hand leadership to another manager.

    Without ID, the member that is best prepared takes over.

    \b
    Example: warren-raft leader transfer m2 --data-dir data/m1
    """
    leader_id = manager().transfer_leadership(member_id, timeout=timeout)
    if wants_json():
        print_json({"leader": leader_id})
    else:
        say(f"{leader_id} leads")


def _say_done(text: str) -> None:
    if wants_json():
        print_json({"done": text})
    else:
        say(text)
