"""The script in docs/backups.md copies each backup to another place, as a reader would use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Command, StartManager, free_addresses
from test_code_blocks import block

from tests.cluster.harness import wait_until

RSYNC = '#!/bin/sh\ntest "$1" = --timeout=60 && cp "$2" "$VAULT/${3#backup@vault.example:warren/}"\n'
"""In place of the real one: it needs another host."""


@pytest.mark.slow
def test_the_script_of_the_page_copies_each_backup(
    tmp_path: Path, start_manager: StartManager, warren: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, backups, data_dir = tmp_path / "vault", tmp_path / "backups", tmp_path / "m1"
    for name, text in (("ship-backup", block("docs/backups.md", "ship-backup FILE")), ("rsync", RSYNC)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("VAULT", str(vault))
    options = ("--backup-dir", str(backups), "--backup-every", "1s", "--backup-command", "ship-backup")
    manager = start_manager(data_dir, "m1", {"m1": free_addresses(1)[0]}, *options)
    manager.wait_ready()

    def backup() -> dict[str, object]:
        answer: dict[str, object] = warren("status", "--data-dir", data_dir, "-o", "json").json["backup"]
        return answer

    def command() -> dict[str, object]:
        answer = backup()["command"]
        assert isinstance(answer, dict)
        return answer

    wait_until(lambda: command()["failure"], "a failure: there is no vault yet")
    cluster_id = warren("status", "--data-dir", data_dir, "-o", "json").json["cluster_id"]
    (vault / cluster_id).mkdir(parents=True)
    (tmp_path / "node.json").write_text('{"id": "n-1", "role": "worker", "hostname": "n-1"}')
    warren(
        "put", "node", "-f", tmp_path / "node.json", "--data-dir", data_dir
    )  # the next backup does not wait a minute
    wait_until(lambda: backup()["index"] == command()["index"], "the copy of the newest backup")
    (copy,) = (vault / cluster_id).iterdir()
    assert copy.read_bytes() == (backups / copy.name).read_bytes()
    assert "its command succeeded" in warren("status", "--data-dir", data_dir).text
    assert manager.stop() == 0
