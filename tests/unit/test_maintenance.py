"""The work of an operator on snapshots and stopped directories can be done by a program, without the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports


def config(directory: Path, node_id: str, address: str) -> wr.Config:
    return wr.Config(node_id=node_id, data_dir=directory, listen=address, members={node_id: address}, admin=False)


def test_a_program_saves_verifies_restores_describes_and_recovers(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with wr.ReplicatedStore(config(tmp_path / "m1", "m1", address)) as store:
        store.wait_ready(30)
        store.create_node(wr.Node(id="n"))
        saved = store.snapshot(tmp_path / "s.snapshot")
    assert wr.inspect(tmp_path / "s.snapshot") == wr.verify(tmp_path / "s.snapshot") == saved
    assert saved.counts["nodes"] == 1

    made = wr.restore(tmp_path / "s.snapshot", tmp_path / "m9", node_id="m9", members={"m9": address})
    assert (made.node_id, made.old, made.counts["nodes"]) == ("m9", saved, 1)
    with wr.ReplicatedStore(config(tmp_path / "m9", "m9", address)) as store:
        store.wait_ready(30)
        assert [node.id for node in store.list_nodes()] == ["n"]

    described = wr.describe(tmp_path / "m1")
    assert (described.node_id, described.cluster_id, described.standing) == ("m1", saved.cluster_id, "voter")
    recovered = wr.recover(tmp_path / "m1")
    assert recovered.cluster_id not in (saved.cluster_id, made.cluster_id)
    assert recovered.counts["nodes"] == 1


def test_they_refuse_what_the_commands_refuse(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no snapshot")
    for refuse in (wr.inspect, wr.verify):
        with pytest.raises(wr.SnapshotInvalid):
            refuse(tmp_path / "text")
    with pytest.raises(wr.RefusedForSafety, match="there is no directory"):
        wr.recover(tmp_path / "nothing")
    with pytest.raises(wr.RefusedForSafety, match="there is no directory"):
        wr.describe(tmp_path / "nothing")
