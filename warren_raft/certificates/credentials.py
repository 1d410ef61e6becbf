"""A manager's key and certificate for the links between managers: reading and checking them, and their TLS contexts.

Lives here: DATA_DIR/tls at run time, and the required content of a peer's certificate. Not here: making certificates,
and membership of the cluster (raft/membership.py). Invariant: Credentials exist only if a handshake with themselves
accepted them, and every identity comes from a chain that OpenSSL has verified.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from warren_raft.certificates.identity import Identity, parse_uri, serial_shown
from warren_raft.certificates.tls_session import Session
from warren_raft.errors import RefusedForSafety

DIRECTORY_NAME: Final = "tls"
KEY, CERTIFICATE, AUTHORITIES = "key.pem", "cert.pem", "ca.pem"

_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME. OpenSSL then leaves the dates to `_check_dates`. OpenSSL would not show the dates,
and an operator must learn whether the certificate or the clock is wrong."""
_HANDSHAKE_STEPS: Final = 4


class NotAccepted(Exception):
    """The certificate of a peer is not that of a manager of this cluster, or not valid now. `code` is for programs.
    `node_id`: the manager that the certificate names; empty if it names none."""

    def __init__(self, code: str, text: str, node_id: str) -> None:
        super().__init__(text)
        self.code = code
        self.node_id = node_id

    def __reduce__(self) -> tuple[Any, ...]:
        """Without this method, pickle and copy lose the text."""
        return type(self), (self.code, str(self), self.node_id), dict(self.__dict__)


