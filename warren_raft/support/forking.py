"""A forked child closes its copies of sockets, because the last copy of a socket matters to others.

A child gets a copy of each socket and may outlive its parent. The port would stay bound, and the links of a dead
manager would stay open, so that no peer noticed its death. Not here: closing the stores (manager/store.py,
store/database.py) and releasing the lock (store/ownership.py) in a child. Invariant: in a child each of these numbers
leads to /dev/null and not to the parent's socket, so that code which closes the number later closes nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Final, Protocol


class Holder(Protocol):
    """An object with sockets."""

    def descriptors(self) -> Iterable[int]:
        """The numbers of its descriptors; -1 is skipped. Called in a child without other threads: it takes no lock."""


PARENTS: Final = "the store belongs to the parent process of a fork: open a store in this process"
"""The text of a Closed in a forked child."""

_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def let_go_in_child(holder: Holder) -> None:
    """Do it in each child that is forked from now on, for as long as the holder exists."""
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
