"""`warren-raft members …` and `warren-raft leader …`: who belongs to the cluster and who leads it.

Whether a change is safe is decided by the manager, one change at a time; it is only asked for here.
"""

from __future__ import annotations

import click

from .common import MemberType, NodeIdType, WarrenGroup, manager, print_json, timeout_option, wants_json, wants_wide
from .status import print_members
from .tables import one_line


@click.group("members", cls=WarrenGroup)
def members() -> None:
    """List, add, move and remove managers.

    \b
    Example: warren-raft members list --data-dir data/m1
    """


@members.command("list")
def list_() -> None:
    """Show every manager of the cluster.

    For each: its address, whether this one is connected to it, whether it votes and whether it leads.

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

    Start it first, with the cluster's members and itself as --member. Done once it has caught up and votes.

    \b
    Example: warren-raft members add m4=127.0.0.1:7949 --data-dir data/m1
    """
    manager().add_member(*member, timeout=timeout)
    _say_done(f"added {member[0]} at {member[1]}")


@members.command("update")
@click.argument("member", type=MemberType(), metavar="ID=HOST:PORT")
@timeout_option
def update(member: tuple[str, str], timeout: float | None) -> None:
    """Tell the cluster that a manager has moved to another address.

    Says so when that manager does not answer there: its address is changed all the same.

    \b
    Example: warren-raft members update m3=127.0.0.1:8948 --data-dir data/m1
    """
    member_id, address = member
    warning = manager().update_member(member_id, address, timeout=timeout)
    if wants_json():
        print_json({"done": f"moved {member_id} to {address}", "warning": warning or None})
        return
    click.echo(f"moved {member_id} to {address}")
    if warning:
        click.echo(f"warren-raft: {one_line(warning)}", err=True)


@members.command("remove")
@click.argument("member_id", type=NodeIdType(), metavar="ID")
@timeout_option
def remove(member_id: str, timeout: float | None) -> None:
    """Remove a manager; done as well when ID is not a member, which is then said.

    Refused when the cluster would lose its quorum. A removed manager stops; its directory is of no more use. Leave it
    running until the command is done: its vote may be needed until then.

    \b
    Example: warren-raft members remove m3 --data-dir data/m1
    """
    asked = manager()
    was_member = any(member["id"] == member_id for member in asked.members())
    asked.remove_member(member_id, timeout=timeout)  # in any case: the leader may know of one who was added just now
    _say_done(f"removed {member_id}" if was_member else f"{member_id} is not a member")


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

    That is the manager ID, or without an ID whichever is best prepared.

    \b
    Example: warren-raft leader transfer m2 --data-dir data/m1
    """
    leader_id = manager().transfer_leadership(member_id, timeout=timeout)
    if wants_json():
        print_json({"leader": leader_id})
    else:
        click.echo(f"{leader_id} leads")


def _say_done(text: str) -> None:
    if wants_json():
        print_json({"done": text})
    else:
        click.echo(text)
