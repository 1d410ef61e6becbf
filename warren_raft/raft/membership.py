"""The member list: members, incarnations, the cluster id, and the decision whether a peer may have a link.

Lives here: the replicated list and its changes, one at a time, as pure functions; the contents of a log's note before
there is a list; the judgement of a peer's hello. Not here: when a change is proposed (changes.py). Invariant: a data
directory counts as a member only under the incarnation that was added, so a wiped disk never votes or acknowledges in
the name of the directory before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import cbor2

from warren_raft.certificates.identity import Identity, serial_shown
from warren_raft.config import MEMBERS_MAX
from warren_raft.errors import InvariantViolation
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.way_back import way_back
from warren_raft.support import strict_cbor

FORM, ADD, PROMOTE, UPDATE, REMOVE, CERTIFY = "form", "add", "promote", "update", "remove", "certify"
RAISE: Final = "raise"
"""It changes no member: it raises the level of the command set (levels.py)."""
VERBS: Final = frozenset({FORM, ADD, PROMOTE, UPDATE, REMOVE, CERTIFY, RAISE})

REMOVED_KEPT: Final = 1000
"""The list keeps the incarnations removed last, so that a removed manager hears that it was removed."""
FOUNDING_BYTES: Final = 32 * 1024
"""A founding record travels in a hello and is the log's note; each may have 64 KiB."""
TEXT_CHARACTERS: Final = 256
"""The longest id, address or incarnation."""
CERTIFICATES_KEPT: Final = 4
"""Certificates of one member that may be in use at once; a renewed one pushes out the oldest."""
REMOVED_CERTIFICATES_KEPT: Final = 1000
"""Certificates of removed members. Beyond this number those that expire first are forgotten, because they stop working
by themselves first."""
INDEX_MAX: Final = 1 << 62
FIRST_LEVEL: Final = 1
"""The level of the command set that every release reads; that of a cluster that names none."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS


def _is_text_or_empty(value: object) -> bool:
    return value == "" or _is_text(value)


def _is_level(value: object) -> bool:
    return type(value) is int and FIRST_LEVEL <= value <= INDEX_MAX


@dataclass(frozen=True, slots=True)
class Certificate:
    """The part of a member's certificate that the list keeps."""

    serial: str
    not_after: int
    """Seconds since 1970 (UTC)."""

    @classmethod
    def of(cls, identity: Identity) -> Certificate:
        return cls(identity.serial, int(identity.not_after))


@dataclass(frozen=True, slots=True)
class Member:
    """One manager. A learner (`voter=False`) gets the log, and counts in no quorum before it has caught up."""

    id: str
    address: str
    incarnation: str
    voter: bool
    certificates: tuple[Certificate, ...] = ()
    """The certificates that it has shown on TLS links, the newest first."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The replicated list. `index` is the log index of the change that made it."""

    cluster_id: str
    index: int
    members: Mapping[str, Member]
    removed: tuple[str, ...] = ()
    trust_domain: str = ""
    """The certificates of this trust domain count. "": the cluster was formed with plaintext links, and no change was
    made under TLS since."""
    removed_certificates: tuple[Certificate, ...] = ()
    """Certificates of removed members: no manager gets in with one of these. Those that expire last come first."""

    @property
    def voters(self) -> frozenset[str]:
        return frozenset(member.id for member in self.members.values() if member.voter)

    def incarnation(self, member_id: str) -> str | None:
        member = self.members.get(member_id)
        return None if member is None else member.incarnation

    def is_removed(self, identity: Identity) -> bool:
        """Whether this is the certificate of a member that was removed."""
        return any(certificate.serial == identity.serial for certificate in self.removed_certificates)

    def encode(self) -> bytes:
        rows = [_row_of(member) for _, member in sorted(self.members.items())]
        value: list[object] = [self.cluster_id, self.index, rows, list(self.removed)]
        if self.trust_domain or self.removed_certificates:  # otherwise the form of releases without certificates
            value.append([self.trust_domain, _rows_of(self.removed_certificates)])
        return cbor2.dumps(value)

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """Raises ValueError for bytes that are not a member list."""
        try:
            cluster_id, index, rows, removed, *trust = strict_cbor.decode(data)
            (trust_domain, certificates), *rest = trust or [["", []]]
            members, removed_certificates = _members_of(rows), _certificates_of(certificates)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a list of members: {error}") from None
        sound = (
            not rest
            and _is_text(cluster_id)
            and type(index) is int
            and 0 <= index <= INDEX_MAX
            and members
            and type(removed) is list
            and all(map(_is_text, removed))
            and _is_text_or_empty(trust_domain)
        )
        if not sound:
            raise ValueError("not a list of members: a field of another type or length")
        by_id = {member.id: member for member in members}
        return cls(cluster_id, index, by_id, tuple(removed), trust_domain, removed_certificates)


