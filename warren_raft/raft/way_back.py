"""The way back of a manager whose data directory cannot be used any more: one sentence for its operator.

Lives here: that sentence, for every message that needs it. Not here: when a manager needs it. Pure. Invariant: it has
every command that is needed, with the manager's id; with a CA of the cluster's own it has the new certificate too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warren_raft.certificates.identity import LOCAL_TRUST_DOMAIN

if TYPE_CHECKING:
    from warren_raft.raft.membership import Membership


def way_back(
    member_id: str, address: str, trust_domain: str, *, is_removed: bool = False, is_empty: bool = False
) -> str:
    """`address`: at which it is to be added again. `trust_domain`: of the cluster; "" and that of the local CA mean
    that no operator issues certificates. `is_removed`: it is no member any more. `is_empty`: it already runs on an
    empty directory."""
    remove = [] if is_removed else [f"warren-raft members remove {member_id}"]
    aside = f"move the data directory of {member_id} aside, start {member_id} on an empty one"
    if trust_domain in ("", LOCAL_TRUST_DOMAIN):
        commands = "; ".join([*remove, f"warren-raft members add {member_id}={address or 'HOST:PORT'}"])
        return f"{'' if is_empty else f'{aside}, then '}type on another manager: {commands}"
    first = "".join(f"type on another manager: {command}; then " for command in remove)
    issue = f"{first}type on the CA's host: warren-raft cert issue {member_id} --ca DIR; then "
    if is_empty:
        return (
            f"{issue}copy {member_id}.join over the old one on its host; {member_id} joins by itself, without a restart"
        )
    return f"{issue}{aside} with --join {member_id}.join; the leader adds it by itself"


def way_back_in(membership: Membership | None, member_id: str) -> str:
    """The same as far as the list of members is known, and the member is in it."""
    member = None if membership is None else membership.members.get(member_id)
    if membership is None or member is None:
        return way_back_unknown(member_id)
    return way_back(member_id, member.address, membership.trust_domain)


def join_first(member_id: str, address: str, trust_domain: str) -> str:
    """The next steps for a manager that is to be added, and does not answer at its address."""
    if trust_domain in ("", LOCAL_TRUST_DOMAIN):
        return f"start {member_id} there, on an empty data directory"
    return (
        "if it has no certificate of this cluster, type on the CA's host: warren-raft cert issue "
        f"{member_id}={address} --ca DIR; then start {member_id} there, on an empty data directory, with --join "
        f"{member_id}.join"
    )


def way_back_unknown(member_id: str) -> str:
    """The same for a manager that cannot read its cluster's list of members."""
    return (
        f"move the data directory of {member_id} aside, and type on another manager: warren-raft members remove "
        f"{member_id}; that command prints the next steps"
    )
