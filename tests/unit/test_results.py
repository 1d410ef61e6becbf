"""The results of a manager's methods are typed, and their JSON is that of the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from warren_raft.alarms import Alarm
from warren_raft.data_dir.description import Description
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.local.store import LocalStore
from warren_raft.results import CertificateStatus, MemberAlarm, Status, Verdict


def test_the_json_form_has_the_fields_by_name_and_times_in_utc() -> None:
    begins = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    shown = CertificateStatus(trust_domain="prod", serial="7f", not_before=begins, not_after=begins)
    assert shown.to_json() == {
        "trust_domain": "prod",
        "serial": "7f",
        "not_before": "2026-01-02T03:04:05Z",
        "not_after": "2026-01-02T03:04:05Z",
    }
    assert json.dumps(MemberAlarm(name="disk-low", subject="", severity="warning").to_json())


def test_a_field_can_still_be_read_like_a_key_with_a_warning() -> None:
    verdict = Verdict(state="healthy", text="all is well", tolerates_failures=1)
    with pytest.warns(DeprecationWarning, match=r"read \.state"):
        assert verdict["state"] == "healthy"


def test_a_field_with_few_values_names_them() -> None:
    """A program that compares with a word that never comes is told so by its type checker."""
    found = {
        (kind.__name__, name): set(get_args(get_type_hints(kind)[name]))
        for kind, name in ((Status, "role"), (Status, "links"), (Verdict, "state"), (Description, "standing"))
    }
    assert found == {
        ("Status", "role"): {"leader", "follower", "candidate"},
        ("Status", "links"): {"tls", "plaintext"},
        ("Verdict", "state"): {"healthy", "degraded", "no quorum"},
        ("Description", "standing"): {"voter", "learner", "removed", "waiting"},
    }


def test_an_alarm_within_a_result_keeps_its_own_form() -> None:
    alarm = Alarm(name="disk-low", subject="", severity="warning", text="t", since=datetime(2026, 1, 1, tzinfo=UTC))
    assert alarm.to_json()["since"] == "2026-01-01T00:00:00.000Z"


def test_stores_views_and_batches_show_themselves(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "state")
    assert repr(store) == f"<LocalStore {str(tmp_path / 'state')!r}, open>"
    view = store.read()
    assert repr(view) == "<View, not open>"
    with store.batch() as batch, view:
        batch.delete_node("a")
        assert repr(batch) == "<Batch of 1 writes, open>"
        assert repr(view) == "<View of revision 0>"
    store.close()
    assert repr(store) == f"<LocalStore {str(tmp_path / 'state')!r}, closed>"
    with ReadOnlyStore(tmp_path / "state") as reader:
        assert repr(reader) == f"<ReadOnlyStore {str(tmp_path / 'state')!r}, open>"


def test_the_directory_of_a_local_store_had_another_name(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="data_dir, not path"):
        LocalStore(path=tmp_path / "state").close()
    with pytest.raises(TypeError):
        LocalStore()
    LocalStore(data_dir=tmp_path / "state").close()
