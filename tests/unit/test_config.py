"""The promise: a Config that exists is valid, never changes, and every wrong setting is reported with its field.

A manager started with a typing error in its settings could otherwise form a cluster of its own.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from warren_raft.config import (
    Config,
    check_address,
    check_node_id,
    split_address,
)
from warren_raft.errors import InvalidConfig, InvalidEntity

THREE = {"m1": "127.0.0.1:7946", "m2": "127.0.0.1:7947", "m3": "127.0.0.1:7948"}


def settings(**changes: Any) -> dict[str, Any]:
    return {"node_id": "m1", "data_dir": "data/m1", "listen": "127.0.0.1:7946", "members": THREE} | changes


def test_the_documented_example_is_valid_and_has_the_documented_defaults() -> None:
    config = Config(**settings())
    assert config.members == THREE
    assert config.write_timeout_seconds == 10.0
    assert config.switch_interval_seconds == 0.0005
    assert config.admin is True
    assert config.directory == Path.cwd() / "data/m1"
    assert (config.backup_dir, config.backup_every_seconds, config.backup_keep) == (None, 3600.0, 24)


def test_a_config_cannot_be_changed_from_within_or_from_outside() -> None:
    members = dict(THREE)
    config = Config(**settings(members=members))
    members["m4"] = "127.0.0.1:7949"
    assert "m4" not in config.members
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.node_id = "m2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.members["m4"] = "127.0.0.1:7949"  # type: ignore[index]


def test_a_config_can_be_sent_to_a_spawned_process_copied_and_altered() -> None:
    config = Config(**settings())
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert dataclasses.replace(config, admin=False).admin is False
    assert Config(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"node_id": ""}, "node_id"),
        ({"node_id": "a" * 65}, "node_id"),
        ({"node_id": "a/b"}, "node_id"),
        ({"node_id": "m1\n"}, "node_id"),
        ({"node_id": ".."}, "node_id"),
        ({"node_id": 1}, "node_id"),
        ({"data_dir": ""}, "data_dir"),
        ({"data_dir": "a\0b"}, "data_dir"),
        ({"data_dir": None}, "data_dir"),
        ({"data_dir": b"data"}, "data_dir"),
        ({"listen": "127.0.0.1"}, "listen"),
        ({"listen": ":7946"}, "listen"),
        ({"listen": "127.0.0.1:"}, "listen"),
        ({"listen": "127.0.0.1:0"}, "listen"),
        ({"listen": "127.0.0.1:65536"}, "listen"),
        ({"listen": "127.0.0.1:٧"}, "listen"),
        ({"listen": "::1:7946"}, "listen"),
        ({"listen": 7946}, "listen"),
        ({"members": {"m2": "127.0.0.1:7947"}}, "members"),
        ({"members": {}}, "members"),
        ({"members": [("m1", "127.0.0.1:7946")]}, "members"),
        ({"members": THREE | {"m1": "127.0.0.1:7000"}}, "members"),
        ({"members": THREE | {"m4": "127.0.0.1:7947"}}, "members"),
        ({"members": THREE | {"m4": "nowhere"}}, "members.m4"),
        ({"members": THREE | {"m 4": "127.0.0.1:7949"}}, "members"),
        ({"members": THREE | {4: "127.0.0.1:7949"}}, "members"),
        ({"write_timeout_seconds": 0}, "write_timeout_seconds"),
        ({"write_timeout_seconds": float("nan")}, "write_timeout_seconds"),
        ({"write_timeout_seconds": float("inf")}, "write_timeout_seconds"),
        ({"write_timeout_seconds": "10"}, "write_timeout_seconds"),
        ({"switch_interval_seconds": -1.0}, "switch_interval_seconds"),
        ({"heartbeat_interval_seconds": 0}, "heartbeat_interval_seconds"),
        ({"election_timeout_seconds": 0.1}, "election_timeout_seconds"),
        ({"checkpoint_interval_seconds": True}, "checkpoint_interval_seconds"),
        ({"admin": "yes"}, "admin"),
        ({"bootstrap": 1}, "bootstrap"),
        ({"queue_limit": 0}, "queue_limit"),
        ({"queue_limit": 10.5}, "queue_limit"),
        ({"backup_dir": ""}, "backup_dir"),
        ({"backup_dir": "a\0b"}, "backup_dir"),
        ({"backup_dir": 1}, "backup_dir"),
        ({"backup_every_seconds": 0}, "backup_every_seconds"),
        ({"backup_every_seconds": "1h"}, "backup_every_seconds"),
        ({"backup_keep": 0}, "backup_keep"),
        ({"backup_keep": 2.5}, "backup_keep"),
        ({"backup_keep": 100_001}, "backup_keep"),
        ({"backup_dir": "b", "backup_alarm_seconds": 3599}, "backup_alarm_seconds"),
        ({"backup_dir": "b", "backup_alarm_seconds": "2h"}, "backup_alarm_seconds"),
        ({"backup_alarm_seconds": 7200}, "backup_alarm_seconds"),
        ({"backup_keep": 7}, "backup_keep"),  # without a backup_dir: somebody believes that there are backups
        ({"backup_every_seconds": 60}, "backup_every_seconds"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config(**settings(**changes))
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, InvalidEntity), "nothing was to be stored"
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_with_a_directory_for_them_backups_are_set_as_wanted() -> None:
    config = Config(**settings(backup_dir="backups", backup_keep=7, backup_every_seconds=60))
    assert (config.backup_keep, config.backup_every_seconds) == (7, 60)


def test_the_switch_interval_may_be_left_alone() -> None:
    assert Config(**settings(switch_interval_seconds=None)).switch_interval_seconds is None


@pytest.mark.parametrize("host", ["192.0.2.1", "example.com", "[2001:db8::1]", "127.1", "128.0.0.1"])
def test_a_host_beyond_loopback_is_an_address_too(host: str) -> None:
    address = f"{host}:7946"
    assert check_address(address) == address
    assert Config(**settings()).is_loopback
    assert not Config(**settings(listen=address, members=THREE | {"m1": address})).is_loopback
    assert not Config(**settings(members=THREE | {"m3": address})).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "255.255.255.255", "224.0.0.1", "[ff02::1]"])
def test_all_addresses_of_a_host_are_not_one_that_others_can_reach(host: str) -> None:
    with pytest.raises(InvalidConfig, match="other managers cannot reach "):
        Config(**settings(members=THREE | {"m3": f"{host}:7946"}))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:7946", ("127.0.0.1", 7946)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:7946", ("::1", 7946)),
    ],
)
def test_every_form_of_loopback_is_taken(address: str, parts: tuple[str, int]) -> None:
    assert check_address(address) == address
    assert split_address(address) == parts


def test_a_node_id_of_64_characters_is_taken() -> None:
    assert check_node_id("a-B_9." + "x" * 58) == "a-B_9." + "x" * 58


def test_each_setting_with_a_default_is_documented_with_it() -> None:
    """The text says the default, and why, in the place where an editor shows it."""
    (tree,) = ast.parse(inspect.getsource(Config)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {
        setting.target.id: ast.literal_eval(text.value)
        for setting, text in pairwise(tree.body)
        if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name) and isinstance(text, ast.Expr)
    }
    assert set(texts) == {field.name for field in dataclasses.fields(Config)}
    without = {field.name for field in dataclasses.fields(Config) if field.default is dataclasses.MISSING}
    assert {name for name, text in texts.items() if "Default " not in text} == without


# --------------------------------------------------------------------------------------------- files

FILE = """
node_id = "m1"
data_dir = "data/m1"
listen = "127.0.0.1:7946"
write_timeout_seconds = 3
[members]
m1 = "127.0.0.1:7946"
m2 = "127.0.0.1:7947"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "manager.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_the_settings_and_overrides_win(tmp_path: Path) -> None:
    config = Config.from_toml(written(tmp_path, FILE), data_dir="elsewhere", node_id=None)
    assert (config.node_id, config.data_dir, config.write_timeout_seconds) == ("m1", str(Path.cwd() / "elsewhere"), 3)
    assert config.members == {"m1": "127.0.0.1:7946", "m2": "127.0.0.1:7947"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('node_idd = "m1"\n' + FILE, "node_idd"),
        (FILE.replace('listen = "127.0.0.1:7946"', ""), "listen: is missing"),
        (FILE.replace("= 3", "="), "is not TOML"),
        (FILE.replace('data_dir = "data/m1"', "data_dir = 5"), "data_dir"),
        ("a = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("a = " + "{a=" * 5000, "is nested too deeply"),
        ("a = " + "[" * 200 + "]" * 200, "is nested too deeply"),
        (f"members.{'.'.join('a' * 5000)} = 1", "is nested too deeply"),
        (f"[members.{'.'.join('a' * 5000)}]\nb = 1", "is nested too deeply"),
        (f"a = {'9' * 5000}", "is not TOML"),
        ("a = 1\n" * 200_000, "more than 1048576 bytes"),
    ],
    ids=range(11),
)
def test_a_file_with_a_mistake_is_refused_with_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        Config.from_toml(written(tmp_path, text))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Config.from_toml(tmp_path / "none.toml")


def test_a_file_as_an_editor_on_windows_saves_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "manager.toml"
    path.write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode())
    assert Config.from_toml(path).node_id == "m1"


