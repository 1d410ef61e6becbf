"""The promise: a certificate of the cluster's CA is not enough. These managers are refused, and both sides say why: a
removed manager, a manager with a directory that the cluster does not know, and a manager of the cluster from before a
restore.

The other rows of the table, about wrong certificates, are in unit/test_tls_links.py.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import warren_raft as wr
from tests.certificates import Authority
from tests.cluster.harness import WAIT_SECONDS, free_ports, wait_until
from warren_raft.recovery.restore import restore


class Managers:
    """Managers in this process, with certificates of one CA."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.authority = Authority()
        self.addresses = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(4), 1)}
        self.stores: dict[str, wr.ReplicatedStore] = {}
        self._stack = stack

    def start(self, id_: str, *members: str) -> wr.ReplicatedStore:
        """Start a manager on its present directory, with a certificate."""
        data_dir = self.directory / id_
        if not (data_dir / "tls").exists():
            data_dir.mkdir(mode=0o700, exist_ok=True)
            self.authority.issue(data_dir / "tls", id_)
        config = wr.Config(
            node_id=id_,
            data_dir=data_dir,
            listen=self.addresses[id_],
            members={each: self.addresses[each] for each in members},
            admin=False,
        )
        self.stores[id_] = store = wr.ReplicatedStore(config)
        self._stack.callback(store.close)
        return store

    def stop(self, id_: str) -> None:
        self.stores.pop(id_).close()

    def wipe(self, id_: str) -> None:
        """Empty a manager's directory, except for its certificate."""
        for each in (self.directory / id_).iterdir():
            if each.name != "tls":
                shutil.rmtree(each) if each.is_dir() else each.unlink()


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Managers]:
    with ExitStack() as stack:
        yield Managers(tmp_path, stack)


def test_a_right_certificate_is_not_enough(managers: Managers, caplog: pytest.LogCaptureFixture) -> None:
    def says(node: str, text: str) -> Callable[[], bool]:
        pattern = re.compile(rf"node={node} .*{text}")
        return lambda: any(pattern.search(line) for line in caplog.messages)

    def both_say(wrong: str, theirs: str, ours: str) -> None:
        """Wait until the refused manager and a member both say why."""
        wait_until(says(wrong, theirs), f"{wrong} to say {theirs!r}")
        wait_until(says("m[12]", ours), f"a member to say {ours!r}")

    caplog.set_level(logging.INFO, logger="warren_raft")
    for id_ in ("m1", "m2", "m3"):
        managers.start(id_, "m1", "m2", "m3")
    for store in managers.stores.values():
        store.wait_ready(WAIT_SECONDS)
        assert store.status().links == "tls"
    m1 = managers.stores["m1"]

    # A removed member: it was stopped meanwhile, and does not know that it was removed.
    managers.start("m4", "m4", "m1", "m2", "m3")
    m1.add_member("m4", managers.addresses["m4"], timeout=WAIT_SECONDS)
    managers.stop("m4")
    m1.remove_member("m4", timeout=WAIT_SECONDS)
    removed = managers.start("m4", "m4", "m1", "m2", "m3")
    both_say("m4", "m4 was removed from the cluster", "peer=m4 .*we refuse it: m4 was removed")
    assert not removed.is_ready
    managers.stop("m4")

    # An old incarnation: its directory was emptied.
    managers.stop("m3")
    managers.wipe("m3")
    emptied = managers.start("m3", "m1", "m2", "m3")
    why = "the data directory of m3 is not the one the cluster knows"
    both_say("m3", f"refuses this manager: {why}", f"peer=m3 .*we refuse it: {why}")
    assert not emptied.is_ready
    managers.stop("m3")

    # The cluster from before a restore: m1 is restored alone, and m2 goes on with its old directory.
    snapshot = managers.directory / "backup.mdb"
    m1.snapshot(snapshot)
    managers.stop("m1")
    managers.wipe("m1")
    restore(snapshot, managers.directory / "m1", node_id="m1", members={"m1": managers.addresses["m1"]})
    restored = managers.start("m1", "m1")
    restored.wait_ready(WAIT_SECONDS)
    why = f"belongs to cluster {restored.status().cluster_id}"
    both_say("m2", f"m1 refuses this manager: .*{why}", f"peer=m2 .*we refuse it: .*{why}")
