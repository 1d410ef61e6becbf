"""The promise: a manager always has the newest usable certificate, says when it expires, and never continues without
one.

A wrong file in a rotation of certificates at night must not stop a manager.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import free_ports
from warren_raft.alarms import Alarms
from warren_raft.certificates import files as tls_files
from warren_raft.certificates import local as local_certificates
from warren_raft.certificates.ca import Authority
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.own import OwnCertificate
from warren_raft.config import Config
from warren_raft.errors import RefusedForSafety
from warren_raft.manager.store import ReplicatedStore

LOCAL = {"m1": "127.0.0.1:7946", "m2": "[::1]:7947"}
HOSTS = {"m1": "10.0.0.1:7946", "m2": "host-2.example:7946"}
DAY = 86_400.0


class Manager:
    """The part of a manager that this is about, with a clock of the test's."""

    def __init__(self, data_dir: Path, members: dict[str, str], node_id: str = "m1", **settings: Any) -> None:
        data_dir.mkdir(exist_ok=True)
        self.config = Config(node_id=node_id, data_dir=data_dir, listen=members[node_id], members=members, **settings)
        self.alarms = Alarms(node_id)
        self.later_seconds = 0.0
        self.certificate = OwnCertificate(self.config, self.alarms, clock=self.time)

    def time(self) -> float:
        return time.time() + self.later_seconds

    def start(self) -> Credentials:
        self.certificate.prepare()
        assert self.certificate.credentials is not None
        return self.certificate.credentials

    @property
    def raised(self) -> dict[str, str]:
        """Severity by the name of each alarm."""
        return {alarm.name: alarm.severity for alarm in self.alarms.active}


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's CA on this host is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    return tmp_path / "state-home"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "ca", trust_domain="prod")
    authority.issue(HOSTS)
    return authority


def join_file(ca: Authority, path: Path, node_id: str = "m1", later_seconds: float = 0.0) -> Path:
    """Issued `later_seconds` from now: two that are issued in one second have the same beginning."""
    now = datetime.now(UTC) + timedelta(seconds=later_seconds)
    ca.issue({node_id: None}, now=now)[0].write(path)
    return path


# On one machine


def test_managers_on_one_machine_get_certificates_of_one_ca_by_themselves(tmp_path: Path, state_home: Path) -> None:
    first = Manager(tmp_path / "m1", LOCAL).start()
    second = Manager(tmp_path / "m2", LOCAL, "m2").start()
    assert first.trust_domain == second.trust_domain == "local"
    assert first.serial != second.serial
    assert (tmp_path / "m1/tls/ca.pem").read_text() == (tmp_path / "m2/tls/ca.pem").read_text()
    assert state_home.joinpath("warren_raft/local-ca").stat().st_mode & 0o777 == 0o700
    assert Manager(tmp_path / "m1", LOCAL).start().serial == first.serial  # and keep them


def test_where_the_users_ca_cannot_be_had_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    with pytest.raises(RefusedForSafety, match=r"/dev/null.*XDG_STATE_HOME.*cert init.*--join m1\.join.*plaintext"):
        Manager(tmp_path / "m1", LOCAL).start()
    assert Manager(tmp_path / "m2", LOCAL, insecure_plaintext=True).certificate.prepare() is None


def test_beyond_loopback_a_certificate_must_be_given(tmp_path: Path) -> None:
    issue = r"cert issue m1=10\.0\.0\.1:7946 m2=host-2\.example:7946 --ca ca`.*--join m1\.join"
    with pytest.raises(RefusedForSafety, match=f"m1 has no certificate, and an address.*{issue}"):
        Manager(tmp_path / "m1", HOSTS).start()
    Manager(tmp_path / "m1", LOCAL).start()
    with pytest.raises(RefusedForSafety, match=f"for managers on one machine.*{issue}.*--trust-domain local"):
        Manager(tmp_path / "m1", HOSTS).start()


def test_a_member_beyond_loopback_needs_a_ca_of_the_cluster(ca: Authority, tmp_path: Path) -> None:
    """It would be dialled for ever, and refuse this manager's certificate each time."""
    manager = Manager(tmp_path / "m1", LOCAL)
    manager.start()
    manager.certificate.require_reach("m3", "127.0.0.1:7948")
    with pytest.raises(RefusedForSafety, match=r"m3 at 10\.0\.0\.3:7946 would be beyond this host.*certificates\.md"):
        manager.certificate.require_reach("m3", "10.0.0.3:7946")
    certified = Manager(tmp_path / "m1", HOSTS, join=join_file(ca, tmp_path / "m1.join", later_seconds=60))
    certified.start()
    certified.certificate.require_reach("m3", "10.0.0.3:7946")