@dataclass(frozen=True, slots=True)
class Change:
    """One change, alone in its log entry. FORM has `members`, RAISE a `level`; each other change names one member."""

    verb: str
    id: str = ""
    address: str = ""
    incarnation: str = ""
    cluster_id: str = ""
    members: tuple[Member, ...] = ()
    trust_domain: str = ""
    """The trust domain of the leader's certificate; a cluster without a trust domain takes it over. "": the leader's
    links are plaintext."""
    certificate: Certificate | None = None
    """ADD, CERTIFY: the certificate that the member has. REMOVE: the certificate that it showed last, if the list does
    not have it."""
    level: int = FIRST_LEVEL
    """FORM, RAISE: the level of the command set from this entry on."""

    def encode(self) -> bytes:
        rows = [_row_of(member) for member in self.members]
        value: list[object] = [self.verb, self.id, self.address, self.incarnation, self.cluster_id, rows]
        has_level = self.level != FIRST_LEVEL
        if self.trust_domain or self.certificate is not None or has_level:  # else the form of the first releases
            value.append([self.trust_domain, _rows_of([] if self.certificate is None else [self.certificate])])
        if has_level:
            value.append(self.level)
        return cbor2.dumps(value)

    @classmethod
    def decode(cls, data: bytes) -> Change:
        """Raises ValueError for bytes that are not a change, or are a change that this version does not know."""
        try:
            verb, id_, address, incarnation, cluster_id, rows, *tail = strict_cbor.decode(data)
            (trust_domain, certificates), *levels = tail or [["", []]]
            level, *rest = levels or [FIRST_LEVEL]
            members = _members_of(rows)
            certificate, *more = _certificates_of(certificates) or (None,)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a change of members: {error}") from None
        change = cls(verb, id_, address, incarnation, cluster_id, members, trust_domain, certificate, level)
        has_needless_level = level == FIRST_LEVEL and bool(levels)
        if rest or more or has_needless_level or not change._is_sound:
            raise ValueError("not a change of members: an unknown verb, or a field of another type or length")
        return change

    @property
    def _is_sound(self) -> bool:
        if type(self.verb) is not str or self.verb not in VERBS:
            return False
        texts = (self.id, self.address, self.incarnation, self.cluster_id, self.trust_domain)
        if not all(map(_is_text_or_empty, texts)) or not _is_level(self.level):
            return False
        if self.verb == RAISE:
            return self.level > FIRST_LEVEL and texts[:4] == ("", "", "", "") and not self.members
        if self.level != FIRST_LEVEL and self.verb != FORM:
            return False
        if self.verb == FORM:
            return self.cluster_id != "" and len(self.members) > 0
        if (self.verb in (ADD, UPDATE) and not self.address) or (self.verb == CERTIFY and self.certificate is None):
            return False
        return self.id != "" and self.incarnation != "" and not self.members


def _row_of(member: Member) -> list[object]:
    row: list[object] = [member.id, member.address, member.incarnation, member.voter]
    return [*row, _rows_of(member.certificates)] if member.certificates else row


