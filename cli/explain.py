"""`warren-raft explain`: why writes were slow: the stages of the last slow writes of a manager, as a table.

Not here: the stages and the reason, which the manager knows (warren_raft/manager/slow_writes.py). Invariant: it only
reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from warren_raft.support.wording import counted

from .common import ShowingCommand, manager, print_json, wants_json, wants_wide
from .tables import Column, print_table, print_text, time_shown

SHOWN_MAX: Final = 15
"""Rows of the table, so that it fits a terminal. With -o wide and -o json all are shown."""
COLUMNS: Final = (
    Column("ago"),
    Column("write", gives=True),
    *map(Column, ("took", "queue", "sync", "followers", "disk", "leader", "apply", "wake")),
    Column("error", gives=True),
    *(Column(name, wide=True) for name in ("at", "index", "bytes", "tries", "led by", "all followers")),
)
ALWAYS: Final = ("ago", "write", "took", "queue", "apply")
"""Any other column is left out if it has no value in any row."""


@click.command("explain", cls=ShowingCommand)
def explain() -> None:
    """Show why writes were slow: the stages of the last ones.

    Shows the writes of this manager's callers that took longer than its slow_write_seconds. If there are none, it shows
    the slowest ones of the last ten minutes. The stages of a write follow each other:

    \b
    queue      until the leader made a log entry of it; on another manager:
               until it was sent to the leader
    sync       until the leader's own disk had the entry
    followers  at the same time: until the follower answered that completed
               a majority; disk: the part of it that its disk took
    leader     on another manager: until the leader had committed the write
    apply      until the entry was applied here
    wake       until the thread of the caller ran again

    \b
    Example: warren-raft explain --data-dir data/m1
    """
    answer = manager().explain()
    if wants_json():
        print_json(answer)
    else:
        print_explanation(answer, wide=wants_wide())


def print_explanation(answer: Mapping[str, Any], *, wide: bool) -> None:
    """Prints a sentence, the writes as a table, and how often each reason was the longest stage."""
    limit = duration(answer["slow_write_seconds"])
    is_slow = bool(answer["slow"])
    writes: Sequence[Mapping[str, Any]] = answer["slow"] if is_slow else answer["slowest"]
    shown = writes if wide else writes[:SHOWN_MAX]
    if is_slow:
        newest = "" if len(shown) == len(writes) else f", the newest {len(shown)}"
        text = f"{answer['node_id']} has {counted(len(writes), 'slow write', 'slow writes')} of over {limit}{newest}:"
    elif writes:
        text = f"{answer['node_id']} has no slow write of over {limit}; the slowest of the last minutes:"
    else:
        text = f"{answer['node_id']} has no slow write of over {limit}, and no other write in the last minutes."
    print_text(text, indent=0)
    if not writes:
        return
    click.echo()
    rows = [_row(write) for write in shown]
    names = [column.header for column in COLUMNS]
    used = [at for at, name in enumerate(names) if name in ALWAYS or any(row[name] is not None for row in rows)]
    print_table([COLUMNS[at] for at in used], [[row[names[at]] for at in used] for row in rows], wide=wide)
    click.echo()
    for why, count in Counter(write["why"] for write in shown).most_common():
        lead = f"{count} of {len(shown)}: "
        print_text(lead + why, indent=len(lead))


def _row(write: Mapping[str, Any]) -> dict[str, object]:
    stages = {name: duration(seconds) for name, seconds in write["stages"].items()}
    if write["follower"] is not None:
        stages["followers"] = f"{stages['followers']} {write['follower']}"
    replies = {
        peer: " disk ".join(filter(None, (duration(reply["seconds"]), duration(reply["sync_seconds"]))))
        for peer, reply in write["followers"].items()
    }
    return {
        "ago": time_shown(write["at"], wide=False),
        "write": _name(write),
        "took": duration(write["seconds"]),
        "disk": duration(write["follower_sync_seconds"]),
        "error": write["error"],
        "at": write["at"],
        "index": write["index"],
        "bytes": write["size_bytes"] or None,
        "tries": write["tries"] or None,
        "led by": write["leader"],
        "all followers": ", ".join(f"{peer} {text}" for peer, text in replies.items()) or None,
        **stages,
    }


def _name(write: Mapping[str, Any]) -> str:
    """`put container`, `put container x17` for seventeen writes that ended together, or `entry of m2`."""
    if write["from"]:
        return f"entry of {','.join(write['from'])}"
    name = f"{write['op']} {write['kind']}".strip() or "write"
    return f"{name} x{write['writes']}" if write["writes"] > 1 else name


def duration(seconds: float | None) -> str | None:
    """A duration with two or three digits: 0.2ms, 12ms, 1.3s, 75s."""
    if seconds is None:
        return None
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
