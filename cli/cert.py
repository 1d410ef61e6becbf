"""`warren-raft cert …`: the CA of a cluster, the join files of its managers, and the content of a certificate.

Here: arguments and output. Not here: keys and certificates (warren_raft/certificates/ca.py), and the links with TLS.
Invariant: these commands need no running manager, and a CA's key stays in the directory where `cert init` made it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.config import check_address, check_node_id
from warren_raft.errors import InvalidConfig, RefusedForSafety, Unavailable

from .common import (
    BadFile,
    NodeIdType,
    PathType,
    ShowingCommand,
    WarrenGroup,
    data_dir,
    manager,
    note_outputs,
    print_json,
    wants_json,
    wants_wide,
)
from .tables import Column, end_shown, print_fields, print_table, say, time_shown

if TYPE_CHECKING:
    from warren_raft.certificates.ca import Authority, CertificateFacts
    from warren_raft.certificates.join_files import JoinFile, KeyAndCertificates

IN_USE_SECONDS: Final = 30.0
"""A running manager looks at its files each second; this is enough for a very busy machine."""
POLL_SECONDS: Final = 0.1


@click.group("cert", cls=WarrenGroup)
def cert() -> None:
    """Make the cluster's CA, and the certificates by which its managers know each other.

    \b
    Example: warren-raft cert init ca
    """


# cert init -----------------------------------------------------------------------------------------------------------


@cert.command("init")
@click.argument("directory", metavar="DIR", type=PathType(file_okay=False))
@click.option(
    "--trust-domain", metavar="NAME", help="The name that all certificates of the CA share.  [default: random]"
)
@click.option(
    "--replaces",
    metavar="DIR",
    type=PathType(exists=True, file_okay=False),
    help="The old CA that this one replaces; the managers then trust both.",
)
def init(directory: str, trust_domain: str | None, replaces: str | None) -> None:
    """Make the CA of a cluster.

    Keep DIR away from the managers' hosts: with its key anybody can let any manager into the cluster.

    \b
    Example: warren-raft cert init ca
    """
    from warren_raft.certificates.ca import Authority

    authority = Authority.create(directory, trust_domain=trust_domain, replaces=replaces)
    if wants_json():
        print_json(_authority(authority))
        return
    say(f"made a CA in {directory} (trust domain {authority.trust_domain}); its key stays in that directory")
    say(f"next: warren-raft cert issue ID=HOST:PORT … --ca {directory}, for all managers of the new cluster at once")


# cert issue ----------------------------------------------------------------------------------------------------------


class WantedType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A manager as ID or ID=HOST:PORT, converted to a pair."""

    name = "id[=host:port]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        if isinstance(value, tuple):
            return value
        node_id, equals, address = value.partition("=")
        try:
            check_node_id(node_id)
            if equals:
                check_address(address)
        except InvalidConfig as error:
            self.fail(error.reason, param, ctx)
        return node_id, address if equals else None