def test_a_ca_of_this_user_that_was_removed_is_made_again_and_everybody_changes_to_it(tmp_path: Path) -> None:
    Manager(tmp_path / "m1", LOCAL).start()
    Manager(tmp_path / "m2", LOCAL, "m2").start()
    shutil.rmtree(local_certificates.directory())
    kept = Manager(tmp_path / "m1", LOCAL).start()  # there is no better one
    Manager(tmp_path / "m3", LOCAL | {"m3": "127.0.0.1:7948"}, "m3").start()
    assert Manager(tmp_path / "m1", LOCAL).start().serial != kept.serial
    assert (tmp_path / "m1/tls/ca.pem").read_text() == (tmp_path / "m3/tls/ca.pem").read_text()


def test_a_local_certificate_is_renewed_in_time_while_its_manager_runs_and_at_a_start(tmp_path: Path) -> None:
    manager = Manager(tmp_path / "m1", LOCAL)
    first = manager.start()
    manager.later_seconds = 334 * DAY
    assert manager.certificate.look() is None
    manager.later_seconds = 336 * DAY
    # The CA's own clock is the host's, so the new one is as long as the old one was; it is a new one all the same.
    new = manager.certificate.look()
    assert new is not None
    assert new.serial != first.serial
    assert tls_files.is_local(tmp_path / "m1")
    late = Manager(tmp_path / "m1", LOCAL)
    late.later_seconds = 336 * DAY
    assert late.start().serial not in (first.serial, new.serial)


def test_a_ca_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root shell with a user's HOME would leave root's certificates in that user's CA."""
    Manager(tmp_path / "m1", LOCAL).start()
    monkeypatch.setattr(local_certificates.os, "geteuid", lambda: 4321)
    with pytest.raises(RefusedForSafety, match=r"local-ca belongs to user .*, and this is user 4321.*XDG_STATE_HOME"):
        local_certificates.issue("m1")


def test_without_a_state_home_it_is_below_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert local_certificates.directory() == f"{tmp_path}/.local/state/warren_raft/local-ca"


def test_a_manager_that_has_its_certificate_does_not_load_the_code_that_makes_them(tmp_path: Path) -> None:
    Manager(tmp_path / "m1", LOCAL).start()
    program = (
        "import sys; from warren_raft.config import Config; from warren_raft.alarms import Alarms\n"
        "from warren_raft.certificates.own import OwnCertificate\n"
        f"own = OwnCertificate(Config(node_id='m1', data_dir={str(tmp_path / 'm1')!r}, listen={LOCAL['m1']!r}, "
        f"members={LOCAL!r}), Alarms('m1')); own.prepare(); own.wanted = True; own.look()\n"
        "assert own.credentials is not None; print('cryptography' in sys.modules)"
    )
    # Without this host's CA, as after a copy from another host: with it, its certificate would be compared too.
    shutil.rmtree(local_certificates.directory())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# With a join file


def test_a_join_file_is_taken_once_and_again_when_it_is_newer(ca: Authority, tmp_path: Path) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    first = Manager(tmp_path / "m1", HOSTS, join=path).start()
    assert first.trust_domain == "prod"
    join_file(ca, path, later_seconds=-60)
    assert Manager(tmp_path / "m1", HOSTS, join=path).start().serial == first.serial
    join_file(ca, path, later_seconds=60)
    assert Manager(tmp_path / "m1", HOSTS, join=path).start().serial != first.serial
    path.unlink()
    Manager(tmp_path / "m1", HOSTS, join=path).start()
    Manager(tmp_path / "m1", HOSTS).start()


