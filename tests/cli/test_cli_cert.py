"""The promise: three commands make the certificates of a cluster, each names the next command, and each error is one
line."""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cli_support import Command, StartManager, free_addresses

from warren_raft.certificates.ca import Authority, rfc3339
from warren_raft.certificates.files import contents, install
from warren_raft.certificates.join_files import JoinFile
from warren_raft.store.ownership import DirectoryLock
from warren_raft_cli import cert, tables

THREE = {"m1": "10.0.0.1:7946", "m2": "10.0.0.2:7946", "m3": "10.0.0.3:7946"}


@pytest.fixture
def ca(warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a CA; the current directory is the one above it."""
    monkeypatch.chdir(tmp_path)
    assert "next: warren-raft cert issue" in warren("cert", "init", "ca").text
    return tmp_path / "ca"


def test_a_join_file_for_each_manager_of_a_new_cluster(warren: Command, ca: Path) -> None:
    ran = warren("cert", "issue", *(f"{id_}={address}" for id_, address in THREE.items()), "--ca", ca)
    assert "serve --join m1.join --data-dir DIR" in ran.text
    assert ran.err == ""
    for id_ in THREE:
        assert JoinFile.read(f"{id_}.join").members == THREE
    more = warren("cert", "issue", "m4", "--address", "10.0.0.4:7946", "--ca", ca, "-o", "new.join", "-o", "json").json
    assert [(one["node_id"], one["file"]) for one in more] == [("m4", "new.join")]
    assert JoinFile.read("new.join").members == THREE | {"m4": "10.0.0.4:7946"}

    shown = warren("cert", "show", "new.join", "-o", "json").json
    assert (shown["node_id"], shown["serial"], shown["not_after"]) == ("m4", more[0]["serial"], more[0]["not_after"])
    listed = warren("cert", "show", ca, "-o", "json").json
    assert [(one["id"], len(one["certificates"])) for one in listed["managers"]] == [(id_, 1) for id_ in [*THREE, "m4"]]
    assert shown["ca"] == listed["ca"]
    assert shown["trust_domain"] == listed["trust_domain"]
    assert "in 364d" in warren("cert", "show", "new.join").text
    assert more[0]["serial"] in warren("cert", "show", ca).text
    assert warren("cert", "show", ca / "ca.pem", "-o", "json").json["ca"] == shown["ca"]


def test_a_certificate_that_is_not_valid_now_stands_out(
    warren: Command, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: a certificate that had expired 97 days ago was shown with `(97d)`.)"""
    warren("cert", "issue", "m4=10.0.0.4:7946", "--ca", ca)
    assert "(since 1h)" in warren("cert", "show", "m4.join").text
    for days, says in ((-2, "(NOT VALID YET, in 46h)"), (465, "(EXPIRED 100d ago)")):
        monkeypatch.setattr(tables, "datetime", clock_moved(timedelta(days=days)))
        assert says in warren("cert", "show", "m4.join").text


def clock_moved(by: timedelta) -> type[datetime]:
    class Moved(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Moved:
            return cls.fromtimestamp((datetime.now(tz) + by).timestamp(), tz)

    return Moved


def test_one_manager_alone_is_told_that_it_will_wait(warren: Command, ca: Path) -> None:
    ran = warren("cert", "issue", "m1=127.0.0.1:7946", "--ca", ca)
    assert ran.code == 0
    assert "name all managers in one command; for a cluster of one add --bootstrap" in ran.err


def test_the_next_step_of_a_rotation_is_another_than_that_of_a_new_manager(warren: Command, ca: Path) -> None:
    """(Pins a fault: it was `serve` on an empty directory for a manager that runs.)"""
    ran = warren("cert", "issue", "m1=h:1", "--ca", ca)
    serve = "warren-raft serve --join m1.join --data-dir DIR"
    assert f"next: copy m1.join to the host of m1, and type there: {serve}\n" in ran.text
    ran = warren("cert", "issue", "m1", "--ca", ca)
    assert ran.text.endswith(
        "next: copy m1.join to the host of m1, and type there: warren-raft cert renew m1.join --data-dir DIR (a new or "
        f"removed m1: {serve}, on an empty directory)\n"
    )
    assert ran.err == ""
    assert f"next: copy each file to its manager's host, and type there: {serve}" in (
        warren("cert", "issue", "m1", "m2=h:2", "--ca", ca).text
    )


def test_a_move_and_a_removal_name_the_ca(
    warren: Command, ca: Path, start_manager: StartManager, tmp_path: Path
) -> None:
    """(Pins a fault: the CA kept the old address, and a removed manager, in every later join file.)"""
    addresses = free_addresses(3)
    warren("cert", "issue", f"m1={addresses[0]}", "--ca", ca)
    start_manager(tmp_path / "m1", "", {}, "--join", "m1.join", "--bootstrap").wait_ready()
    warren("cert", "issue", f"m2={addresses[1]}", "--ca", ca)
    second = start_manager(tmp_path / "m2", "", {}, "--join", "m2.join")
    second.wait_ready()
    there = warren("members", "update", f"m2={addresses[1]}", "--data-dir", "m1")
    next_ = f"warren-raft cert issue m2={addresses[1]} --ca DIR"
    assert (there.err, there.text) == ("", f"moved m2 to {addresses[1]}\nnext: tell the cluster's CA too: {next_}\n")
    moved = warren("members", "update", f"m2={addresses[2]}", "--data-dir", "m1")
    assert f"type: warren-raft members update m2={addresses[1]}\n" in moved.err
    assert moved.text == f"moved m2 to {addresses[2]}\n", "m2 is not there: the address may be a mistake"
    next_ = f"warren-raft cert issue m2={addresses[2]} --ca DIR"
    warren("cert", "issue", "m2", "--ca", ca)
    says = f"m2.join has the address {addresses[1]} for m2, and the member list has {addresses[2]}"
    renewed = warren("cert", "renew", "m2.join", "--data-dir", "m2")
    assert (renewed.code, says in renewed.err, next_ in renewed.err) == (0, True, True)
    warren("cert", "issue", f"m2={addresses[2]}", "--ca", ca)
    assert warren("cert", "renew", "m2.join", "--data-dir", "m2").err == ""
    removed = warren("members", "remove", "m2", "--data-dir", "m1")
    assert removed.text.endswith("if m2 does not come back: warren-raft cert issue ID --forget m2 --ca DIR\n")


def test_a_new_ca_takes_over_from_the_old_one(warren: Command, ca: Path) -> None:
    warren("cert", "issue", *(f"{id_}={address}" for id_, address in THREE.items()), "--ca", ca)
    warren("cert", "init", "ca2", "--replaces", ca)
    assert len(warren("cert", "show", "ca2", "-o", "json").json["ca"]) == 2
    refused = warren("cert", "issue", "m1", "--ca", "ca2", "--drop-previous-ca")
    assert refused.code == 4
    assert "no certificate for m1, m2, m3 yet: type `warren-raft cert issue m1 m2 m3" in refused.err
    warren("cert", "issue", *THREE, "--ca", "ca2")
    assert len(warren("cert", "show", "m1.join", "-o", "json").json["ca"]) == 2
    warren("cert", "issue", *THREE, "--ca", "ca2", "--drop-previous-ca")
    assert len(warren("cert", "show", "m1.join", "-o", "json").json["ca"]) == 1


def test_a_manager_starts_from_its_join_file_and_takes_newer_ones(
    warren: Command, ca: Path, start_manager: StartManager, tmp_path: Path
) -> None:
    """Like a service: its settings name the file, and the file is replaced there, or given by `cert renew`."""
    (address,) = free_addresses(1)
    warren("cert", "issue", f"m1={address}", "--ca", ca)
    (tmp_path / "m1.toml").write_text(f'join = "{tmp_path}/m1.join"\nbootstrap = true\n')
    process = start_manager(tmp_path / "m1", "", {}, "--config", str(tmp_path / "m1.toml"))
    assert process.wait_ready() == f"ready node_id=m1 listen={address} leader=m1"

    def used() -> str:
        serial: str = warren("status", "--data-dir", "m1", "-o", "json").json["certificate"]["serial"]
        return serial

    first = used()
    assert f"serial {first}" in warren("status", "--data-dir", "m1").text
    refused = warren("cert", "renew", "--data-dir", "m1")
    assert (refused.code, "cert issue m1 --ca DIR" in refused.err) == (2, True)
    warren("cert", "issue", "m2=h:1", "--ca", ca)
    assert "m2.join is for m2" in warren("cert", "renew", "m2.join", "--data-dir", "m1").err
    warren("cert", "init", "other")
    warren("cert", "issue", "m1=h:1", "--ca", "other", "-o", "other.join")
    assert "trust domain" in warren("cert", "renew", "other.join", "--data-dir", "m1").err
    assert used() == first

    renewed = warren("cert", "renew", "--ca", ca, "--data-dir", "m1", "-o", "json").json
    assert (renewed["in_use"], renewed["serial"]) == (True, used())
    assert warren("cert", "show", "--data-dir", "m1", "-o", "json").json["serial"] == renewed["serial"] != first
    warren("cert", "issue", "m1", "--ca", ca, "-o", "new.join")
    os.rename("new.join", "m1.join")
    newest = JoinFile.read("m1.join")
    process.process.send_signal(signal.SIGHUP)
    process.stop()
    assert warren("cert", "renew", "m1.join", "--data-dir", "m1").text.startswith(
        "m1 is stopped: its next start uses the certificate"
    )
    assert (tmp_path / "m1/tls/cert.pem").read_text() == newest.files.certificate
    os.unlink("m1.join")
    again = start_manager(tmp_path / "m1", "", {}, "--config", str(tmp_path / "m1.toml"))
    assert again.wait_ready() == f"ready node_id=m1 listen={address} leader=m1"
    assert again.stop() == 0


def test_a_start_with_a_join_file_of_another_ca_changes_nothing(
    warren: Command, ca: Path, start_manager: StartManager, tmp_path: Path
) -> None:
    (address,) = free_addresses(1)
    warren("cert", "issue", f"m1={address}", "--ca", ca)
    ours = warren("cert", "show", "m1.join", "-o", "json").json["trust_domain"]
    process = start_manager(tmp_path / "m1", "", {}, "--join", "m1.join", "--bootstrap")
    process.wait_ready()
    assert process.stop() == 0
    warren("cert", "init", "other", "--trust-domain", "other")
    warren("cert", "issue", f"m1={address}", "--ca", "other", "-o", "other.join")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m1/tls").iterdir()}
    for command in (("serve", "--join"), ("cert", "renew")):
        ran = warren(*command, "other.join", "--data-dir", "m1")
        assert ran.code == 4
        assert f"m1 is of {ours}; nothing was changed" in ran.err
        assert "other.join is of the trust domain other, but " in ran.err
        assert {path.name: path.read_bytes() for path in (tmp_path / "m1/tls").iterdir()} == before
    assert "other is of the trust domain other" in warren("cert", "renew", "--ca", "other", "--data-dir", "m1").err
    assert len(warren("cert", "show", "other", "-o", "json").json["managers"][0]["certificates"]) == 1
    again = start_manager(tmp_path / "m1", "", {}, "--join", "m1.join")
    again.wait_ready()
    assert again.stop() == 0


def test_an_address_that_no_manager_can_have_is_named_with_its_file(
    warren: Command, ca: Path, start_manager: StartManager, tmp_path: Path
) -> None:
    """Earlier releases issued such certificates."""
    (address,) = free_addresses(1)
    warren("cert", "issue", f"m1={address}", "--ca", ca)
    process = start_manager(tmp_path / "m1", "", {}, "--join", "m1.join", "--bootstrap")
    process.wait_ready()
    assert process.stop() == 0
    assert warren("cert", "issue", "m1", "m4=h:4", "--ca", ca).code == 0
    for path in (tmp_path / "m1.join", ca / "authority.json"):
        path.write_text(path.read_text().replace('"h:4"', '"0.0.0.0:4"'))
    ran = warren("serve", "--join", "m1.join", "--data-dir", "new")
    assert (ran.code, "config.members.m4: other managers cannot reach 0.0.0.0" in ran.err) == (2, True)
    assert "(in m1.join)" in ran.err
    ran = warren("cert", "renew", "m1.join", "--data-dir", "m1")
    assert (ran.code, "m1.join has members with which no manager starts" in ran.err) == (4, True)
    for command in (("cert", "issue", "m1"), ("cert", "renew", "--data-dir", "m1")):
        ran = warren(*command, "--ca", ca)
        assert (ran.code, "m4 has the address 0.0.0.0:4 in the CA" in ran.err) == (4, True)
    assert warren("cert", "issue", "m1", "m4=h:4", "--ca", ca).code == 0
    assert warren("cert", "renew", "m1.join", "--data-dir", "m1").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("init", "ca"), 4, "holds a CA already"),
        (("init", "ca2", "--trust-domain", "a/b"), 1, "is not a trust domain"),
        (("init", "ca2", "--replaces", "ca", "--trust-domain", "other"), 4, "leave out --trust-domain"),
        (("issue", "m1", "--ca", "ca"), 4, "give its address once, with `warren-raft cert issue m1=HOST:PORT --ca /"),
        (("issue", "m1=h:1", "--ca", "ca", "--forget", "m2"), 4, "does not know m2: `warren-raft cert show /"),
        (("renew", "--data-dir", "."), 4, "serve --join FILE.join`\n"),
        (("issue", "m1=h:1", "--ca", "nothing"), 4, "cert init"),
        (("issue", "m1=h:1", "m2=h:1", "--ca", "ca"), 2, "have the same address"),
        (("issue", "m1=h:1", "m1=h:2", "--ca", "ca"), 2, "named twice"),
        (("issue", "m1=h", "--ca", "ca"), 2, "is not an address"),
        (("issue", "m1=0.0.0.0:1", "--ca", "ca"), 2, "other managers cannot reach 0.0.0.0"),
        (("issue", "m1=255.255.255.255:1", "--ca", "ca"), 2, "other managers cannot reach 255.255.255.255"),
        (("issue", "m1", "--ca", "ca", "--address", "[::]:1"), 2, "--address: other managers cannot reach ::"),
        (("issue", "m/1=h:1", "--ca", "ca"), 2, "is not a node id"),
        (("issue", "m1=h:1", "m2=h:2", "--ca", "ca", "--address", "h:3"), 2, "--address is for one manager"),
        (("issue", "m1", "--ca", "ca", "--address", "h"), 2, "is not an address"),
        (("issue", "m1=h:1", "m2=h:2", "--ca", "ca", "-o", "x.join"), 2, "-o names one file"),
        (("issue", "m1=h:1", "--ca", "ca", "-o", "x.join", "-o", "y.join"), 2, "-o names two files"),
        (("issue", "--ca", "ca"), 2, "Missing argument"),
        (("show",), 2, "no manager was named"),
        (("show", "--data-dir", "."), 4, "start the manager with `warren-raft serve --join FILE.join`"),
        (("show", "nothing"), 2, "warren-raft: there is no file nothing"),
        (("renew", "ca"), 2, "warren-raft: ca is a directory: name a file"),
        (("init", "ca/ca.pem"), 2, "warren-raft: ca/ca.pem is a file: name a directory"),
        (("init", "ca2", "--replaces", "no"), 2, "warren-raft: there is no directory no"),
        (("show", "ca/authority.json"), 1, "is not a join file"),
        (("show", "ca/ca.key"), 1, "ca/ca.key holds a private key, not a certificate"),
        (("show", "/etc/passwd"), 1, "/etc/passwd holds no certificate in PEM"),
        (("show", "/etc"), 4, "/etc holds no certificate"),
    ],
)
def test_what_is_wrong_is_one_line(warren: Command, ca: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    ran = warren("cert", *arguments)
    assert ran.code == code
    assert says in ran.err


def test_no_file_is_lost_to_a_join_file(warren: Command, ca: Path, tmp_path: Path) -> None:
    """(Pins a bug: `-o ca/ca.key` destroyed the CA's key.)"""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("ca")
    before = {path: path.read_bytes() for path in [*ca.iterdir(), tmp_path / "precious"]}
    for file in ("ca/ca.key", "ca/authority.json", "ca/new.join", "link/bridge.pem"):
        ran = warren("cert", "issue", "m1=h:1", "--ca", ca, "-o", file)
        assert (ran.code, f"{file} is in the CA's directory" in ran.err) == (4, True)
    ran = warren("cert", "issue", "m1=h:1", "--ca", ca, "-o", "precious")
    assert (ran.code, "precious exists already and is not a join file" in ran.err) == (4, True)
    assert {path: path.read_bytes() for path in [*ca.iterdir(), tmp_path / "precious"]} == before
    for _ in range(2):  # the second one is a renewal
        assert warren("cert", "issue", "m1=h:1", "--ca", ca).code == 0
    assert len(warren("cert", "show", ca, "-o", "json").json["managers"][0]["certificates"]) == 2


def test_the_address_of_another_manager_is_refused_until_that_manager_is_forgotten(warren: Command, ca: Path) -> None:
    warren("cert", "issue", "m1=h:1", "m2=h:2", "--ca", ca)
    ran = warren("cert", "issue", "m4=h:1", "--ca", ca)
    assert (ran.code, "m1 and m4 share the address h:1" in ran.err) == (4, True)
    assert not os.path.exists("m4.join")
    assert warren("cert", "issue", "m4=h:1", "--ca", ca, "--forget", "m4").code == 2
    assert warren("cert", "issue", "m4=h:1", "--ca", ca, "--forget", "m1").code == 0
    assert [one["id"] for one in warren("cert", "show", ca, "-o", "json").json["managers"]] == ["m2", "m4"]


def test_a_file_system_without_new_directories_is_one_line(warren: Command) -> None:
    ran = warren("cert", "init", "/proc/ca")
    assert (ran.code, ran.err.startswith("warren-raft: /proc/ca: cannot be made: ")) == (1, True)


def test_a_data_directory_is_shown_by_its_option(warren: Command, tmp_path: Path) -> None:
    (tmp_path / "m1" / "tls").mkdir(parents=True)
    ran = warren("cert", "show", tmp_path / "m1")
    assert (ran.code, f"type warren-raft cert show --data-dir {tmp_path / 'm1'}" in ran.err) == (2, True)


def test_a_file_that_is_no_join_file_has_one_exit_code(
    warren: Command, ca: Path, start_manager: StartManager, tmp_path: Path
) -> None:
    (tmp_path / "bad.join").write_text('{"format": 1}')
    (address,) = free_addresses(1)
    process = start_manager(tmp_path / "m1", "m1", {"m1": address})
    process.wait_ready()
    assert process.stop() == 0
    for command in (("cert", "renew", "bad.join"), ("cert", "show", "bad.join"), ("serve", "--join", "bad.join")):
        ran = warren(*command, "--data-dir", "m1")
        text = (
            "warren-raft: bad.join is not a join file: it has no 'members'; warren-raft cert issue makes join files\n"
        )
        assert (ran.code, ran.err) == (1, text)


def test_a_renewal_that_changes_nothing_says_why_and_what_to_type(warren: Command, ca: Path, tmp_path: Path) -> None:
    """(Pins reports: "already has a newer certificate, of 2026-…: issue another one" named neither of the two
    certificates nor the command, and the advice of a CA and of a directory did not fit `cert renew`.)"""
    authority = Authority(ca)
    times = [datetime.now(UTC) - timedelta(hours=hours) for hours in (3, 2, 400 * 24)]
    older, newer, expired = (authority.issue({"m1": "h:1"}, now=time)[0] for time in times)
    for name, join in (("older", older), ("expired", expired)):
        join.write(f"{name}.join")
    (tmp_path / "m1").mkdir(mode=0o700)
    install(tmp_path / "m1", newer.files, check=lambda part: None)
    before = contents(tmp_path / "m1")

    def refused(*arguments: str | Path) -> str:
        ran = warren("cert", "renew", *arguments, "--data-dir", "m1")
        assert (ran.code, ran.out) == (4, "")
        assert contents(tmp_path / "m1") == before
        return ran.err

    begins = [rfc3339(time - timedelta(hours=1)) for time in times]
    assert refused("older.join") == (
        f"warren-raft: m1 already has a newer certificate: it begins at {begins[1]}, and that of older.join at "
        f"{begins[0]}; nothing was changed: issue another one with `warren-raft cert issue m1 --ca DIR`\n"
    )
    install(tmp_path / "m1", authority.issue({"m1": None}, now=times[2] - timedelta(days=1))[0].files, check=print)
    before = contents(tmp_path / "m1")
    assert re.search(r"expired.join: .* If it is right, issue a certificate on the host", refused("expired.join"))
    warren("cert", "init", "ca2", "--trust-domain", authority.trust_domain)
    assert "does not know m1 yet: give its address once, with `warren-raft cert issue m1=HOST:PORT" in refused(
        "--ca", "ca2"
    )
    (tmp_path / "m1/tls/cert.pem").write_text("damaged")
    ran = warren("cert", "renew", "older.join", "--data-dir", "m1")
    assert ran.err.endswith("`warren-raft serve --join FILE.join`, which puts the certificate of FILE.join there\n")


def test_a_certificate_that_ends_with_its_ca_is_named_at_issue_and_at_renewal(
    warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    authority = Authority.create("ca", now=datetime.now(UTC) - timedelta(days=3600))
    warns = r"the CA itself expires at \S+Z, .*`warren-raft cert init NEW_DIR --replaces ca`"
    assert re.search(warns, warren("cert", "issue", "m1=h:1", "--ca", "ca").err)
    (tmp_path / "m1").mkdir(mode=0o700)
    install(tmp_path / "m1", authority.issue({"m1": None})[0].files, check=lambda part: None)
    ran = warren("cert", "renew", "--ca", "ca", "--data-dir", "m1")
    assert ran.code == 0
    assert re.search(warns, ran.err)


def test_a_renewal_waits_for_a_manager_that_starts(
    warren: Command, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its directory locked, and no admin socket yet. (Pins a fault: "m1 does not run".)"""
    join = Authority(ca).issue({"m1": "h:1"})[0]
    join.write("m1.join")
    monkeypatch.setattr(cert, "IN_USE_SECONDS", 0.05)
    monkeypatch.setattr(cert, "POLL_SECONDS", 0.01)
    lock = DirectoryLock(tmp_path / "m1")
    try:
        install(tmp_path / "m1", join.files, check=lambda part: None)
        ran = warren("cert", "renew", "m1.join", "--data-dir", "m1")
    finally:
        lock.release()
    assert ran.text.startswith("m1 runs and does not answer: it soon uses the certificate ")
    assert (
        "m1 is stopped: its next start uses the certificate "
        in warren("cert", "renew", "m1.join", "--data-dir", "m1").text
    )
