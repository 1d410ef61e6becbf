"""The CA of a cluster: making it, and issuing the certificates by which its managers identify each other.

Lives here: keys and certificates, and the directory of a CA. Not here: a manager's use of its certificate
(credentials.py), and the CA of the orchestrator that `save_ca` stores. Invariant: a CA's key stays in its directory.
`cryptography` is loaded inside functions only: a manager that has its certificate does not use it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ..config import MEMBERS_MAX, check_address, check_node_id, split_address
from ..disk.durable import make_directory, replace_file
from ..disk.files import OS_FILES
from ..disk.paths import absolute
from ..errors import InvalidConfig, InvalidEntity, RefusedForSafety
from .identity import parse_uri, serial_shown, uri_of
from .join_files import JoinFile, KeyAndCertificates, require_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

VALID: Final = timedelta(days=365)
"""The validity of a manager's certificate."""
CA_VALID: Final = timedelta(days=3650)
BACKDATED: Final = timedelta(hours=1)
"""A certificate begins this long before it is issued, because a manager's clock may be slow."""
FORMAT: Final = 1
REGISTRY: Final = "authority.json"
"""Written last: a directory that has this file is a CA."""
KEY: Final = "ca.key"
CERTIFICATE: Final = "ca.pem"
PREVIOUS: Final = "previous.pem"
"""The certificate of the CA that this one replaces, while both are trusted."""
BRIDGE: Final = "bridge.pem"
"""This CA's key, certified by the CA that it replaces. By this certificate, managers that know only the old CA accept
the new CA's certificates, so the managers can be changed over one at a time."""
_PEM_KEY: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_TRUST_DOMAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """The content of a certificate, for people."""

    names: tuple[str, ...]
    """The URIs of its subjectAltName: one for a manager's certificate, warren://TRUST-DOMAIN/manager/ID."""
    subject: str
    issuer: str
    serial: str
    """As `openssl x509 -serial` prints it."""
    not_before: datetime
    not_after: datetime
    sha256: str
    """The hash of the whole certificate: its fingerprint."""


def serial_text(number: int) -> str:
    """A serial number in the form of links, of the member list and of the registry."""
    return f"{number:x}"


def rfc3339(time: datetime) -> str:
    """The form in JSON: UTC, to the second."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def facts_of(pem: str) -> list[CertificateFacts]:
    """The facts of each certificate in a PEM text. Raises ValueError if there is none, or if one cannot be read: its
    text follows the name of the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:  # its text is about the library
        raise ValueError(_no_certificate(pem)) from None
    found = []
    for certificate in certificates:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
        except x509.ExtensionNotFound:
            uris = ()
        found.append(
            CertificateFacts(
                names=uris,
                subject=certificate.subject.rfc4514_string(),
                issuer=certificate.issuer.rfc4514_string(),
                serial=serial_shown(serial_text(certificate.serial_number)),
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
                sha256=certificate.fingerprint(hashes.SHA256()).hex(),
            )
        )
    return found


def trust_domain_of(certificate: str) -> str:
    """The trust domain in a manager's certificate, also in one that has expired. Raises ValueError if it is not the
    certificate of a manager."""
    return parse_uri(next(iter(facts_of(certificate)[0].names), ""))[0]


def _no_certificate(text: str) -> str:
    if _PEM_KEY.search(text):
        return "holds a private key, not a certificate"
    if "-----BEGIN CERTIFICATE-----" in text:
        return "holds a damaged certificate"
    return "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"