def test_a_home_directory_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It made a directory of the name ~ where the manager happened to be started."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = FILE.replace('data_dir = "data/m1"', 'data_dir = "~/m1"\nbackup_dir = "~/backups"')
    config = Config.from_toml(written(tmp_path, text))
    assert (config.data_dir, config.backup_dir) == (str(tmp_path / "m1"), str(tmp_path / "backups"))


def test_ids_with_dots_need_no_quotes(tmp_path: Path) -> None:
    text = """
node_id = "m.1"
data_dir = "data"
listen = "127.0.0.1:1"
[members]
m.1 = "127.0.0.1:1"
"m.2" = "127.0.0.1:2"
[members.eu.west]
m3 = "127.0.0.1:3"
"""
    config = Config.from_toml(written(tmp_path, text))
    assert config.members == {"m.1": "127.0.0.1:1", "m.2": "127.0.0.1:2", "eu.west.m3": "127.0.0.1:3"}
    with pytest.raises(InvalidConfig, match=r"members\.m\.1: is given twice"):
        Config.from_toml(written(tmp_path, text.replace('"m.2"', '"m.1"')))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('listen = "127.0.0.1:7946"', 'listen = "nowhere"', "config.listen: 'nowhere' is not an address"),
        ('m2 = "127.0.0.1:7947"', "m2 = 7947", "config.members.m2: 7947 is not an address"),
        (
            'm2 = "127.0.0.1:7947"',
            'm2 = "0.0.0.0:7947"',
            "config.members.m2: other managers cannot reach 0.0.0.0: name",
        ),
        ('listen = "127.0.0.1:7946"', "", "config.listen: is missing in "),
        (
            'listen = "127.0.0.1:7946"',
            'listne = "127.0.0.1:7946"',
            "config.listne: there is no such setting; did you mean listen?",
        ),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in FILE
    path = written(tmp_path, FILE.replace(old, new))
    with pytest.raises(InvalidConfig) as caught:
        Config.from_toml(path)
    assert str(caught.value).startswith(says)
    assert str(caught.value).endswith((f"(in {path})", f"is missing in {path}"))


def test_an_error_of_an_override_is_not_the_file_s(tmp_path: Path) -> None:
    path = written(tmp_path, FILE)
    for listen in ("nowhere", "0.0.0.0:7946"):
        with pytest.raises(InvalidConfig) as caught:
            Config.from_toml(path, listen=listen)
        assert str(path) not in str(caught.value)
