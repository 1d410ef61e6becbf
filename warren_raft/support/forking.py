"""A forked child has copies of its parent's stores, which are closed there, and of sockets, which it lets go of.

A child may outlive its parent. With its copies of sockets, the port would stay bound, and the links of a dead manager
would stay open, so that no peer noticed its death. Not here: databases (store/database.py) and locks
(store/ownership.py) in a child. Invariant: in a child each number of a socket leads to /dev/null and not to the
parent's socket, so that code which closes the number later closes nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")


class Holder(Protocol):
    """An object with sockets."""

    def descriptors(self) -> Iterable[int]:
        """The numbers of its descriptors; -1 is skipped. Called in a child without other threads: it takes no lock."""


PARENTS: Final = "the store belongs to the parent process of a fork: open a store in this process"
"""The text of a Closed in a forked child."""

_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_calls: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def let_go_in_child(holder: Holder) -> None:
    """Do it in each child that is forked from now on, for as long as the holder exists."""
    _holders.add(holder)


def call_in_child(store: T, function: Callable[[T], None]) -> None:
    """Call `function(store)` in each child that is forked from now on, for as long as the store exists. No other thread
    runs there, and a lock may be taken for ever."""
    _calls[store] = function


def _call() -> None:
    for store, function in list(_calls.items()):
        function(store)


def _let_go() -> None:
    descriptors = [number for holder in _holders for number in holder.descriptors() if number >= 0]
    if not descriptors:
        return
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in descriptors:
        os.dup2(nowhere, number, inheritable=False)
    os.close(nowhere)


os.register_at_fork(after_in_child=_let_go)
os.register_at_fork(after_in_child=_call)
