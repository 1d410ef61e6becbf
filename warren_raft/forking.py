"""What a forked child lets go of: sockets, whose last copy means something to others.

A child gets a copy of each, and may outlive its parent: the port would stay bound, and a dead manager's links open, so
that nobody noticed its death. Not here: what closes the stores (manager.py, database.py) and lets the lock go
(generations.py) in a child. Invariant: in a child none of these numbers leads to the parent's socket any more, but to
/dev/null, so that whatever closes it later closes nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Final, Protocol


class Holder(Protocol):
    """Something with sockets."""

    def descriptors(self) -> Iterable[int]:
        """Theirs, as numbers; -1 is skipped. Called in a child, where no other thread runs: it takes no lock."""


PARENTS: Final = "the store belongs to the parent process of a fork: open a store in this process"
"""What the text of a Closed says in a forked child."""

_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def let_go_in_child(holder: Holder) -> None:
    """In each child forked from now on, for as long as the holder exists."""
    _holders.add(holder)


def _let_go() -> None:
    descriptors = [number for holder in _holders for number in holder.descriptors() if number >= 0]
    if not descriptors:
        return
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in descriptors:
        os.dup2(nowhere, number, inheritable=False)
    os.close(nowhere)


os.register_at_fork(after_in_child=_let_go)
