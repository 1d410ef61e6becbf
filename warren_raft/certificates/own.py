"""The certificate that a manager uses for its links: at the start, newer ones while it runs, and its expiry.

Lives here: choosing it, noticing that its files changed, the alarms about it. Not here: reading and checking it
(credentials.py), making it (ca.py), and links (raft/links/transport.py).
Invariant: an unusable certificate never replaces a usable one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from ..alarms import Alarms
from ..config import Config, is_on_loopback
from ..errors import InUse, InvalidEntity, RefusedForSafety
from ..results import CertificateStatus
from ..support.log_lines import log_event
from . import files as tls_files
from . import local as local_certificates
from .credentials import Credentials, utc
from .files import Fingerprint
from .join_files import JoinFile, KeyAndCertificates, require_trust_domain

logger = logging.getLogger("warren_raft.certificates.own")

DAY_SECONDS: Final = 86_400.0
EXPIRES_ALARM_SECONDS: Final = 14 * DAY_SECONDS
"""The alarm begins this long before a certificate expires."""
RENEW_LOCAL_SECONDS: Final = 30 * DAY_SECONDS
"""A manager with a certificate of this host's own CA gets another one this long before it expires."""
RENEW_AGAIN_SECONDS: Final = 3600.0
"""The time between two attempts to get another certificate of this host's own CA."""
EXCHANGE_SECONDS: Final = 5.0
"""Files that do not fit each other may be in the middle of a replacement: after this time they are an alarm."""

Mark = tuple[int, int, int]
UNREAD: Final[Mark] = (0, 0, 0)
"""The mark of a file that was never read."""


