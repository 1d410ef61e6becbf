"""The promise: a manager's key and certificate are checked before they are used. Each fault is reported at the start,
with the command that mends it, and not by peers that close the link at night."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import DAY, Authority
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.identity import Identity
from warren_raft.errors import RefusedForSafety

NOW = datetime.now(UTC)


def test_a_key_and_certificate_of_the_cluster_are_loaded(tmp_path: Path) -> None:
    credentials = Authority().credentials(tmp_path, "m1", trust_domain="prod.example")
    assert credentials.identity == Identity("prod.example", "m1", credentials.identity.serial, credentials.not_after)
    assert int(credentials.serial, 16) > 0
    assert credentials.not_before < time.time() < credentials.not_after
    for context in (credentials.server, credentials.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
    assert credentials.server.num_tickets == 0


def damaged(name: str, data: bytes) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        Authority().issue(directory, "m1")
        (directory / name).write_bytes(data)

    return damage


def other_key(directory: Path) -> None:
    Authority().issue(directory, "m1")
    key = ec.generate_private_key(ec.SECP256R1())
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (directory / "key.pem").write_bytes(key.private_bytes(form, kind, serialization.NoEncryption()))


def encrypted_key(directory: Path) -> None:
    Authority().issue(directory, "m1")
    key = serialization.load_pem_private_key((directory / "key.pem").read_bytes(), None)
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (directory / "key.pem").write_bytes(key.private_bytes(form, kind, serialization.BestAvailableEncryption(b"x")))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (lambda directory: None, "key.pem is missing"),
    "no CA": (lambda d: (Authority().issue(d, "m1") / "ca.pem").unlink(), "ca.pem is missing"),
    "a key that is none": (damaged("key.pem", b"no key"), "key.pem and cert.pem cannot be used"),
    "a CA that is none": (damaged("ca.pem", b"no certificate"), "ca.pem cannot be used"),
    "a key of another certificate": (other_key, "key values mismatch"),
    "an encrypted key": (encrypted_key, "key.pem is encrypted"),
    "another CA": (lambda d: Authority().issue(d, "m1", trusted=[Authority()]), "cert.pem is not accepted by ca.pem"),
    "signed by itself": (lambda d: Authority().issue(d, "m1", is_self_signed=True), "cert.pem is not accepted"),
    "another id": (lambda d: Authority().issue(d, "m2"), "cert.pem is the certificate of m2, not of m1"),
    "no id": (lambda d: Authority().issue(d, "m1", uris=[]), "the certificate has 0 URIs"),
    "two ids": (
        lambda d: Authority().issue(d, "m1", uris=["warren://a/manager/m1", "warren://a/manager/m2"]),
        "the certificate has 2 URIs",
    ),
    "an id that is none": (lambda d: Authority().issue(d, "m1", uris=["https://a/manager/m1"]), "is not a manager's"),
    "for servers only": (
        lambda d: Authority().issue(d, "m1", usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "cert.pem is not accepted by ca.pem",
    ),
    "for clients only": (
        lambda d: Authority().issue(d, "m1", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "cert.pem is not accepted by ca.pem",
    ),
    "expired": (lambda d: Authority().issue(d, "m1", begin=NOW - 2 * DAY, end=NOW - DAY), "has expired"),
    "not valid yet": (lambda d: Authority().issue(d, "m1", begin=NOW + DAY, end=NOW + 2 * DAY), "not valid yet"),
    "of a CA that has expired": (
        lambda d: Authority(begin=NOW - 2 * DAY, end=NOW - DAY).issue(d, "m1"),
        "the CA's certificate has expired",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_fault_is_reported_with_the_command_that_mends_it(tmp_path: Path, what: str) -> None:
    make, says = WRONG[what]
    make(tmp_path / "tls")
    with pytest.raises(RefusedForSafety) as caught:
        Credentials.load(tmp_path / "tls", "m1")
    text = str(caught.value)
    assert says in text
    assert str(tmp_path / "tls") in text
    assert "warren-raft cert issue m1" in text
    assert "--join m1.join" in text


def test_a_refusal_for_time_names_both_clocks(tmp_path: Path) -> None:
    directory = Authority().issue(tmp_path / "tls", "m1", begin=NOW - DAY, end=NOW + DAY)
    with pytest.raises(RefusedForSafety) as caught:
        Credentials.load(directory, "m1", now=datetime(2020, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp())
    text = str(caught.value)
    assert f"valid from {NOW - DAY:%Y-%m-%d %H:%M:%S} UTC to {NOW + DAY:%Y-%m-%d %H:%M:%S} UTC" in text
    assert "this host's clock says 2020-05-06 07:08:09 UTC" in text
    assert text.index("The clock of this host is probably wrong: set it") < text.index(
        "issue a certificate on the host"
    )


def test_an_expired_certificate_may_be_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """(Pins a fault: the advice was to issue another certificate, which does not help against a wrong clock.)"""
    directory = Authority().issue(tmp_path / "tls", "m1", begin=NOW - DAY, end=NOW + DAY)
    with pytest.raises(
        RefusedForSafety, match=r"If the clock of this host is wrong, set it .*If it is right, issue a "
    ):
        Credentials.load(directory, "m1", now=datetime(2099, 5, 6, tzinfo=UTC).timestamp())


def test_while_a_ca_is_replaced_both_are_trusted(tmp_path: Path) -> None:
    old, new = Authority("the cluster's CA"), Authority("the cluster's CA")
    for issuer in (old, new):
        directory = issuer.issue(tmp_path / "tls", "m1", trusted=[old, new])
        assert Credentials.load(directory, "m1").identity.node_id == "m1"
