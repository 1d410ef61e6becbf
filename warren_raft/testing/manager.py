"""A manager of a test: a real one, which can also be killed, paused, and cut off from others, within one process.

Lives here: doing each of these to one manager. Not here: the choice of the manager (cluster.py).
Invariant: a manager that is paused or killed sends nothing, and writes nothing more to its log than the batches that
were on their way. From a manager that is cut off no byte arrives until it is reachable again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Sequence
from typing import Any, Final

from warren_raft.config import Config
from warren_raft.errors import InvariantViolation
from warren_raft.manager.parts import Parts
from warren_raft.manager.store import ReplicatedStore
from warren_raft.raft.links.connection import Connection
from warren_raft.raft.links.transport import LinkEnd, Transport
from warren_raft.store.transactions import Ended

OBEY_SECONDS: Final = 30.0
"""How long a raft thread may need for a request of a test. It takes milliseconds, and more on a busy machine."""
KILLED: Final = Ended("the manager of this view was killed")
LOOK_SECONDS: Final = 0.1
"""How often a paused manager's own thread looks whether it goes on."""


class Network:
    """Which managers can reach one another. Any thread."""

    def __init__(self) -> None:
        self._groups: Sequence[Collection[str]] = ()

    def part(self, groups: Sequence[Collection[str]]) -> None:
        """Only members of the same group can. No groups: all can."""
        self._groups = groups

    def group_of(self, id_: str) -> Collection[str] | None:
        """The managers that it can reach, itself included; None: all."""
        groups = self._groups
        return next((group for group in groups if id_ in group), None)

    def is_cut(self, one: str, other: str | None) -> bool:
        """Whether two managers cannot. None: the id of the other one is not known yet."""
        group = self.group_of(one)
        return group is not None and other is not None and other not in group


class Links(Transport):
    """The links of one manager, through a network that may be cut. A cut loses no byte and ends no link, as on a real
    network: everything that was sent arrives when the network is whole again, unless the link has ended by its silence
    before."""

    def __init__(self, network: Network, **settings: Any) -> None:
        super().__init__(**settings)
        self._network = network
        self._is_killed = False

    def follow_network(self) -> None:
        """The network has changed."""
        for connection in self._connections:
            self._follow_network(connection)

    def kill(self) -> None:
        """From now on the links end without a goodbye, as the kernel ends those of a dead process."""
        self._is_killed = True

    def _follow_network(self, connection: Connection) -> None:
        connection.hold(self._network.is_cut(self.node_id, connection.peer_id))

    async def connect(self, peer_id: str, host: str, port: int) -> Connection:
        if self._network.is_cut(self.node_id, peer_id):
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        connection = await super().connect(peer_id, host, port)
        self._follow_network(connection)
        return connection

    def _bring_up(self, peer_id: str, connection: Connection) -> None:
        super()._bring_up(peer_id, connection)
        self._follow_network(connection)  # its peer is known only now, if the peer dialled

    async def close(self) -> None:
        if self._is_killed:
            for connection in list(self._connections):
                connection.close(LinkEnd.CLOSED, "this manager was killed", abort=True)
        await super().close()


class ManagerParts(Parts):
    """The parts of a manager of a test."""

    links: Links

    def __init__(self, config: Config, network: Network) -> None:
        super().__init__(config, make_transport=self._made_links)
        self._network = network
        self._runs = threading.Event()
        self._runs.set()
        self._is_killed = False

    def _made_links(self, **settings: Any) -> Links:
        self.links = Links(self._network, **settings)
        return self.links

    @property
    def is_paused(self) -> bool:
        return not self._runs.is_set()

    def pause(self) -> None:
        """Stop the raft thread where it is. Returns when it stands still."""
        self._runs.clear()
        stands = threading.Event()
        self.driver.call(self._stand_still, stands)
        self._obeyed(stands)

    def resume(self) -> None:
        self._runs.set()

    def _stand_still(self, stands: threading.Event) -> None:
        """In the raft thread."""
        stands.set()
        self._runs.wait()
        self.links.follow_network()  # before it reads the messages that have arrived meanwhile

    def follow_network(self) -> None:
        """The network has changed. Returns when this manager has noticed; a paused one will, before it does anything
        else."""
        noticed = threading.Event()

        def notice() -> None:
            self.links.follow_network()
            noticed.set()

        if self.life.is_alive and not self.is_paused:
            self.driver.call(notice)
            self._obeyed(noticed)

    def _obeyed(self, event: threading.Event) -> None:
        if not event.wait(OBEY_SECONDS) and self.life.is_alive:
            raise InvariantViolation(f"{self.config.node_id} did nothing for {OBEY_SECONDS:g} s")

    def kill(self) -> None:
        """End this manager as SIGKILL ends a process. Returns when its port and its directory are free."""
        if not self.life.is_ended:
            self._own.call(self._die)
        self.close()

    def _die(self) -> None:
        """In the own thread."""
        self._is_killed = True
        self.life.is_closed = True  # so leadership is not handed over
        self.driver.end_writes("this manager was killed")  # and no further step is made
        self.links.kill()
        self._runs.set()

    # Of Parts ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._runs.set()
        super().close()

    def _look_after(self) -> float | None:
        """A process that is stopped by a signal does not notice that its threads stand still."""
        return LOOK_SECONDS if self.is_paused else super()._look_after()

    def _close_opened(self) -> None:
        if self._is_killed:
            for transaction in self.opened.database._open_reads():
                if transaction.expires:
                    transaction.end(KILLED)  # otherwise an open view would keep the file from being opened again
            self.opened.release()
        else:
            super()._close_opened()


class Manager(ReplicatedStore):
    """A manager of a test, as a program sees it: nothing differs from ReplicatedStore."""

    _test: ManagerParts
    """For the cluster of the test."""

    def __init__(self, config: Config, network: Network) -> None:
        self._network = network
        super().__init__(config)

    def _made_parts(self) -> Parts:
        self._test = ManagerParts(self.config, self._network)
        return self._test
