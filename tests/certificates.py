"""Certificates for tests, right ones and wrong ones: a CA and its certificates, as files in a directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from warren_raft.certificates.credentials import (
    AUTHORITIES,
    CERTIFICATE,
    KEY,
    Credentials,
)
from warren_raft.certificates.identity import uri_of

DAY = timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, begin: datetime, end: datetime):  # type: ignore[no-untyped-def]
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """A CA that signs any certificate that a test asks for."""

    def __init__(self, name: str = "the cluster's CA", *, begin: datetime | None = None, end: datetime | None = None):
        now = datetime.now(UTC)
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (
            _builder(name, name, self.key, begin or now - DAY, end or now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_ca=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        directory: Path,
        node_id: str,
        *,
        trust_domain: str = "test",
        begin: datetime | None = None,
        end: datetime | None = None,
        usages: Sequence[x509.ObjectIdentifier] = BOTH,
        uris: Sequence[str] | None = None,
        is_self_signed: bool = False,
        trusted: Sequence[Authority] = (),
    ) -> Path:
        """Make a directory with key and certificate for a manager. It trusts this CA, or the named CAs."""
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        signer, issuer = (key, node_id) if is_self_signed else (self.key, self.name)
        names = [uri_of(trust_domain, node_id)] if uris is None else uris
        builder = (
            _builder(node_id, issuer, key, begin or now - DAY, end or now + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_ca=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        if names:
            uri_names = [x509.UniformResourceIdentifier(uri) for uri in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uri_names), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(directory / KEY, private)
        _write(directory / CERTIFICATE, certificate.public_bytes(pem))
        _write(directory / AUTHORITIES, b"".join(authority.pem for authority in trusted or (self,)))
        return directory

    def credentials(self, directory: Path, node_id: str, *, trust_domain: str = "test") -> Credentials:
        """Issue credentials into a directory with that name, and load them."""
        return Credentials.load(self.issue(directory / node_id, node_id, trust_domain=trust_domain), node_id)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