class Authority:
    """A CA in its directory. One thread at a time; several processes take turns."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open the CA in `directory`. Raises RefusedForSafety if there is no CA, if it is damaged, and if other users
        may read its key; OSError."""
        self.directory: Final = absolute(directory)
        try:
            value = _read_registry(self._path(REGISTRY))
        except (FileNotFoundError, NotADirectoryError):
            raise RefusedForSafety(_no_authority(self.directory)) from None
        self.trust_domain: Final[str] = value["trust_domain"]
        self._key, self._certificate = self._loaded()

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        *,
        trust_domain: str | None = None,
        replaces: str | os.PathLike[str] | None = None,
        now: datetime | None = None,
    ) -> Authority:
        """Make a CA in `directory`, which is empty or does not exist yet (it gets mode 0700).

        `trust_domain`: the name of the trusted domain, 1 to 128 of A-Z a-z 0-9 . -; random if it is not given.
        `replaces`: the directory of the CA that this one replaces. The new CA takes over the trust domain and the
        managers, and its certificates chain to both CAs until `drop_previous`.

        Raises RefusedForSafety if the directory is not empty, InvalidEntity for a wrong trust domain, OSError.
        """
        now = now or datetime.now(UTC)
        directory = absolute(directory)
        old = None if replaces is None else Authority(replaces)
        managers: dict[str, Any] = {}
        if old is not None:
            if trust_domain not in (None, old.trust_domain):
                raise RefusedForSafety(
                    f"the CA in {old.directory} has the trust domain {old.trust_domain}, and the one that replaces it "
                    "has the same: leave out --trust-domain"
                )
            trust_domain = old.trust_domain
            managers = {id_: {"address": address, "issued": []} for id_, address in old.managers().items()}
        trust_domain = secrets.token_hex(8) if trust_domain is None else _checked_trust_domain(trust_domain)
        make_directory(directory)
        _require_empty(directory)  # before the lock, which a manager holds for ever if this is its data directory
        with _locked(directory):
            _require_empty(directory)
            _write_new(directory, trust_domain, managers, old, now)
        return cls(directory)

    # The managers that it knows ----------------------------------------------------------------------------------

    def managers(self) -> dict[str, str]:
        """Id to address of every manager that has got a certificate."""
        return {id_: each["address"] for id_, each in _read_registry(self._path(REGISTRY))["managers"].items()}

    def issued(self) -> dict[str, list[dict[str, str]]]:
        """Id to the certificates that were issued for it, oldest first: `serial`, as `openssl x509 -serial` prints it,
        and `not_after`."""
        managers = _read_registry(self._path(REGISTRY))["managers"]
        return {
            id_: [{**one, "serial": serial_shown(one["serial"])} for one in each["issued"]]
            for id_, each in managers.items()
        }

    @property
    def certificate_pem(self) -> str:
        """Its own certificate, and the certificate of the CA that it replaces, while both are trusted."""
        return self._text(CERTIFICATE) + (self._text(PREVIOUS) if self.replaces_another else "")

    @property
    def replaces_another(self) -> bool:
        """Whether its certificates still chain to the CA that it replaces, too."""
        return os.path.exists(self._path(PREVIOUS))

    def cuts_short(self, now: datetime | None = None) -> datetime | None:
        """The end of this CA, if a certificate that it issues now would end with it; else None."""
        ends = self._certificate.not_valid_after_utc
        return ends if ends < (now or datetime.now(UTC)) + VALID else None

    def drop_previous(self) -> None:
        """From now on certificates chain to this CA only. Raises RefusedForSafety if a manager has no certificate of
        this CA yet: the others would refuse that manager. Does nothing if this CA replaces no other."""
        if not self.replaces_another:
            return
        lacking = sorted(id_ for id_, issued in self.issued().items() if not issued)
        if lacking:
            raise RefusedForSafety(
                f"the new CA has issued no certificate for {', '.join(lacking)} yet: type `warren-raft cert issue "
                f"{' '.join(lacking)} --ca {self.directory}`, and put the certificates in place before the old CA is "
                "dropped"
            )
        OS_FILES.unlink(self._path(PREVIOUS))
        OS_FILES.unlink(self._path(BRIDGE))
        OS_FILES.sync_directory(self.directory)

    # Issuing -----------------------------------------------------------------------------------------------------

    def issue(
        self, wanted: Mapping[str, str | None], *, forget: Collection[str] = (), now: datetime | None = None
    ) -> list[JoinFile]:
        """A key and a certificate for each of these managers, in this order.

        `wanted`: id to address; None for the address that the CA already knows. Each join file lists all managers that
        the CA then knows. `forget`: the ids of managers that leave that list, because the cluster has removed them.

        Raises InvalidConfig for a wrong id or address; RefusedForSafety for an unknown address, for an address that two
        managers would have, for an address in the CA's list at which no manager can be, for an unknown id to forget,
        for too many managers, and if the CA has expired; OSError.
        """
        now = now or datetime.now(UTC)
        if self._certificate.not_valid_after_utc <= now:
            ended = rfc3339(self._certificate.not_valid_after_utc)
            raise RefusedForSafety(
                f"the CA in {self.directory} expired at {ended}, and this host's clock says {rfc3339(now)}: make "
                f"another one with `warren-raft cert init NEW_DIR --replaces {self.directory}`"
            )
        with _locked(self.directory):
            registry = _read_registry(self._path(REGISTRY))
            managers = registry["managers"]
            for id_ in forget:
                if managers.pop(id_, None) is None:
                    raise RefusedForSafety(
                        f"the CA in {self.directory} does not know {id_}: `warren-raft cert show {self.directory}` "
                        "lists its managers"
                    )
            for id_, address in wanted.items():
                _enter(managers, check_node_id(id_), address, self.directory)
            _require_usable_addresses(managers, self.directory)
            files = {id_: self._key_and_certificate(id_, now) for id_ in wanted}
            for id_, (certificate, _) in files.items():
                managers[id_]["issued"].append(
                    {
                        "serial": serial_text(certificate.serial_number),
                        "not_after": rfc3339(certificate.not_valid_after_utc),
                    }
                )
            _write_registry(self.directory, registry)
        members = {id_: each["address"] for id_, each in managers.items()}
        return [
            JoinFile(
                node_id=id_,
                address=members[id_],
                members=members,
                not_before=certificate.not_valid_before_utc.timestamp(),
                files=own,
            )
            for id_, (certificate, own) in files.items()
        ]

    def issue_one(self, node_id: str, *, now: datetime | None = None) -> KeyAndCertificates:
        """A key and a certificate for a manager; the CA need not know its address. Raises the same errors as
        `issue`."""
        return self._key_and_certificate(check_node_id(node_id), now or datetime.now(UTC))[1]

    def _key_and_certificate(self, node_id: str, now: datetime) -> tuple[x509.Certificate, KeyAndCertificates]:
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _manager_certificate(
            key.public_key(), node_id, self.trust_domain, (self._key, self._certificate), now
        )
        chain = _pem(certificate) + (self._text(BRIDGE) if self.replaces_another else "")
        return certificate, KeyAndCertificates(key=_key_pem(key), certificate=chain, ca=self.certificate_pem)

    # Its directory -----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _text(self, name: str) -> str:
        with open(self._path(name), encoding="ascii") as file:
            return file.read()

    def _loaded(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        with open(self._path(KEY), "rb") as file:
            require_private(self._path(KEY), os.fstat(file.fileno()))
            data = file.read()
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError):  # the latter for a key with a password
            raise RefusedForSafety(
                f"the CA in {self.directory} cannot be read: {KEY} holds no private key in PEM; use a copy of it"
            ) from None
        try:
            certificate = x509.load_pem_x509_certificate(self._text(CERTIFICATE).encode())
        except ValueError:
            raise RefusedForSafety(
                f"the CA in {self.directory} cannot be read: {CERTIFICATE} {_no_certificate(self._text(CERTIFICATE))}; "
                "use a copy of it"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise RefusedForSafety(f"{self._path(KEY)} is not the key of {self._path(CERTIFICATE)}: use a copy of both")
        return key, certificate


# The directory -------------------------------------------------------------------------------------------------------


def _checked_trust_domain(name: str) -> str:
    if not _TRUST_DOMAIN.match(name):
        raise InvalidEntity("CA", f"{name!r} is not a trust domain (1 to 128 of A-Z a-z 0-9 . -)", field="trust_domain")
    return name


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """While one process makes or uses a CA, no other process changes it: the other waits."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _no_authority(directory: str) -> str:
    if not os.path.lexists(directory):
        return f"there is no directory {directory}: make a CA in it with `warren-raft cert init {directory}`"
    if not os.path.isdir(directory):
        return f"{directory} is a file: name the directory of a CA"
    advice = "name the directory of a CA, or make one with `warren-raft cert init DIR`"
    return f"{directory} holds no CA (no {REGISTRY}): {advice}"


def _require_empty(directory: str) -> None:
    """The directory may hold the rest of a `cert init` that was killed: without its registry, that CA was never
    used."""
    found = set(os.listdir(directory))
    if REGISTRY in found:
        raise RefusedForSafety(f"{directory} holds a CA already: issue with it, or name another directory")
    remains = (KEY, CERTIFICATE, PREVIOUS, BRIDGE, REGISTRY)
    strange = sorted(found - {*remains, *(f"{name}.tmp" for name in remains)})
    if strange:
        raise RefusedForSafety(
            f"{directory} is not empty (it has {strange[0]}): name a directory of its own for the CA"
        )


def _write_new(
    directory: str, trust_domain: str, managers: dict[str, object], old: Authority | None, now: datetime
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    os.chmod(directory, 0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"warren-raft CA {secrets.token_hex(8)}"
    certificate = _ca_certificate(key.public_key(), name, None, key, now)
    replace_file(os.path.join(directory, KEY), _key_pem(key).encode())
    replace_file(os.path.join(directory, CERTIFICATE), _pem(certificate).encode())
    if old is not None:
        bridge = _ca_certificate(key.public_key(), name, old._certificate, old._key, now)
        replace_file(os.path.join(directory, BRIDGE), _pem(bridge).encode())
        replace_file(os.path.join(directory, PREVIOUS), _pem(old._certificate).encode())
    _write_registry(directory, {"format": FORMAT, "trust_domain": trust_domain, "managers": managers})


def _write_registry(directory: str, registry: Mapping[str, object]) -> None:
    replace_file(os.path.join(directory, REGISTRY), json.dumps(registry, indent=1).encode() + b"\n")


def _read_registry(path: str) -> dict[str, Any]:
    """Raises FileNotFoundError, RefusedForSafety for a damaged file, OSError."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, and this release reads {FORMAT}")
        _checked_trust_domain(value["trust_domain"])
        for id_, each in value["managers"].items():
            check_node_id(id_)
            split_address(each["address"])
            if not all(isinstance(one["serial"], str) and isinstance(one["not_after"], str) for one in each["issued"]):
                raise TypeError(f"the certificates of {id_} are not a list")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedForSafety(f"{path} is not the list of a CA: {error}; use a copy of it") from None
    assert isinstance(value, dict)  # it has been indexed by names
    return value


