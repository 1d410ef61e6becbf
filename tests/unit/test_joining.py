"""The promise: a program that embeds a manager starts from the join file, and later from the data directory alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports
from warren_raft.certificates.ca import Authority


@pytest.fixture
def join(tmp_path: Path) -> Path:
    addresses = {f"m{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    joins = Authority.create(tmp_path / "ca").issue(addresses)
    joins[1].write(tmp_path / "m2.join")
    return tmp_path / "m2.join"


def test_a_config_has_what_the_join_file_says_and_what_the_caller_names(join: Path, tmp_path: Path) -> None:
    config = wr.config_from_join(join, data_dir=tmp_path / "m2", write_timeout_seconds=3)
    assert (config.node_id, sorted(config.members)) == ("m2", ["m1", "m2", "m3"])
    assert config.listen == config.members["m2"]
    assert (config.data_dir, config.join) == (str(tmp_path / "m2"), str(join))
    assert config.write_timeout_seconds == 3
    moved = {**config.members, "m2": "127.0.0.1:1"}
    config = wr.config_from_join(join, data_dir=tmp_path / "m2", listen="127.0.0.1:1", members=moved)
    assert (config.listen, dict(config.members)) == ("127.0.0.1:1", moved)
    with pytest.raises(wr.InvalidConfig, match="no such setting"):
        wr.config_from_join(join, data_dir=tmp_path / "m2", write_timeout=3)
    assert not (tmp_path / "m2").exists()


def test_a_file_that_is_no_join_file_and_one_that_is_missing_are_refused(join: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    with pytest.raises(wr.InvalidEntity, match="is not a join file"):
        wr.config_from_join(tmp_path / "other", data_dir=tmp_path / "m2")
    join.chmod(0o644)
    with pytest.raises(wr.RefusedForSafety):
        wr.config_from_join(join, data_dir=tmp_path / "m2")
    join.unlink()
    with pytest.raises(FileNotFoundError, match=r"m2\.join"):
        wr.config_from_join(join, data_dir=tmp_path / "m2")


def test_a_manager_that_has_started_once_needs_its_join_file_no_more(join: Path, tmp_path: Path) -> None:
    """Also with the settings that were named at that start."""
    config = wr.config_from_join(join, data_dir=tmp_path / "m2")
    wr.ReplicatedStore(config).close()
    join.unlink()
    again = wr.config_from_join(join, data_dir=tmp_path / "m2")
    assert again == config
    with wr.ReplicatedStore(again):
        pass