@cert.command("issue")
@click.argument("wanted", nargs=-1, required=True, type=WantedType(), metavar="ID[=HOST:PORT]…")
@click.option("--ca", "ca", required=True, metavar="DIR", help="The directory of the CA.")
@click.option("--address", metavar="HOST:PORT", help="The address, if one manager is named by its ID alone.")
@click.option(
    "-o",
    "--output",
    "file",
    multiple=True,
    callback=note_outputs,
    metavar="FILE",
    help="The join file, if one manager is named; table, wide and json mean the form of the result, as in every "
    "command (a join file of that name: ./json).  [default: ID.join]",
)
@click.option(
    "--forget",
    type=NodeIdType(),
    multiple=True,
    metavar="ID",
    help="Drop a manager that the cluster has removed from the CA's list; another manager may then have its address.",
)
@click.option("--drop-previous-ca", is_flag=True, help="From now on trust only this CA, not the CA that it replaces.")
def issue(
    wanted: tuple[tuple[str, str | None], ...],
    ca: str,
    address: str | None,
    file: str | None,
    forget: tuple[str, ...],
    drop_previous_ca: bool,
) -> None:
    """Make a join file for each manager: its key, its certificate, the CA's certificate and the members.

    Name all managers of a new cluster in one command. Copy each file to its host, start the manager with
    `serve --join`, and remove the other copies of the file: it holds the manager's private key. Give an address once;
    afterwards the CA knows it. You may issue another certificate for a manager at any time: the new join file replaces
    the old one. No other file is replaced.

    \b
    Example: warren-raft cert issue m1=10.0.0.1:7946 m2=10.0.0.2:7946 \\
                 m3=10.0.0.3:7946 --ca ca
             warren-raft cert issue m4 --address 10.0.0.4:7946 --ca ca -o m4.join
    """
    from warren_raft.certificates.ca import Authority
    from warren_raft.certificates.join_files import require_replaceable

    managers = _managers_wanted(wanted, address)
    if file is not None and len(managers) > 1:
        raise click.UsageError("-o names one file, but each manager needs a join file of its own: leave -o out")
    files = {id_: file or f"{id_}.join" for id_ in managers}
    for id_ in forget:
        if id_ in managers:
            raise click.UsageError(f"{id_} is both named and to be forgotten: leave out one of them")
    authority = Authority(ca)
    for each in files.values():  # before anything is issued
        _require_outside(each, authority.directory)
        require_replaceable(each)
    if drop_previous_ca:
        authority.drop_previous()
    was_known = managers.keys() <= authority.managers().keys()
    joins = authority.issue(managers, forget=forget)
    for join in joins:
        join.write(files[join.node_id])
    _warn_of_end(authority, ca)
    issued = authority.issued()
    rows = [
        {"node_id": j.node_id, "address": j.address, "file": files[j.node_id], **issued[j.node_id][-1]} for j in joins
    ]
    if wants_json():
        print_json(rows)
        return
    names = ("node_id", "address", "file", "serial", "not_after")
    columns = ("id", "address", "join file", Column("serial", wide=True), "expires")
    print_table(columns, [_shown(row, names) for row in rows], wide=wants_wide())
    _say_next(joins, files, was_known=was_known)


def _warn_of_end(authority: Authority, ca: str) -> None:
    """One line on stderr if the certificates that the CA issues now end with the CA itself."""
    from warren_raft.certificates.ca import rfc3339

    ends = authority.cuts_short()
    if ends is not None:
        say(
            f"the CA itself expires at {rfc3339(ends)}, and its certificates too: replace the CA before, with "
            f"`warren-raft cert init NEW_DIR --replaces {ca}`",
            err=True,
        )


def _require_outside(file: str, ca: str) -> None:
    """A join file in the CA's directory could take the place of one of its files."""
    if os.path.dirname(os.path.realpath(file)) == os.path.realpath(ca):
        raise RefusedForSafety(f"{file} is in the CA's directory {ca}: name a file in another directory with -o")


def _managers_wanted(wanted: Sequence[tuple[str, str | None]], address: str | None) -> dict[str, str | None]:
    """Id -> address, from the arguments and --address."""
    managers: dict[str, str | None] = {}
    for id_, each in wanted:
        if managers.setdefault(id_, each) != each:
            raise click.UsageError(f"{id_} is named twice, with the addresses {managers[id_]} and {each}")
    if address is not None:
        if len(managers) != 1 or None not in managers.values():
            raise click.UsageError(
                "--address is for one manager that is named by its id alone: type ID=HOST:PORT for each manager"
            )
        try:
            check_address(address)
        except InvalidConfig as error:
            raise click.UsageError(f"--address: {error.reason}") from None
        managers = dict.fromkeys(managers, address)
    taken: dict[str, str] = {}
    for id_, each in managers.items():
        if each is not None and taken.setdefault(each, id_) != id_:
            raise click.UsageError(
                f"{taken[each]} and {id_} have the same address {each}: give each manager an address of its own"
            )
    return managers