def _enter(managers: dict[str, Any], id_: str, address: str | None, directory: str) -> None:
    """Add a manager to the list of the managers that the CA knows."""
    if address is None:
        if id_ not in managers:
            raise RefusedForSafety(
                f"the CA in {directory} does not know {id_} yet: give its address once, with `warren-raft cert issue "
                f"{id_}=HOST:PORT --ca {directory}`"
            )
        return
    check_address(address)
    managers.setdefault(id_, {"issued": []})["address"] = address
    if len(managers) > MEMBERS_MAX:
        raise RefusedForSafety(f"a cluster has at most {MEMBERS_MAX} managers, and this CA would know more")


def _require_usable_addresses(managers: Mapping[str, Any], directory: str) -> None:
    """No manager starts from a join file with a member whose address is wrong or belongs to another member."""
    owners: dict[str, str] = {}
    for id_, each in managers.items():
        try:
            check_address(each["address"])
        except InvalidConfig as error:
            raise RefusedForSafety(
                f"{id_} has the address {each['address']} in the CA in {directory}, with which no manager starts "
                f"({error.reason}): name {id_}=HOST:PORT in `warren-raft cert issue`; if {id_} is not part of the "
                f"cluster, add --forget {id_}"
            ) from None
        other = owners.setdefault(each["address"], id_)
        if other != id_:
            raise RefusedForSafety(
                f"{other} and {id_} share the address {each['address']} in the CA in {directory}: give each manager an "
                f"address of its own; if the cluster has removed {other}, add --forget {other}"
            )