def _members_of(rows: object) -> tuple[Member, ...]:
    """Raises TypeError or ValueError for rows that do not describe different members."""
    if type(rows) is not list or len(rows) > MEMBERS_MAX:
        raise ValueError(f"not a list of up to {MEMBERS_MAX} rows")
    members = tuple(map(_member_of, rows))
    if len({member.id for member in members}) != len(members):
        raise ValueError("the same member twice")
    return members


def _member_of(row: Any) -> Member:
    id_, address, incarnation, voter, *certificates = row
    if not all(map(_is_text, (id_, address, incarnation))) or type(voter) is not bool or len(certificates) > 1:
        raise ValueError("a row does not describe a member")
    return Member(id_, address, incarnation, voter, _certificates_of(*certificates or [[]]))


def _rows_of(certificates: Iterable[Certificate]) -> list[list[object]]:
    return [[certificate.serial, certificate.not_after] for certificate in certificates]


def _certificates_of(rows: object) -> tuple[Certificate, ...]:
    """Raises TypeError or ValueError for rows that do not describe certificates."""
    if type(rows) is not list or len(rows) > REMOVED_CERTIFICATES_KEPT:
        raise ValueError(f"not a list of up to {REMOVED_CERTIFICATES_KEPT} certificates")
    certificates = tuple(Certificate(serial, not_after) for serial, not_after in rows)
    for certificate in certificates:
        not_after = certificate.not_after
        if not _is_text(certificate.serial) or type(not_after) is not int or not 0 <= not_after <= INDEX_MAX:
            raise ValueError("a row does not describe a certificate")
    return certificates


def apply_change(current: Membership | None, change: Change, index: int) -> Membership | None:
    """The list after `change`, which was committed at `index`. Pure; a change that no longer fits changes nothing.

    Every manager computes the new list from the same list and the same entry, so all managers agree.
    """
    if current is None:
        if change.verb != FORM:
            return None
        members = {member.id: member for member in change.members}
        return Membership(change.cluster_id, index, members, trust_domain=change.trust_domain)
    members = dict(current.members)
    removed, revoked = current.removed, current.removed_certificates
    member = members.get(change.id)
    if member is not None and member.incarnation != change.incarnation:
        return current  # the change was meant for an earlier directory of this id
    certificates = () if change.certificate is None else (change.certificate,)
    if change.verb == ADD and member is None and len(members) < MEMBERS_MAX:
        members[change.id] = Member(change.id, change.address, change.incarnation, False, certificates)
    elif change.verb == PROMOTE and member is not None:
        members[change.id] = replace(member, voter=True)
    elif change.verb == UPDATE and member is not None:
        members[change.id] = replace(member, address=change.address)
    elif change.verb == CERTIFY and member is not None:
        known = _with(member.certificates, certificates)
        members[change.id] = replace(member, certificates=known[:CERTIFICATES_KEPT])
        revoked = _revoked(revoked, known[CERTIFICATES_KEPT:])
    elif change.verb == REMOVE and member is not None and len(members) > 1:
        del members[change.id]
        removed = (*removed, member.incarnation)[-REMOVED_KEPT:]
        revoked = _revoked(revoked, _with(member.certificates, certificates))
    else:
        return current
    trust_domain = current.trust_domain or change.trust_domain
    return Membership(current.cluster_id, index, members, removed, trust_domain, revoked)


def _with(known: tuple[Certificate, ...], newest: tuple[Certificate, ...]) -> tuple[Certificate, ...]:
    return newest + tuple(certificate for certificate in known if certificate not in newest)


def _revoked(known: tuple[Certificate, ...], further: Iterable[Certificate]) -> tuple[Certificate, ...]:
    every = sorted({*known, *further}, key=lambda certificate: (-certificate.not_after, certificate.serial))
    return tuple(every[:REMOVED_CERTIFICATES_KEPT])