def test_a_start_without_its_join_file_says_so(ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a wrong name. (Pins a fault: `--join /nonexist.join` was not mentioned at all.)"""
    path = join_file(ca, tmp_path / "m1.join")
    Manager(tmp_path / "m1", HOSTS, join=path).start()
    with caplog.at_level(logging.INFO):
        Manager(tmp_path / "m1", HOSTS, join=path).start()
    assert "join file missing" not in caplog.text
    path.unlink()
    with caplog.at_level(logging.INFO):
        Manager(tmp_path / "m1", HOSTS, join=path).start()
    assert [record.getMessage() for record in caplog.records if "missing" in record.getMessage()] == [
        f"join file missing node=m1 join_file={path}: the settings and the certificate of the data directory are used"
    ]


def test_a_join_file_takes_the_place_of_a_local_certificate(ca: Authority, tmp_path: Path) -> None:
    Manager(tmp_path / "m1", LOCAL).start()
    path = join_file(ca, tmp_path / "m1.join", later_seconds=60)
    assert Manager(tmp_path / "m1", HOSTS, join=path).start().trust_domain == "prod"
    assert not tls_files.is_local(tmp_path / "m1")


def test_a_join_file_helps_where_the_certificate_has_expired(tmp_path: Path) -> None:
    ca = Authority.create(tmp_path / "ca", now=datetime.now(UTC) - timedelta(days=500))
    ca.issue(HOSTS)
    path = join_file(ca, tmp_path / "m1.join", later_seconds=-400 * DAY)
    with pytest.raises(RefusedForSafety, match=rf"{path}: .*expired.*clock"):
        Manager(tmp_path / "m1", HOSTS, join=path).start()
    early = Manager(tmp_path / "m1", HOSTS, join=path)
    early.later_seconds = -399 * DAY
    old = early.start()
    join_file(ca, path)
    assert Manager(tmp_path / "m1", HOSTS, join=path).start().serial != old.serial


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path, ca: path.unlink(), "does not exist and .* has no certificate yet: copy the join file there"),
        (lambda path, ca: join_file(ca, path, "m2"), "is for m2, and this manager is m1"),
        (lambda path, ca: path.write_text("{}"), "is not a join file"),
        (lambda path, ca: path.chmod(0o644), "others may read it"),
    ],
)
def test_a_join_file_that_is_of_no_use_is_named(ca: Authority, tmp_path: Path, break_it: Any, says: str) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    break_it(path, ca)
    with pytest.raises(RefusedForSafety, match=says):
        Manager(tmp_path / "m1", HOSTS, join=path).start()
    assert not (tmp_path / "m1" / "tls").exists()


def test_the_join_file_of_last_year_does_not_keep_a_manager_from_starting(tmp_path: Path) -> None:
    """It stays named in a unit file, while `cert renew` gave the manager a newer certificate. (Pins a bug: it had
    expired, was judged all the same, and the manager did not start.)"""
    ca = Authority.create(tmp_path / "ca", now=datetime.now(UTC) - timedelta(days=500))
    ca.issue(HOSTS)
    path = join_file(ca, tmp_path / "m1.join", later_seconds=-400 * DAY)
    (tmp_path / "m1").mkdir()
    tls_files.install(tmp_path / "m1", ca.issue({"m1": None})[0].files, check=lambda _: None)
    manager = Manager(tmp_path / "m1", HOSTS, join=path)
    manager.start()
    manager.certificate.look()
    assert manager.raised == {}


def test_a_wrong_join_file_does_not_keep_a_manager_with_a_certificate_from_starting(
    ca: Authority, tmp_path: Path
) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    first = Manager(tmp_path / "m1", HOSTS, join=path).start()
    join_file(ca, path, "m2")
    manager = Manager(tmp_path / "m1", HOSTS, join=path)
    assert manager.start().serial == first.serial
    for later_seconds in (0, 6):
        manager.later_seconds = later_seconds
        assert manager.certificate.look() is None
    assert manager.raised == {"certificate-not-taken": "warning"}


def test_a_directory_that_lost_a_file_is_filled_from_the_join_file(ca: Authority, tmp_path: Path) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    Manager(tmp_path / "m1", HOSTS, join=path).start()
    (tmp_path / "m1/tls/ca.pem").unlink()
    Manager(tmp_path / "m1", HOSTS, join=path).start()


# While it runs


def test_a_newer_certificate_is_used_as_soon_as_its_files_are_there(ca: Authority, tmp_path: Path) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    manager = Manager(tmp_path / "m1", HOSTS, join=path)
    first = manager.start()
    assert manager.certificate.look() is None
    join_file(ca, path, later_seconds=60)
    new = manager.certificate.look()
    assert new is not None
    assert new.serial != first.serial
    assert manager.certificate.look() is None
    files = ca.issue({"m1": None}, now=datetime.now(UTC) + timedelta(seconds=120))[0].files
    tls_files.install(tmp_path / "m1", files, check=lambda _: None)  # as `cert renew` does
    renewed = manager.certificate.look()
    assert renewed is not None
    assert renewed.serial not in (first.serial, new.serial)


def test_files_of_no_use_are_an_alarm_and_the_manager_goes_on(ca: Authority, tmp_path: Path) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    manager = Manager(tmp_path / "m1", HOSTS, join=path)
    first = manager.start()
    join_file(ca, path, "m2")
    assert manager.certificate.look() is None
    assert manager.raised == {}  # files may be on their way
    manager.later_seconds = 6
    assert manager.certificate.look() is None
    assert manager.raised == {"certificate-not-taken": "warning"}
    assert "is for m2" in manager.alarms.active[0].text
    assert manager.certificate.credentials is first
    join_file(ca, path, later_seconds=60)
    assert manager.certificate.look() is not None
    assert manager.raised == {}


def test_a_key_that_does_not_fit_is_not_used(ca: Authority, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "m1", HOSTS, join=join_file(ca, tmp_path / "m1.join"))
    manager.start()
    (tmp_path / "m1.join").unlink()
    (tmp_path / "m1/tls/key.pem").write_text(ca.issue({"m1": None})[0].files.key)
    manager.certificate.wanted = True  # by SIGHUP: then it is said at once
    assert manager.certificate.look() is None
    assert manager.raised == {"certificate-not-taken": "warning"}


def test_a_requested_look_logs_that_nothing_is_new(
    ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager(tmp_path / "m1", HOSTS, join=join_file(ca, tmp_path / "m1.join"))
    first = manager.start()
    manager.certificate.wanted = True
    with caplog.at_level(logging.INFO):
        assert manager.certificate.look() is None
        assert manager.certificate.look() is None
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"certificate unchanged node=m1 serial={first.serial}"]


def test_its_end_is_an_alarm_two_weeks_ahead(ca: Authority, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "m1", HOSTS, join=join_file(ca, tmp_path / "m1.join"))
    manager.start()
    for days, raised in (
        (350, {}),
        (352, {"certificate-expires": "warning"}),
        (366, {"certificate-expired": "critical"}),
    ):
        manager.later_seconds = days * DAY
        manager.certificate.look()
        assert manager.raised == raised
    text = manager.alarms.active[0].text
    assert "has expired, at " in text
    assert f"warren-raft cert renew m1.join --data-dir {tmp_path}/m1" in text
    manager.later_seconds = 0
    manager.certificate.look()
    assert manager.raised == {}


def test_it_is_in_the_status(ca: Authority, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "m1", HOSTS, join=join_file(ca, tmp_path / "m1.join"))
    credentials = manager.start()
    shown = manager.certificate.status()
    assert shown is not None
    assert (shown.serial, shown.trust_domain) == (credentials.serial, "prod")
    assert shown.not_before < shown.not_after
    assert Manager(tmp_path / "m2", LOCAL, insecure_plaintext=True).certificate.status() is None


# A start that is refused


@pytest.mark.parametrize("with_ca", [False, True])
def test_a_start_with_the_id_of_another_manager_leaves_the_certificate_alone(tmp_path: Path, with_ca: bool) -> None:
    """`m2` was started on the directory of `m1`. It was refused, but `m1` had the key and certificate of `m2` then."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    settings: dict[str, Any] = {"data_dir": tmp_path / "m1", "listen": address}
    if with_ca:
        ca = Authority.create(tmp_path / "own-ca", trust_domain="prod")
        for join in ca.issue({"m1": address, "m2": "10.0.0.2:7946"}):
            join.write(tmp_path / f"{join.node_id}.join")

    def start(node_id: str) -> None:
        join = {"join": tmp_path / f"{node_id}.join"} if with_ca else {}
        with ReplicatedStore(Config(node_id=node_id, members={node_id: address}, **settings, **join)):
            pass

    start("m1")
    before = tls_files.contents(tmp_path / "m1")
    with pytest.raises(RefusedForSafety, match="is the log of 'm1', not of 'm2'"):
        start("m2")
    assert tls_files.contents(tmp_path / "m1") == before


# Another trust domain


@pytest.fixture
def other_ca(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "other-ca", trust_domain="other")
    authority.issue(HOSTS)
    return authority


@pytest.mark.parametrize("later_seconds", [60, -60])
@pytest.mark.parametrize("is_expired", [False, True])
def test_a_join_file_of_another_trust_domain_is_refused_before_anything_changes(
    ca: Authority, other_ca: Authority, tmp_path: Path, later_seconds: float, is_expired: bool
) -> None:
    """Also an older one: the address and the members of the start would come from it."""
    path = join_file(ca, tmp_path / "m1.join")
    Manager(tmp_path / "m1", HOSTS, join=path).start()
    before = tls_files.contents(tmp_path / "m1")
    foreign = join_file(other_ca, tmp_path / "foreign.join", later_seconds=later_seconds)
    manager = Manager(tmp_path / "m1", HOSTS, join=foreign)
    manager.later_seconds = 366 * DAY if is_expired else 0
    says = f"{foreign} is of the trust domain other, but {tmp_path}/m1 is of prod; nothing was changed"
    with pytest.raises(RefusedForSafety, match=says):
        manager.start()
    assert tls_files.contents(tmp_path / "m1") == before
    Manager(tmp_path / "m1", HOSTS, join=path).start()


def test_a_running_manager_takes_no_files_of_another_trust_domain(
    ca: Authority, other_ca: Authority, tmp_path: Path
) -> None:
    path = join_file(ca, tmp_path / "m1.join")
    manager = Manager(tmp_path / "m1", HOSTS, join=path)
    first = manager.start()
    before = tls_files.contents(tmp_path / "m1")
    for later_seconds in (60, -60):
        join_file(other_ca, path, later_seconds=later_seconds)
        manager.certificate.wanted = True  # by SIGHUP: then it is said at once
        assert manager.certificate.look() is None
        assert manager.raised == {"certificate-not-taken": "warning"}
        assert "m1.join is of the trust domain other" in manager.alarms.active[0].text
        assert tls_files.contents(tmp_path / "m1") == before
    path.unlink()
    manager.certificate.wanted = True
    assert manager.certificate.look() is None
    assert manager.raised == {}
    tls_files.install(tmp_path / "m1", other_ca.issue({"m1": None})[0].files, check=lambda _: None)
    manager.certificate.wanted = True
    assert manager.certificate.look() is None
    assert manager.raised == {"certificate-not-taken": "warning"}
    assert manager.certificate.credentials is first


def test_the_trust_domain_of_the_cluster_counts_for_a_start(tmp_path: Path) -> None:
    """With a certificate of this host's own CA, without any certificate, and with one that does not fit."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    joins = {}
    for trust_domain in ("local", "prod"):
        authority = Authority.create(tmp_path / trust_domain, trust_domain=trust_domain)
        authority.issue({"m1": address})
        joins[trust_domain] = join_file(authority, tmp_path / f"{trust_domain}.join", later_seconds=-60)
    tls = tmp_path / "m1" / "tls"

    def start(**join: Path) -> str:
        config = Config(node_id="m1", data_dir=tmp_path / "m1", listen=address, members={"m1": address}, **join)
        with ReplicatedStore(config) as store:
            store.wait_ready(timeout=30)
            certificate = store.status().certificate
            assert certificate is not None
            return certificate.serial

    start()
    before = tls_files.contents(tmp_path / "m1")
    with pytest.raises(RefusedForSafety, match=r"prod\.join is of the trust domain prod, but .* is of local"):
        start(join=joins["prod"])
    assert tls_files.contents(tmp_path / "m1") == before

    shutil.rmtree(tls)
    with pytest.raises(RefusedForSafety, match=r"prod\.join is of the trust domain prod, but .* is of local"):
        start(join=joins["prod"])
    assert not tls.exists()

    newer = Authority(tmp_path / "prod").issue({"m1": None})[0].files
    tls_files.install(tmp_path / "m1", newer, check=lambda _: None)
    taken = start(join=joins["local"])  # although it is older than the certificate that does not fit
    assert taken == Authority(tmp_path / "local").issued()["m1"][-1]["serial"]


def test_a_cluster_of_a_ca_gets_no_certificate_of_this_hosts_own_ca(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    authority = Authority.create(tmp_path / "prod", trust_domain="prod")
    authority.issue({"m1": address})
    config = {"node_id": "m1", "data_dir": tmp_path / "m1", "listen": address, "members": {"m1": address}}
    with ReplicatedStore(Config(**config, join=join_file(authority, tmp_path / "m1.join"))) as store:
        store.wait_ready(timeout=30)
    shutil.rmtree(tmp_path / "m1" / "tls")
    with (
        pytest.raises(RefusedForSafety, match=r"of the trust domain prod: issue one .*--join m1\.join"),
        ReplicatedStore(Config(**config)),
    ):
        pass
    assert not (tmp_path / "m1" / "tls").exists()
