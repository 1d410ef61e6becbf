"""A call that may hang, such as a look at a disk or a network share that does not answer, with a deadline.

Not here: the calls. Invariant: the caller waits no longer than its deadline, and the process can end while a call
still hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import click

from warren_raft.errors import WarrenError
from warren_raft.support.waiting import Reply

T = TypeVar("T")


class NoAnswer(WarrenError):
    """A call has not ended by its deadline. The text names the thing that did not answer, and the seconds."""


class NoThread(NoAnswer):
    """The call was not made, because no thread could be started for it."""


def within(seconds: float, thing: str, call: Callable[[], T]) -> T:
    """The result or the exception of `call`, which a daemon thread makes with the context of this command.

    Raises NoAnswer at the deadline. The thread then stays where it hangs, until the process ends. Raises NoThread if
    the system has no thread for the call.
    """
    reply: Reply[T] = Reply()
    context = click.get_current_context(silent=True)

    def make() -> None:
        try:
            if context is None:
                value = call()
            else:
                with context.scope(cleanup=False):
                    value = call()
        except BaseException as error:  # noqa: BLE001  it belongs to the caller
            reply.fail(error)
        else:
            reply.give(value)

    try:
        threading.Thread(target=make, name=f"warren-raft waits for {thing}", daemon=True).start()
    except RuntimeError:
        raise NoThread(
            f"{thing} was not looked at, because no thread could be started: raise the limit of threads (ulimit -u, "
            "or TasksMax of the systemd unit)"
        ) from None
    if not reply.wait(seconds):
        raise NoAnswer(f"{thing} did not answer within {seconds:g} s")
    return reply.result()