@dataclass(frozen=True)
class Credentials:
    """The key and certificate of one manager. Immutable; thread-safe."""

    directory: str
    identity: Identity
    """This manager's own identity, as peers see it."""
    not_before: float
    """When the certificate begins, in seconds since 1970 (UTC). It ends at `identity.not_after`."""
    server: ssl.SSLContext
    """For connections that peers made to this manager."""
    client: ssl.SSLContext
    """For connections that this manager makes."""

    @property
    def trust_domain(self) -> str:
        return self.identity.trust_domain

    @property
    def serial(self) -> str:
        """As `openssl x509 -serial` prints it."""
        return serial_shown(self.identity.serial)

    @property
    def not_after(self) -> float:
        return self.identity.not_after

    @classmethod
    def load(cls, directory: str | os.PathLike[str], node_id: str, *, now: float | None = None) -> Credentials:
        """Read key.pem, cert.pem and ca.pem of a directory, and check them by a handshake with themselves.

        `now`: this host's clock, in seconds since 1970. Raises RefusedForSafety if a file is missing or has wrong
        content, if the files do not fit each other or the id, and if the certificate is not valid now.
        """
        where = os.fspath(directory)
        server, client = (_context(where, node_id, side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
        certificate = _proved(server, client, where, node_id)
        try:
            identity = _identity(certificate)
            _check_dates(
                certificate, identity.node_id, server, time.time() if now is None else now, "this host's clock"
            )
        except NotAccepted as error:
            raise _refusal(where, node_id, str(error), _ABOUT_CLOCKS.get(error.code, "Issue")) from None
        if identity.node_id != node_id:
            raise _refusal(where, node_id, f"{CERTIFICATE} is the certificate of {identity.node_id}, not of {node_id}")
        return cls(where, identity, _seconds(certificate["notBefore"]), server, client)

    def session(self, *, is_server: bool) -> Session:
        """The TLS of a new connection."""
        return Session(self.server if is_server else self.client, is_server=is_server)

    def identity_of(self, session: Session, now: float) -> Identity:
        """The identity of the peer of a session, after its handshake. `now` as for `load`.

        Raises NotAccepted if the certificate is not a manager's, is of another trust domain, or is not valid now.
        """
        certificate = session.peer_certificate()
        identity = _identity(certificate)
        if identity.trust_domain != self.trust_domain:
            raise NotAccepted(
                "trust_domain",
                f"the certificate of {identity.node_id} is of the trust domain {identity.trust_domain}, "
                f"this manager's is of {self.trust_domain}: they belong to different clusters",
                identity.node_id,
            )
        _check_dates(certificate, identity.node_id, self.server, now, "the clock of the manager that checked it")
        return identity


def utc(seconds: float) -> str:
    """A time in a form for operators."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _context(where: str, node_id: str, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False  # the name is the URI that `_identity` reads, at any host
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags |= _NO_CHECK_TIME
    context.options |= ssl.OP_NO_TICKET
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    for name in (KEY, CERTIFICATE, AUTHORITIES):
        if not os.path.isfile(os.path.join(where, name)):
            raise _refusal(where, node_id, f"{name} is missing")
    try:
        context.load_cert_chain(
            os.path.join(where, CERTIFICATE), os.path.join(where, KEY), password=lambda: _no_password(where, node_id)
        )
    except OSError as error:  # an SSLError is an OSError
        raise _refusal(where, node_id, f"{KEY} and {CERTIFICATE} cannot be used: {_said(error)}") from None
    try:
        context.load_verify_locations(os.path.join(where, AUTHORITIES))
    except OSError as error:
        raise _refusal(where, node_id, f"{AUTHORITIES} cannot be used: {_said(error)}") from None
    return context


def _no_password(where: str, node_id: str) -> str:
    """Without this, OpenSSL would ask for the password at the terminal."""
    raise _refusal(where, node_id, f"{KEY} is encrypted: a manager cannot ask for its password")


def _proved(server: ssl.SSLContext, client: ssl.SSLContext, where: str, node_id: str) -> Mapping[str, Any]:
    """The certificate as a peer sees it that trusts the same CA, as server and as client."""
    ours, theirs = Session(server, is_server=True), Session(client, is_server=False)
    try:
        for _ in range(_HANDSHAKE_STEPS):
            theirs.shake()
            ours.feed(theirs.take())
            ours.shake()
            theirs.feed(ours.take())
        return ours.peer_certificate()
    except ssl.SSLCertVerificationError as error:
        text = f"{CERTIFICATE} is not accepted by {AUTHORITIES}: {error.verify_message}"
        raise _refusal(where, node_id, text) from None
    except (ssl.SSLError, ValueError) as error:
        raise _refusal(where, node_id, f"a handshake with itself failed: {_said(error)}") from None


def _identity(certificate: Mapping[str, Any]) -> Identity:
    """The identity in a verified certificate, as `getpeercert` returns it."""
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise NotAccepted("certificate", f"the certificate has {len(uris)} URIs, and a manager's has one", "")
    try:
        trust_domain, node_id = parse_uri(uris[0])
    except ValueError as error:
        raise NotAccepted("certificate", f"the certificate is not a manager's: {error}", "") from None
    serial = f"{int(certificate['serialNumber'], 16):x}"
    return Identity(trust_domain, node_id, serial, _seconds(certificate["notAfter"]))


def _check_dates(
    certificate: Mapping[str, object], node_id: str, context: ssl.SSLContext, now: float, clock: str
) -> None:
    """Check the dates of a manager's certificate, and of the CA that issued it. Raises NotAccepted.

    While a CA is replaced, a certificate of the new CA may chain to the old one. Then one trusted CA must be
    valid.
    """
    _check_valid("certificate", certificate, node_id, now, clock)
    trusted = context.get_ca_certs()
    issuers = [ca for ca in trusted if ca["subject"] == certificate["issuer"]] or trusted
    if not any(_is_valid(ca, now) for ca in issuers):
        _check_valid("CA's certificate", issuers[0], node_id, now, clock)


def _is_valid(certificate: Mapping[str, Any], now: float) -> bool:
    return _seconds(certificate["notBefore"]) <= now <= _seconds(certificate["notAfter"])


def _check_valid(what: str, certificate: Mapping[str, Any], node_id: str, now: float, clock: str) -> None:
    if _is_valid(certificate, now):
        return
    begins, ends = _seconds(certificate["notBefore"]), _seconds(certificate["notAfter"])
    is_early = now < begins
    raise NotAccepted(
        "not_yet_valid" if is_early else "expired",
        f"the {what} {'is not valid yet' if is_early else 'has expired'}: it is valid from {utc(begins)} to "
        f"{utc(ends)}, and {clock} says {utc(now)}",
        node_id,
    )


def _seconds(text: str) -> float:
    return float(ssl.cert_time_to_seconds(text))


def _said(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError) and "PEM lib" in str(error):  # the library's words for a text without PEM in it
        return "not in the form PEM"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)


def _refusal(where: str, node_id: str, text: str, issue: str = "Issue") -> RefusedForSafety:
    """`issue`: the first word of the usual advice, after other advice that comes before it."""
    return RefusedForSafety(
        f"{where}: {text}. {issue} a certificate on the host that has the cluster's CA "
        f"(warren-raft cert issue {node_id} --ca DIR --address HOST:PORT -o {node_id}.join), and start this manager "
        f"with --join {node_id}.join; if it runs, type warren-raft cert renew {node_id}.join --data-dir DIR"
    )


_ABOUT_CLOCKS: Final = {
    "not_yet_valid": (
        "The clock of this host is probably wrong: set it (timedatectl), and try again. If it is right, the clock of "
        "the CA's host was wrong when the certificate was issued: set that clock, then issue"
    ),
    "expired": "If the clock of this host is wrong, set it (timedatectl), and try again. If it is right, issue",
}
"""A wrong clock and a wrong certificate look alike, and a new certificate does not help against a wrong clock."""