class OwnCertificate:
    """The certificate of one manager. Call `prepare` before its links begin; then `look` from its housekeeping, one
    thread at a time."""

    def __init__(self, config: Config, alarms: Alarms, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._alarms = alarms
        self._contents: KeyAndCertificates | None = None
        self._seen: tuple[Fingerprint | None, Mark | None] | None = None
        self._wrong_since: float | None = None
        self._renew_at = 0.0
        self.wanted = False
        """Any thread may set it: `look` then reads the files even if they seem unchanged, and logs the result."""
        self.credentials: Credentials | None = None
        """None if links are plaintext."""

    # At the start ------------------------------------------------------------------------------------------------

    def require_a_way(self) -> None:
        """Raises RefusedForSafety if no certificate is possible, so that such a start leaves no files."""
        config = self._config
        is_ours = config.insecure_plaintext or config.join is not None or config.is_loopback
        if not is_ours and not tls_files.is_there(config.data_dir):
            raise RefusedForSafety(
                f"{config.node_id} has no certificate, and an address of this cluster is beyond loopback: "
                f"{_how_to_get_one(config)}; or choose links without protection, with --insecure-plaintext (in Python: "
                "Config.insecure_plaintext)"
            )

    def prepare(self, cluster_trust_domain: Callable[[], str] = lambda: "") -> None:
        """Choose the certificate. The data directory exists, and is locked by this process.

        `cluster_trust_domain`: reads the trust domain of the cluster from the data directory; empty if there is none.
        It is called only before another certificate is taken.

        Raises RefusedForSafety if no certificate can be used, with the commands that make one, or if the join file is
        of another trust domain than the directory, and OSError.
        """
        if self._config.insecure_plaintext:
            return
        tls_files.finish(self._config.data_dir)
        seen_join: Mark | None = self._look_at_files()[1]
        if not self._took_join_file(cluster_trust_domain):
            seen_join = UNREAD
        if not tls_files.is_there(self._config.data_dir):
            self.require_a_way()
            self._require_local(cluster_trust_domain())
            self._issue_local()
        elif tls_files.is_local(self._config.data_dir):
            self._improve_local()
        self.credentials = self._load(self._directory)
        if self._config.join is not None and seen_join is None:
            text = "the settings and the certificate of the data directory are used"
            path = os.fspath(self._config.join)
            log_event(logger, logging.INFO, "join file missing", text, node=self._config.node_id, join_file=path)
        self._seen = (tls_files.fingerprint(self._config.data_dir), seen_join)
        self._contents = tls_files.contents(self._config.data_dir)
        self._look_at_its_end(self.credentials)

    def _load(self, directory: str) -> Credentials:
        return Credentials.load(directory, self._config.node_id, now=self._clock())

    @property
    def _directory(self) -> str:
        return tls_files.directory_of(self._config.data_dir)

    def _take_join_file(self, expected: Callable[[], str]) -> None:
        """Put the content of the join file into DATA_DIR/tls, if it is newer or the only one.

        `expected`: gives the trust domain that the file must have; empty: any. Raises _OtherTrustDomain if the file has
        another one, RefusedForSafety if it cannot be used, OSError, InUse.
        """
        path = self._config.join
        if path is None:
            return
        present = self._present()
        try:
            join = JoinFile.read(path)
        except FileNotFoundError:
            if present is not None:  # it was removed after its use, as it should be
                return
            raise RefusedForSafety(
                f"{path} does not exist and {self._config.data_dir} has no certificate yet: copy the join file there"
            ) from None
        except InvalidEntity as error:
            raise RefusedForSafety(error.reason) from None
        if join.node_id != self._config.node_id:
            raise RefusedForSafety(
                f"{path} is for {join.node_id}, and this manager is {self._config.node_id}: name its own join file"
            )
        if present is not None and join.files == tls_files.contents(self._config.data_dir):
            return
        theirs = _trust_domain_of(join.files)
        if present is not None and theirs == present.trust_domain and join.not_before <= present.not_before:
            return
        self._require_trust_domain(theirs, os.fspath(path), expected())
        self._install(join.files, os.fspath(path))

    def _require_trust_domain(self, theirs: str, path: str, ours: str) -> None:
        if not theirs or not ours:
            return
        config = self._config
        try:
            require_trust_domain(theirs, ours, source=path, data_dir=os.fspath(config.data_dir), node_id=config.node_id)
        except RefusedForSafety as error:
            raise _OtherTrustDomain(str(error)) from None

    def _trust_domain_of_directory(self, cluster_trust_domain: Callable[[], str]) -> str:
        """That of its cluster, or of the certificate that somebody gave it, also if that has expired. Empty if there is
        neither."""
        found = cluster_trust_domain()
        if found or tls_files.is_local(self._config.data_dir):
            return found
        with suppress(FileNotFoundError):
            return _trust_domain_of(tls_files.contents(self._config.data_dir))
        return ""

    def _present(self) -> Credentials | None:
        """The credentials in DATA_DIR/tls, if they can be used."""
        with suppress(RefusedForSafety):
            return self._load(self._directory)
        return None

    def _install(self, files: KeyAndCertificates, path: str) -> None:
        def check(directory: str) -> None:
            try:
                self._load(directory)
            except RefusedForSafety as error:
                raise RefusedForSafety(str(error).replace(directory, path, 1)) from None

        tls_files.install(self._config.data_dir, files, check=check)
        log_event(logger, logging.INFO, "certificate taken", node=self._config.node_id, join_file=path)

    def _took_join_file(self, cluster_trust_domain: Callable[[], str]) -> bool:
        """At the start. Returns False if the join file cannot be used. A manager with another usable certificate starts
        nevertheless; `look` reads the file again and raises an alarm. A join file of another trust domain is refused:
        the address and the members of this start may come from it."""
        try:
            self._take_join_file(lambda: self._trust_domain_of_directory(cluster_trust_domain))
        except _OtherTrustDomain as error:
            raise RefusedForSafety(str(error)) from None
        except (RefusedForSafety, OSError) as error:
            if self._present() is None:
                raise
            log_event(logger, logging.WARNING, "certificate not taken", error, node=self._config.node_id)
            return False
        return True

    # This host's own CA ------------------------------------------------------------------------------------------

    def _require_local(self, cluster: str) -> None:
        """Raises RefusedForSafety if the cluster of this directory would refuse a certificate of this host's own CA."""
        node_id, data_dir = self._config.node_id, self._config.data_dir
        if cluster not in ("", local_certificates.TRUST_DOMAIN):
            raise RefusedForSafety(
                f"{data_dir} has no certificate, and its cluster is of the trust domain {cluster}: issue one with the "
                f"cluster's CA (warren-raft cert issue {node_id} --ca DIR), and start with --join {node_id}.join (in "
                "Python: Config.join)"
            )

    def _issue_local(self) -> None:
        config = self._config
        files = local_certificates.issue(config.node_id)
        tls_files.install(config.data_dir, files, check=self._prove, local=True)
        text = "all addresses are on loopback and no join file is named, so this user's CA on this host issued it"
        ca = local_certificates.directory()
        log_event(logger, logging.INFO, "certificate issued", text, node=config.node_id, ca=ca)

    def _improve_local(self) -> None:
        """Get another certificate if this one expires soon, or if this host's CA was made again since."""
        if not self._config.is_loopback:
            raise RefusedForSafety(
                f"the certificate of {self._config.node_id} is of this user's CA for managers on one machine, and an "
                f"address of this cluster is beyond loopback: {_how_to_get_one(self._config)}; give "
                f"`warren-raft cert init` the trust domain of this cluster (--trust-domain "
                f"{local_certificates.TRUST_DOMAIN})"
            )
        present = self._present()
        if present is None:
            self._issue_local()
        elif present.not_after - self._clock() < RENEW_LOCAL_SECONDS or self._has_another_ca():
            self._try_to_issue_local()

    def _has_another_ca(self) -> bool:
        try:
            if not local_certificates.exists():
                return False  # the other managers here have certificates of the same CA as this one
            return tls_files.contents(self._config.data_dir).ca != local_certificates.certificates_pem()
        except (RefusedForSafety, OSError) as error:
            log_event(logger, logging.WARNING, "local CA not read", error, node=self._config.node_id)
            return False

    def _try_to_issue_local(self) -> None:
        try:
            self._issue_local()
        except (RefusedForSafety, InUse, OSError) as error:  # there is still time, and an alarm comes at the end
            log_event(logger, logging.WARNING, "certificate not issued", error, node=self._config.node_id)

    def _renew_local_in_time(self, ends_at: float) -> None:
        now = self._clock()
        if ends_at - now >= RENEW_LOCAL_SECONDS or now < self._renew_at:
            return
        self._renew_at = now + RENEW_AGAIN_SECONDS
        if tls_files.is_local(self._config.data_dir):
            self._try_to_issue_local()

    def require_reach(self, member_id: str, address: str) -> None:
        """Raises RefusedForSafety if a member at this address could have no certificate that this manager trusts."""
        config = self._config
        if self.credentials is None or is_on_loopback(address) or not tls_files.is_local(config.data_dir):
            return
        raise RefusedForSafety(
            f"{member_id} at {address} would be beyond this host, and the managers of this cluster have certificates of"
            " this user's CA for managers on one machine: give them certificates of a CA of the cluster first, as in "
            "docs/certificates.md (From one machine to several hosts)"
        )

    # While it runs -----------------------------------------------------------------------------------------------

    def look(self) -> Credentials | None:
        """The credentials for new links if the files have changed; else None. For a timer.

        Raises nothing: if the new files cannot be used, that is an alarm, and the manager goes on as before.
        """
        is_wanted, self.wanted = self.wanted, False
        if self.credentials is None:
            if is_wanted:
                log_event(
                    logger, logging.INFO, "certificate not used", "links are plaintext", node=self._config.node_id
                )
            return None
        self._renew_local_in_time(self.credentials.not_after)
        new = None
        if is_wanted or self._look_at_files() != self._seen:
            new = self._read_again(self.credentials, is_wanted=is_wanted)
        self._look_at_its_end(self.credentials)
        return new

    def _read_again(self, old: Credentials, *, is_wanted: bool) -> Credentials | None:
        node = self._config.node_id
        try:
            tls_files.finish(self._config.data_dir)
            seen_join = self._look_at_files()[1]
            self._take_join_file(lambda: old.trust_domain)
            seen_tls = tls_files.fingerprint(self._config.data_dir)
            contents = tls_files.contents(self._config.data_dir)
            new = self._load(self._directory)
            self._require_trust_domain(new.trust_domain, self._directory, old.trust_domain)
        except (RefusedForSafety, InUse, OSError) as error:
            self._could_not_read(error, old, is_wanted=is_wanted)
            return None
        is_same = contents == self._contents
        self._contents, self._seen, self._wrong_since = contents, (seen_tls, seen_join), None
        self._alarms.clear_alarm("certificate-not-taken")
        if is_same:
            if is_wanted:
                log_event(logger, logging.INFO, "certificate unchanged", node=node, serial=old.serial)
            return None
        self.credentials = new
        log_event(
            logger,
            logging.INFO,
            "certificate changed",
            "links are made again with it, one at a time",
            node=node,
            serial=new.serial,
            old_serial=old.serial,
            not_after=utc(new.not_after),
        )
        return new

    def _could_not_read(self, error: Exception, old: Credentials, *, is_wanted: bool) -> None:
        """Another process may be in the middle of a replacement, so the alarm waits a little."""
        now = self._clock()
        if self._wrong_since is None:
            self._wrong_since = now
        if is_wanted or now - self._wrong_since >= EXCHANGE_SECONDS:
            node = self._config.node_id
            text = f"{node} goes on with its certificate {old.serial}, because the new one cannot be used: {error}"
            self._alarms.raise_alarm("certificate-not-taken", text)

    def _look_at_files(self) -> tuple[Fingerprint | None, Mark | None]:
        """A value that changes when one of the files does."""
        return tls_files.fingerprint(self._config.data_dir), _mark_of(self._config.join)

    def _prove(self, directory: str) -> None:
        self._load(directory)

    # Its expiry --------------------------------------------------------------------------------------------------

    def _look_at_its_end(self, credentials: Credentials) -> None:
        remaining = credentials.not_after - self._clock()
        node, ends_at = self._config.node_id, utc(credentials.not_after)
        if remaining <= 0:
            text = f"the certificate of {node} has expired, at {ends_at}: no new link is made; {self._how_to_replace()}"
            self._alarms.raise_alarm("certificate-expired", text, severity="critical")
            self._alarms.clear_alarm("certificate-expires")
            return
        self._alarms.clear_alarm("certificate-expired")
        if remaining < EXPIRES_ALARM_SECONDS:
            text = f"the certificate of {node} expires at {ends_at}: {self._how_to_replace()}"
            self._alarms.raise_alarm("certificate-expires", text)
        else:
            self._alarms.clear_alarm("certificate-expires")

    def _how_to_replace(self) -> str:
        node, data_dir = self._config.node_id, self._config.data_dir
        if tls_files.is_local(data_dir):
            return (
                "this user's CA on this host has issued no other, and the log says why; type warren-raft cert renew "
                f"--data-dir {data_dir}"
            )
        return (
            f"issue another one where the cluster's CA is (warren-raft cert issue {node} --ca DIR), and put it in "
            f"place (warren-raft cert renew {node}.join --data-dir {data_dir})"
        )

    def status(self) -> CertificateStatus | None:
        """The certificate in use; None if links are plaintext."""
        credentials = self.credentials
        if credentials is None:
            return None
        return CertificateStatus(
            trust_domain=credentials.trust_domain,
            serial=credentials.serial,
            not_before=datetime.fromtimestamp(credentials.not_before, UTC),
            not_after=datetime.fromtimestamp(credentials.not_after, UTC),
        )


class _OtherTrustDomain(RefusedForSafety):
    """A join file is of another trust domain than this manager. It never leaves this module."""


def _trust_domain_of(files: KeyAndCertificates) -> str:
    """Empty if the certificate is damaged: then its use is refused, with the reason."""
    from .ca import trust_domain_of

    with suppress(ValueError):
        return trust_domain_of(files.certificate)
    return ""


def _mark_of(path: str | os.PathLike[str] | None) -> Mark | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _how_to_get_one(config: Config) -> str:
    """The commands that make a certificate."""
    wanted = " ".join(f"{id_}={address}" for id_, address in config.members.items())
    return (
        f"on the host for the cluster's CA, type `warren-raft cert init ca` and `warren-raft cert issue {wanted} --ca "
        f"ca`, copy {config.node_id}.join to this host, and start with --join {config.node_id}.join (in Python: "
        "Config.join)"
    )