def _say_next(joins: Sequence[JoinFile], files: Mapping[str, str], *, was_known: bool) -> None:
    """`was_known`: the CA knew all these managers before, so most probably they run and get newer certificates."""
    node_id = joins[0].node_id
    file = files[node_id]
    copy = f"copy {file} to the host of {node_id}" if len(joins) == 1 else "copy each file to its manager's host"
    serve = f"warren-raft serve --join {file} --data-dir DIR"
    if was_known:
        say(
            f"next: {copy}, and type there: warren-raft cert renew {file} --data-dir DIR (a new or removed {node_id}: "
            f"{serve}, on an empty directory)"
        )
        return
    say(f"next: {copy}, and type there: {serve}")
    if list(joins[0].members) == [node_id]:
        say(
            f"{node_id} is the only manager that this CA knows: it waits until the leader of a cluster adds it. For a "
            "new cluster name all managers in one command; for a cluster of one add --bootstrap to serve",
            err=True,
        )


# cert renew ----------------------------------------------------------------------------------------------------------


@cert.command("renew")
@click.argument("file", required=False, metavar="[FILE.join]", type=PathType(exists=True, dir_okay=False))
@click.option("--ca", "ca", metavar="DIR", help="Issue the certificate with this CA, instead of a join file.")
def renew(file: str | None, ca: str | None) -> None:
    """Give a manager a newer certificate, whether or not it runs.

    FILE.join is the join file that `cert issue` made for this manager. A running manager makes its links again with the
    new certificate, one at a time; the command waits until the manager has begun. Without FILE.join and --ca, a manager
    with a certificate of this host's own CA gets another certificate of that CA.

    \b
    Example: warren-raft cert renew m1.join --data-dir data/m1
    """
    from warren_raft.certificates.credentials import Credentials
    from warren_raft.certificates.files import contents, install

    directory = data_dir()
    present = _present()
    node_id = present["node_id"]
    files = _renewed(directory, present, file, ca)
    source = file or ca or "this user's CA on this host"
    new = _manager(files.certificate, files.ca, source)
    if new["serial"] != present["serial"] and new["not_before"] < present["not_before"]:
        advice = f"issue another one with `warren-raft cert issue {node_id} --ca DIR`"
        raise RefusedForSafety(
            f"{node_id} already has a newer certificate: it begins at {present['not_before']}, and that of {source} at "
            f"{new['not_before']}; nothing was changed: {advice if file else 'compare the clocks of the hosts'}"
        )

    def check(part: str) -> None:
        try:
            Credentials.load(part, node_id)
        except RefusedForSafety as error:
            raise RefusedForSafety(str(error).replace(part, source, 1)) from None

    if contents(directory) != files:
        install(directory, files, check=check, local=file is None and ca is None)
    not_in_use = _wait_in_use(node_id, new["serial"])
    if wants_json():
        print_json({**new, "in_use": not not_in_use})
        return
    uses = f"{not_in_use} uses" if not_in_use else f"{node_id} uses"
    say(f"{uses} the certificate {new['serial']}, which expires at {new['not_after']}")


def _present() -> dict[str, Any]:
    """The JSON of the certificate that the manager of --data-dir has."""
    try:
        return _found(None, or_name_a_file="")
    except BadFile as error:
        advice = (
            "start the manager with `warren-raft serve --join FILE.join`, which puts the certificate of FILE.join there"
        )
        raise BadFile(f"{error}; {advice}") from None


def _renewed(directory: str, present: Mapping[str, Any], file: str | None, ca: str | None) -> KeyAndCertificates:
    """The new key and certificate, from the join file, the CA of --ca, or this user's CA on this host. They are of the
    same manager and trust domain as the present certificate."""
    from warren_raft.certificates import local as local_certificates
    from warren_raft.certificates.ca import Authority
    from warren_raft.certificates.files import is_local
    from warren_raft.certificates.join_files import JoinFile, require_members, require_trust_domain

    node_id, trust_domain = present["node_id"], present["trust_domain"]
    if file is not None and ca is not None:
        raise click.UsageError("name a join file or --ca, not both")
    if file is not None:
        join = JoinFile.read(file)
        if join.node_id != node_id:
            raise RefusedForSafety(f"{file} is for {join.node_id}, but {directory} is the directory of {node_id}")
        theirs = _manager(join.files.certificate, join.files.ca, file)["trust_domain"]
        require_trust_domain(theirs, trust_domain, source=file, data_dir=directory, node_id=node_id)
        require_members(join, file)
        _compare_address(join, file, directory)
        return join.files
    if ca is not None:
        authority = Authority(ca)
        require_trust_domain(authority.trust_domain, trust_domain, source=ca, data_dir=directory, node_id=node_id)
        files = authority.issue({node_id: None})[0].files
        _warn_of_end(authority, ca)
        return files
    if not is_local(directory):
        raise click.UsageError(
            f"no join file was named: type `warren-raft cert issue {node_id} --ca DIR` on the CA's host, copy "
            f"{node_id}.join here, and name it; or name the CA with --ca DIR"
        )
    return local_certificates.issue(node_id)