# Certificates --------------------------------------------------------------------------------------------------------


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _ca_certificate(
    public_key: ec.EllipticCurvePublicKey,
    name: str,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    """The certificate of a CA: signed by itself (`issuer` is None), or by another CA (the bridge). A CA may certify
    managers and its successor. By the bridge, the successor may certify only managers (path length 1 and 0)."""
    from cryptography import x509

    not_after = now + CA_VALID
    if issuer is not None:
        not_after = min(not_after, issuer.not_valid_after_utc)
    usage = _key_usage(digital_signature=False, key_cert_sign=True)
    builder = (
        _builder(public_key, _name(name), _name(name) if issuer is None else issuer.subject, now, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if issuer is None else 0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(builder, issuer_key)


def _manager_certificate(
    public_key: ec.EllipticCurvePublicKey,
    node_id: str,
    trust_domain: str,
    ca: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
    now: datetime,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca_key, ca_certificate = ca
    not_after = min(now + VALID, ca_certificate.not_valid_after_utc)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = [x509.UniformResourceIdentifier(uri_of(trust_domain, node_id))]
    builder = (
        _builder(public_key, _name(node_id), ca_certificate.subject, now, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_cert_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return _signed(builder, ca_key)


def _key_usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    public_key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, ca_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return builder.add_extension(authority, critical=False).sign(ca_key, hashes.SHA256())
