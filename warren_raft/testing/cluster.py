"""Cluster: real managers in one process, for the tests of programs that embed them.

Lives here: the managers of a test by their ids, and waiting for them. Not here: killing, pausing and
cutting off one manager (manager.py). Invariant: after `close` nothing runs and no temporary file is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from warren_raft.config import Config
from warren_raft.errors import Closed, InUse, Misuse
from warren_raft.manager.store import ReplicatedStore
from warren_raft.testing.manager import Manager, Network
from warren_raft.testing.ports import free_ports

T = TypeVar("T")

SIZE_MAX: Final = 7
POLL_SECONDS: Final = 0.01
TRIES: Final = 5
"""How often other ports are tried, if another program took one in the moment before its manager listened on it."""
OF_THE_CLUSTER: Final = frozenset({"node_id", "data_dir", "listen", "members"})
"""The fields of a Config that the cluster itself sets."""
QUICK: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "heartbeat_interval_seconds": 0.05,
        "election_timeout_seconds": 0.5,
        "admin": False,
        "insecure_plaintext": True,
    }
)
"""The settings that differ from those of a Config."""


class Cluster:
    """Real managers in one process, on 127.0.0.1: `with Cluster(size=3) as cluster`. For one thread.

    The ids are "m1", "m2" and so on, 7 managers at most. They run, and one of them leads, when the constructor
    returns. `directory`: where their data directories are, by id; it stays. A later Cluster goes on with it, on other
    ports (the alarm `address-differs` says so). None: a temporary directory, which is removed at the end.
    `timeout_seconds`: how long each wait of this class may take (default 30: enough on a busy machine).

    Everything else is a setting of `Config` for all managers. The defaults are those of Config, except for an election
    timeout of 0.5 s, heartbeats each 0.05 s, no admin socket, and links without TLS. With `insecure_plaintext=False`
    links are TLS, with the CA of this user on this host.

    A manager that is killed, paused or cut off is like a process on another host, except that

    - the program's own threads run on: they can read a manager that is paused, and their writes wait there;
    - after `kill` and `pause`, a batch of the log that was on its way is still written and synced. `kill` also brings
      `manager.json` up to date, and frees the manager's slots in the reader table. It tests the death of a process, not
      a power cut;
    - threads of a killed manager that run code of the program (`run_while_leading`, `on_leadership`) end when that code
      returns: its calls of the store raise Closed.

    Raises Misuse for an id that is not there, or a manager that is not in the state for the call, and TimeoutError.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        directory: str | os.PathLike[str] | None = None,
        timeout_seconds: float = 30.0,
        **config: Any,
    ) -> None:
        if not 1 <= size <= SIZE_MAX:
            raise Misuse(f"a Cluster has 1 to {SIZE_MAX} managers, not {size}")
        if own := sorted(OF_THE_CLUSTER & config.keys()):
            raise Misuse(f"a Cluster sets {', '.join(own)} by itself")
        self._timeout_seconds = timeout_seconds
        self._settings = {**QUICK, **config}
        self._network = Network()
        self._managers: dict[str, Manager] = {}
        self._directory = Path(tempfile.mkdtemp(prefix="warren-raft-testing-") if directory is None else directory)
        self._is_temporary = directory is None
        self.ids: Final = tuple(f"m{number}" for number in range(1, size + 1))
        """The ids of all managers."""
        self.stores: Final[Mapping[str, ReplicatedStore]] = MappingProxyType(self._managers)
        """The managers that run, also those that are paused, by id. A live view, for any thread."""
        try:
            self._start_all()
            self.leader  # noqa: B018  waits
        except BaseException:
            self.close()
            raise

    def _start_all(self) -> None:
        for tries_left in reversed(range(TRIES)):
            self._members = dict(
                zip(self.ids, (f"127.0.0.1:{port}" for port in free_ports(len(self.ids))), strict=True)
            )
            try:
                for id_ in self.ids:
                    self._open(id_)
                return
            except InUse:
                if not tries_left:
                    raise
                self._close_all()

    def _open(self, id_: str) -> None:
        config = Config(
            node_id=id_,
            data_dir=self._directory / id_,
            listen=self._members[id_],
            members=self._members,
            **self._settings,
        )
        self._managers[id_] = Manager(config, self._network)

    # One manager -------------------------------------------------------------------------------------------------

    def start(self, id: str) -> ReplicatedStore:  # noqa: A002
        """Start a manager that was stopped or killed, on its directory. It may not be ready yet: see its `wait_ready`.
        Returns its store, which is a new one."""
        self._known(id)
        manager = self._managers.get(id)
        if manager is not None and not manager._test.life.is_ended:
            raise Misuse(f"{id} runs already")
        self._open(id)
        return self._managers[id]

    def stop(self, id: str) -> None:  # noqa: A002
        """Close a manager as `close()` of its store does: leadership is handed over, the state is synced."""
        self._running(id).close()
        del self._managers[id]

    def kill(self, id: str) -> None:  # noqa: A002
        """End a manager as SIGKILL ends its process: no hand-over, no goodbye, nothing is synced. Everything that
        it has written stays. Its store is closed, and so are the views of it."""
        self._running(id)._test.kill()
        del self._managers[id]

    def pause(self, id: str) -> None:  # noqa: A002
        """Freeze a manager as SIGSTOP freezes its process: it sends nothing and answers nothing, and its links stay
        open. It does not notice: it goes on believing that it leads. Does nothing if it is paused."""
        manager = self._running(id)
        if not manager._test.is_paused:
            manager._test.pause()

    def resume(self, id: str) -> None:  # noqa: A002
        """Let a paused manager go on. Does nothing if it is not paused."""
        self._running(id)._test.resume()

    def is_paused(self, id: str) -> bool:  # noqa: A002
        """Whether a manager that runs is paused."""
        return self._running(id)._test.is_paused

    # The network -------------------------------------------------------------------------------------------------

    def part(self, *groups: str | Iterable[str]) -> None:
        """Part the network: `part("m1")` cuts m1 off from the others, `part(["m1", "m2"], "m3")` makes two groups.

        Managers of different groups cannot reach one another; those that are not named are one more group. Messages
        between two groups are held back, new links are refused, and a link ends when it has been silent for 5 s. The
        next call of `part` or `heal` replaces this one.
        """
        named = [{group} if isinstance(group, str) else set(group) for group in groups]
        for id_ in (each for group in named for each in group):
            self._known(id_)
        if len(set().union(*named)) != sum(map(len, named)):
            raise Misuse("a manager is in one group only")
        self._change_network([*named, set(self.ids).difference(*named)])

    def heal(self) -> None:
        """All managers can reach one another again. Messages that were held back arrive."""
        self._change_network([])

    def _change_network(self, groups: list[set[str]]) -> None:
        self._network.part(groups)
        for manager in self._managers.values():
            manager._test.follow_network()

    # Waiting -----------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> ReplicatedStore:
        """The manager that leads, once there is one that a majority can reach. A paused manager does not count. Its id
        is `leader.config.node_id`. Raises TimeoutError."""
        return self._led()

    @property
    def followers(self) -> tuple[ReplicatedStore, ...]:
        """The other managers that run and are not paused, once there is a leader. Raises TimeoutError."""
        leader = self.leader
        return tuple(manager for manager in self._awake() if manager is not leader)

    def wait(self, condition: Callable[[], T | None], what: str = "a condition", timeout: float | None = None) -> T:
        """Wait until `condition()` returns a true value, and return it. `what` is for the text of the TimeoutError.
        `timeout` in seconds; None: the cluster's."""
        seconds = self._timeout_seconds if timeout is None else timeout
        give_up_at = time.monotonic() + seconds
        pause = threading.Event()
        while not (found := condition()):
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"waited {seconds:g} s for {what}; {self._described()}")
            pause.wait(POLL_SECONDS)
        return found

    def wait_applied(self) -> None:
        """Wait until all that the leader has committed now is applied by each manager that runs, is not paused and can
        reach the leader, so that all of them read it. Raises TimeoutError."""
        leader = self._led()
        index = leader._test.driver.engine.commit_index

        def is_applied() -> bool:
            group = self._network.group_of(leader.config.node_id)
            others = [each for each in self._awake() if group is None or each.config.node_id in group]
            return all(each._test.opened.machine.applied_index >= index for each in others)

        self.wait(is_applied, "managers that have applied every entry of the leader")

    def _led(self) -> Manager:
        return self.wait(self._present_leader, "a leader")

    def _present_leader(self) -> Manager | None:
        leaders = [manager for manager in self._awake() if manager.is_leader and self._has_majority(manager)]
        return max(leaders, key=lambda manager: manager._test.readiness.term(), default=None)

    def _has_majority(self, manager: Manager) -> bool:
        group = self._network.group_of(manager.config.node_id)
        awake = {each.config.node_id for each in self._awake()}
        return len(awake if group is None else awake & set(group)) * 2 > len(self.ids)

    def _awake(self) -> list[Manager]:
        """The managers that run and are not paused."""
        return [each for each in list(self._managers.values()) if each._test.life.is_alive and not each._test.is_paused]

    def _described(self) -> str:
        return ", ".join(f"{id_}: {self._state_of(id_)}" for id_ in self.ids)

    def _state_of(self, id_: str) -> str:
        manager = self._managers.get(id_)
        if manager is None:
            return "does not run"
        if manager._test.is_paused:
            return "paused"
        try:
            status = manager.status()
        except Closed as error:
            return f"does not run ({error})"
        return f"{status.role} in term {status.term}, applied {status.applied_index}, {status.verdict.text}"

    # The end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all managers, also those that are paused. Idempotent."""
        try:
            self._close_all()
        finally:
            if self._is_temporary:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _close_all(self) -> None:
        """Leadership is handed over, as far as there is somebody to take it."""
        with ExitStack() as all_of_them:
            for manager in self._managers.values():
                manager._test.resume()
                all_of_them.callback(manager.close)
            all_of_them.callback(self.heal)  # called first; if it fails, all are closed nevertheless
        self._managers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return (
            f"<Cluster of {len(self.ids)} in {str(self._directory)!r}, running: {', '.join(self._managers) or 'none'}>"
        )

    # -------------------------------------------------------------------------------------------------------------

    def _known(self, id_: str) -> None:
        if id_ not in self.ids:
            raise Misuse(f"there is no manager {id_!r} in this cluster: its ids are {', '.join(self.ids)}")

    def _running(self, id_: str) -> Manager:
        self._known(id_)
        manager = self._managers.get(id_)
        if manager is None or manager._test.life.is_ended:
            raise Misuse(f"{id_} does not run: start it first")
        return manager