def _compare_address(join: JoinFile, file: str, directory: str) -> None:
    """One line on stderr if the manager has another address than in its join file: the CA has not heard of a move."""
    from warren_raft.admin.client import NotRunning
    from warren_raft.data_dir import remembered

    try:
        listed = {member["id"]: member["address"] for member in manager().status()["members"]}
        address, source = listed.get(join.node_id), "the member list has"
    except NotRunning:
        last = remembered.read(directory)
        address, source = last and last.listen, "at its last start it had"
    if address and address != join.address:
        say(
            f"warren-raft: {file} has the address {join.address} for {join.node_id}, and {source} {address}; if "
            f"{address} is correct, tell the CA: warren-raft cert issue {join.node_id}={address} --ca DIR",
            err=True,
        )


def _wait_in_use(node_id: str, serial: str) -> str:
    """Waits until the manager uses the certificate, and returns an empty text. If it does not run, or does not answer,
    or its links are plaintext: the beginning of a sentence with that reason and with the time from which it uses it.

    Raises Unavailable if the manager does not use it within IN_USE_SECONDS.
    """
    from warren_raft.admin.client import NotRunning

    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            status = manager().status()
        except NotRunning as error:
            if not error.is_open:
                return f"{node_id} is stopped: its next start"
            if time.monotonic() > deadline:  # a program that embeds a manager without the admin socket, perhaps
                return f"{node_id} runs and does not answer: it soon"
            time.sleep(POLL_SECONDS)
            continue
        used = (status.get("certificate") or {}).get("serial", "")
        if used and int(used, 16) == int(serial, 16):  # a manager of an earlier release prints no leading zero
            return ""
        if status["links"] == "plaintext":
            return f"the links of {node_id} are plaintext: a start without --insecure-plaintext"
        if time.monotonic() > deadline:
            text = f"{status['node_id']} does not use the new certificate yet; `warren-raft status` shows the reason"
            raise Unavailable(text, maybe_applied=True, of_write=False)
        time.sleep(POLL_SECONDS)


# cert show -----------------------------------------------------------------------------------------------------------


@cert.command("show", cls=ShowingCommand)
@click.argument("path", required=False, metavar="[PATH]", type=PathType(exists=True))
def show(path: str | None) -> None:
    """Show a certificate: its manager, its validity, and the CAs that the manager trusts.

    PATH is a join file, a CA's directory or a PEM file. Without PATH, the certificate of the
    manager of --data-dir.

    \b
    Example: warren-raft cert show --data-dir data/m1
    """
    found = _found(path)
    if wants_json():
        print_json(found)
        return
    managers = found.pop("managers", None)
    cas = found.pop("ca", [])
    wide = wants_wide()
    print_fields([(name, _time(name, value, wide=wide)) for name, value in found.items()])
    for ca in cas:
        print_fields([(f"CA {name}", _time(name, value, wide=wide)) for name, value in ca.items()])
    if managers is not None:
        rows = [
            (m["id"], m["address"], len(m["certificates"]), *_newest(m["certificates"], wide=wide)) for m in managers
        ]
        print_table(("id", "address", "issued", "newest serial", "expires"), rows, wide=wide)


