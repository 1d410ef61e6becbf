"""The promise: docs/from-warren.md names every operation of a store, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import warren_raft as wr

PAGE = Path(__file__).parents[2] / "docs" / "from-warren.md"
INITIALS = {"tls": "TLS", "ca": "CA"}
WRITES = ("create", "update", "delete", "save", "get", "list")


def go_name(name: str) -> str:
    return "".join(INITIALS.get(word, word.capitalize()) for word in name.split("_"))


def test_every_operation_has_its_row_with_both_names() -> None:
    rows = [row.split("|")[1:3] for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    twins = {}
    for go, python in rows:
        twins.update(zip(re.findall(r"`(\w+)", go), re.findall(r"`(\w+)", python), strict=False))
    operations = {name for name in dir(wr.Store) if name.partition("_")[0] in WRITES} - {"update_member"}
    assert len(operations) == 47
    for name in operations:
        assert twins.get(go_name(name)) == name