@dataclass(frozen=True, slots=True)
class Founding:
    """The founding record: the initial members as this directory met them. It is durable before the first vote.

    It is recorded only when every initial member has a link, is blank, has the same origin, and has declared the very
    same view. So two directories can never hold different records (the argument is in DESIGN.md beside this file).
    """

    members: Mapping[str, Member]
    origin: str = ""
    """The cluster id that restored directories were given; "": the first leader will choose one."""

    def encode(self) -> bytes:
        rows = [[m.id, m.address, m.incarnation] for _, m in sorted(self.members.items())]
        return cbor2.dumps({"cluster": self.origin, "founders": rows} if self.origin else rows)

    @classmethod
    def decode(cls, data: bytes) -> Founding:
        """Raises ValueError for bytes that are not a founding record; a peer may have sent them."""
        try:
            value = strict_cbor.decode(data)
            origin, rows = (value["cluster"], value["founders"]) if type(value) is dict else ("", value)
            members = [Member(id_, address, inc, voter=True) for id_, address, inc in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a founding record: {error}") from None
        named = all(_is_text(text) for m in members for text in (m.id, m.address, m.incarnation))
        named = named and (origin == "" or _is_text(origin))
        if not named or not 1 <= len(members) <= MEMBERS_MAX or len(data) > FOUNDING_BYTES:
            raise ValueError("not a founding record: it is too long, or a name in it is empty or too long")
        return cls({member.id: member for member in members}, origin)


@dataclass(frozen=True, slots=True)
class Origin:
    """The cluster id and the initial members that a restored directory has before it has met another manager.

    It is made together with the directory. Directories restored from the same snapshot with the same members have the
    same origin.
    """

    cluster_id: str
    members: Mapping[str, str]
    """Initial members, id -> address. They count instead of the configured initial members."""

    def encode(self) -> bytes:
        return cbor2.dumps({"cluster": self.cluster_id, "initial": dict(sorted(self.members.items()))})

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Origin:
        """The origin that `encode` wrote, from the decoded map. Raises KeyError, ValueError."""
        cluster_id, members = value["cluster"], value["initial"]
        if not _is_text(cluster_id) or type(members) is not dict or not 1 <= len(members) <= MEMBERS_MAX:
            raise ValueError("not the origin of a restored directory: a field of another type or length")
        if not all(_is_text(part) for item in members.items() for part in item):
            raise ValueError("an initial member without an id or an address")
        return cls(cluster_id, members)


def read_note(note: bytes) -> Origin | Founding | None:
    """The contents of the log's note: a restored directory's origin, later the founding record; None: it is empty.

    Raises InvariantViolation for a note that no version wrote. The log's checksums exclude damage, so such a note was
    made up.
    """
    if not note:
        return None
    try:
        value = strict_cbor.decode(note)
        if type(value) is dict and "initial" in value:
            return Origin.of(value)
        return Founding.decode(note)
    except (KeyError, TypeError, ValueError) as error:
        raise InvariantViolation(f"the note of the log cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message on a link: a manager's facts about itself."""

    node_id: str
    address: str
    incarnation: str
    blank: bool
    cluster_id: str | None
    membership_index: int
    founding: bytes
    """Founding.encode(), or empty."""
    origin: str = ""
    """The cluster id that this directory was restored with; "": it was not restored."""
    level_max: int = FIRST_LEVEL
    """The highest level of the command set that this manager reads. Releases before this field read the first one."""

    def to_message(self) -> dict[str, object]:
        return {
            "node_id": self.node_id,
            "address": self.address,
            "incarnation": self.incarnation,
            "blank": self.blank,
            "cluster_id": self.cluster_id,
            "membership_index": self.membership_index,
            "founding": self.founding,
            "origin": self.origin,
            "level_max": self.level_max,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Hello:
        """Raises ValueError if a field is missing or of another type: a peer's message must never stop this manager."""
        try:
            hello = cls(**{name: message[name] for name in cls.__slots__ if name in message or name != "level_max"})
        except KeyError as error:
            raise ValueError(f"hello without {error}") from error
        sound = (
            all(_is_text(text) for text in (hello.node_id, hello.address, hello.incarnation))
            and isinstance(hello.blank, bool)
            and (hello.cluster_id is None or _is_text(hello.cluster_id))
            and type(hello.membership_index) is int
            and 0 <= hello.membership_index <= INDEX_MAX
            and isinstance(hello.founding, bytes)
            and (hello.origin == "" or _is_text(hello.origin))
            and _is_level(hello.level_max)
        )
        if not sound:
            raise ValueError("hello with a field of another type")
        if hello.founding:
            Founding.decode(hello.founding)
        return hello


REMOVED: Final = "removed"
REMOVED_CERTIFICATE: Final = "removed-certificate"
OTHER_CERTIFICATE: Final = "other-certificate"
OTHER_TRUST_DOMAIN: Final = "other-trust-domain"
UNKNOWN_DIRECTORY: Final = "unknown-directory"
OTHER_CLUSTER: Final = "other-cluster"
OTHER_ORIGIN: Final = "other-origin"
NOT_LISTED: Final = "not-listed"
MALFORMED: Final = "malformed"
OLDER_RELEASE: Final = "older-release"


def judge(
    mine: Hello,
    theirs: Hello,
    *,
    membership: Membership | None,
    configured: Mapping[str, str],
    identity: Identity | None = None,
    trust_domain: str = "",
    level: int = FIRST_LEVEL,
) -> Refusal | None:
    """Judge whether a link to the peer with the hello `theirs` may come up. Pure. None: it may.

    `identity`: the one in the peer's certificate; None: the link is plaintext. `trust_domain`: the one of our own
    certificate; it counts only if the list has no trust domain. `level`: of the command set, in our state.
    """
    if identity is not None:
        refusal = _judge_certificate(theirs, identity, membership, trust_domain)
        if refusal is not None:
            return refusal
    if _are_of_two_clusters(mine, theirs):
        return Refusal(OTHER_CLUSTER, f"{_belonging(mine)}, {_belonging(theirs)}")
    return _judge_membership(mine, theirs, membership, configured, identity) or judge_release(theirs, level)


def _judge_membership(
    mine: Hello,
    theirs: Hello,
    membership: Membership | None,
    configured: Mapping[str, str],
    identity: Identity | None,
) -> Refusal | None:
    if membership is not None:
        return _judge_as_member(theirs, membership, identity)
    if theirs.cluster_id is not None:
        return None  # the peer has a cluster and we do not: the peer refuses us if we are not the added directory
    return _judge_before_cluster(mine, theirs, configured, "" if identity is None else identity.trust_domain)


def judge_release(theirs: Hello, level: int) -> Refusal | None:
    """A manager that cannot read the commands of this cluster must get none of them."""
    return (
        Refusal(OLDER_RELEASE, too_old(theirs.node_id, theirs.level_max, level)) if theirs.level_max < level else None
    )


def too_old(node_id: str, level_max: int, level: int) -> str:
    """Why a manager is not let in, for its operator."""
    return (
        f"{node_id} runs a release that reads the command set up to level {level_max}, and this cluster uses level "
        f"{level}: install the release of the other members on the host of {node_id}, then start it again"
    )


def _judge_certificate(
    theirs: Hello, identity: Identity, membership: Membership | None, trust_domain: str
) -> Refusal | None:
    """Judge the id and the trust domain in the certificate. Whether it is a removed member's certificate is judged
    later, after the directory."""
    if identity.node_id != theirs.node_id:
        text = f"the certificate of {identity.node_id} does not let it in as {theirs.node_id}"
        return Refusal(OTHER_CERTIFICATE, text)
    expected = (membership.trust_domain if membership is not None else "") or trust_domain
    if expected and identity.trust_domain != expected:
        return Refusal(
            OTHER_TRUST_DOMAIN,
            f"the certificate of {theirs.node_id} is of the trust domain {identity.trust_domain}, this cluster's is "
            f"{expected}; give {theirs.node_id} a certificate of this cluster: warren-raft cert issue {theirs.node_id} "
            "--ca DIR",
        )
    return None


def _are_of_two_clusters(mine: Hello, theirs: Hello) -> bool:
    """Whether the two have different clusters. Two restored directories that have not formed a cluster do not count:
    they may be meant to become one."""
    clusters = [hello.cluster_id or hello.origin for hello in (mine, theirs)]
    return all(clusters) and clusters[0] != clusters[1] and bool(mine.cluster_id or theirs.cluster_id)


def _belonging(hello: Hello) -> str:
    if hello.cluster_id is not None:
        return f"{hello.node_id} belongs to cluster {hello.cluster_id}"
    return (
        f"{hello.node_id} was restored as cluster {hello.origin} (to make them one again, stop all managers, and "
        "restore each of them from the same file with the same members)"
    )


def _judge_as_member(theirs: Hello, membership: Membership, identity: Identity | None) -> Refusal | None:
    if theirs.incarnation in membership.removed:
        return Refusal(
            REMOVED, f"{theirs.node_id} was removed from the cluster; its data directory cannot be used again"
        )
    if identity is not None and membership.is_removed(identity):
        return Refusal(
            REMOVED_CERTIFICATE,
            f"the certificate of {theirs.node_id} (serial {serial_shown(identity.serial)}) was used by a member that "
            f"was removed; give it another one: warren-raft cert issue {theirs.node_id} --ca DIR",
        )
    known = membership.members.get(theirs.node_id)
    if known is not None and known.incarnation == theirs.incarnation:
        return None
    if theirs.membership_index > membership.index:
        return None  # a later change may have added the peer; we have not applied it yet
    if known is not None:
        trust_domain = membership.trust_domain if identity is None else identity.trust_domain
        return _unknown_directory(theirs, known.address, trust_domain)
    if theirs.blank:
        return None  # a guest: `members add` takes its incarnation from this link
    return Refusal(NOT_LISTED, f"{theirs.node_id} is not a member and its data directory is not empty")


def _judge_before_cluster(
    mine: Hello, theirs: Hello, configured: Mapping[str, str], trust_domain: str
) -> Refusal | None:
    if mine.founding and theirs.founding:
        is_same = mine.founding == theirs.founding
        return None if is_same else _unknown_directory(theirs, theirs.address, trust_domain)
    if theirs.founding and theirs.node_id not in configured:
        return _not_listed(mine, theirs)
    if mine.founding or theirs.founding:
        # One of the two has a founding record: the other, blank, must be the very directory that the record names.
        members = Founding.decode(mine.founding or theirs.founding).members
        for hello in (mine, theirs):
            known = members.get(hello.node_id)
            if known is None or known.incarnation != hello.incarnation:
                return _unknown_directory(hello, hello.address, trust_domain)
        return None
    if theirs.node_id not in configured:
        return _not_listed(mine, theirs)
    if mine.origin != theirs.origin:
        return Refusal(OTHER_ORIGIN, _different_origins(mine, theirs))
    return None


def _not_listed(mine: Hello, theirs: Hello) -> Refusal:
    return Refusal(NOT_LISTED, f"{theirs.node_id} is not in the list of initial members of {mine.node_id}")


def _different_origins(mine: Hello, theirs: Hello) -> str:
    remedy = "restore each member from the same file with the same members"
    for restored, other in ((mine, theirs), (theirs, mine)):
        if not other.origin:
            return f"{other.node_id} was not restored, and {restored.node_id} was: {remedy}, or restore no member"
    return (
        f"{mine.node_id} and {theirs.node_id} were restored from different snapshots, or with different lists of "
        f"members: {remedy}"
    )


def _unknown_directory(theirs: Hello, address: str, trust_domain: str) -> Refusal:
    return Refusal(
        UNKNOWN_DIRECTORY,
        f"the data directory of {theirs.node_id} is not the one the cluster knows (wiped or replaced); "
        f"{way_back(theirs.node_id, address, trust_domain, is_empty=theirs.blank)}",
    )