def _found(path: str | None, *, or_name_a_file: str = ", or name a file") -> dict[str, Any]:
    """The JSON of the join file, the CA's directory, the data directory or the PEM file at a path; of --data-dir
    without a path. `or_name_a_file`: the end of the advice for a directory without a certificate."""
    from warren_raft.certificates.ca import REGISTRY, Authority, facts_of
    from warren_raft.certificates.credentials import AUTHORITIES, CERTIFICATE
    from warren_raft.certificates.files import directory_of
    from warren_raft.certificates.join_files import JoinFile

    if path is not None and os.path.exists(os.path.join(path, REGISTRY)):
        return _authority(Authority(path))
    directory = directory_of(data_dir()) if path is None else path
    try:
        if os.path.isdir(directory):
            certificate, ca = (_text(os.path.join(directory, name)) for name in (CERTIFICATE, AUTHORITIES))
            return _manager(certificate, ca, directory)
    except FileNotFoundError:
        pass
    if path is not None and os.path.exists(directory_of(path)):
        raise click.UsageError(f"{path} is a manager's data directory: type warren-raft cert show --data-dir {path}")
    if path is None or os.path.isdir(directory):
        raise RefusedForSafety(
            f"{directory} holds no certificate: start the manager with `warren-raft serve --join FILE.join`"
            f"{or_name_a_file}"
        )
    text = _text(path)
    if text.lstrip().startswith("{"):
        join = JoinFile.read(path)
        return {
            **_manager(join.files.certificate, join.files.ca, path),
            "address": join.address,
            "members": join.members,
        }
    try:
        return {"ca": [_facts(each) for each in facts_of(text)]}
    except ValueError as error:
        raise BadFile(f"{path} {error}") from None


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _manager(certificate: str, ca: str, source: str) -> dict[str, Any]:
    """The JSON of a manager's certificate. `source`: the file, directory or CA that it comes from, for errors."""
    from warren_raft.certificates.ca import facts_of
    from warren_raft.certificates.identity import parse_uri

    try:
        own = facts_of(certificate)[0]
        trusted = facts_of(ca)
    except ValueError as error:
        raise BadFile(f"{source} {error}") from None
    try:
        trust_domain, node_id = parse_uri(next(iter(own.names), ""))
    except ValueError as error:
        raise BadFile(f"the certificate of {source} cannot be used: {error}") from None
    return {"node_id": node_id, "trust_domain": trust_domain, **_facts(own), "ca": [_facts(each) for each in trusted]}


def _facts(facts: CertificateFacts) -> dict[str, str]:
    from warren_raft.certificates.ca import rfc3339

    return {
        "subject": facts.subject,
        "issuer": facts.issuer,
        "serial": facts.serial,
        "not_before": rfc3339(facts.not_before),
        "not_after": rfc3339(facts.not_after),
        "sha256": facts.sha256,
    }


def _authority(authority: Authority) -> dict[str, Any]:
    from warren_raft.certificates.ca import facts_of

    managers, issued = authority.managers(), authority.issued()
    return {
        "directory": authority.directory,
        "trust_domain": authority.trust_domain,
        "ca": [_facts(each) for each in facts_of(authority.certificate_pem)],
        "managers": [{"id": id_, "address": managers[id_], "certificates": issued[id_]} for id_ in managers],
    }


def _newest(certificates: Sequence[Mapping[str, str]], *, wide: bool) -> tuple[object, object]:
    if not certificates:
        return None, None
    ends = certificates[-1]["not_after"]
    return certificates[-1]["serial"], ends if wide else end_shown(ends)


def _time(name: str, value: object, *, wide: bool) -> object:
    if name not in ("not_before", "not_after"):
        return value
    return value if wide else f"{value} ({_validity(name, str(value))})"


def _validity(name: str, time: str) -> str:
    if name == "not_after":
        return end_shown(time)
    shown = str(time_shown(time, wide=False))
    return f"NOT VALID YET, {shown}" if shown.startswith("in ") else f"since {shown}"


def _shown(row: Mapping[str, str], names: Sequence[str]) -> list[object]:
    return [end_shown(row[name]) if name == "not_after" and not wants_wide() else row[name] for name in names]
