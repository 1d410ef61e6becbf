"""The release before this one, made from this source: it reads the command set up to level 1.

Its managers take the part of older ones in upgrades. `become` changes a whole process for good; `made` changes it for a
`with` block, so a test in one process can open a directory with either release. Not here: any switch in the product.
Invariant: it reads no command of version 2, and knows none of the messages that came with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from warren_raft.raft import beats, messages
from warren_raft.raft.membership import Hello
from warren_raft.store import command, levels

LEVEL_MAX = 1
UNKNOWN_MESSAGES = ("read_index", "read_index_is", "confirm", "confirmed", "beats", "beats_wanted")


def become() -> None:
    """This process runs the previous release from now on."""
    _change(pytest.MonkeyPatch())


@contextlib.contextmanager
def made() -> Iterator[None]:
    """This process runs the previous release within the block."""
    with pytest.MonkeyPatch.context() as patch:
        _change(patch)
        yield


def _change(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(levels, "NEWEST", LEVEL_MAX)
    patch.setattr(command, "SUPPORTED_VERSIONS", range(1, LEVEL_MAX + 1))
    patch.setattr(command, "_NEWER_VERSIONS", range(LEVEL_MAX + 1, 24))
    patch.setattr(command, "_HEADS", ())  # no command begins with them: `decode` reads version 1 only
    for name in UNKNOWN_MESSAGES:
        patch.delitem(messages.BY_NAME, name)
    patch.setattr(beats.NodeBeats, "tick", lambda _self: None)
    of_this_release = Hello.to_message

    def to_message(self: Hello) -> dict[str, Any]:
        return {name: value for name, value in of_this_release(self).items() if name != "level_max"}

    patch.setattr(Hello, "to_message", to_message)
