"""`warren-raft cert …`: the CA of a cluster, the join files of its managers, and what a certificate says.

Here: arguments and output. Not here: keys and certificates (warren_raft/certificates.py), and links that use them.
Invariant: these commands need no manager that runs, and a CA's key stays where `cert init` made it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.config import check_node_id, split_address
from warren_raft.errors import InvalidEntity, RefusedForSafety, Unavailable

from .common import (
    OUTPUT_FORMATS,
    WarrenGroup,
    data_dir,
    manager,
    print_json,
    remember_output_format,
    wants_json,
    wants_wide,
)
from .tables import Column, print_fields, print_table, time_shown

if TYPE_CHECKING:
    from warren_raft.certificates import Authority, CertificateFacts
    from warren_raft.join_files import KeyAndCertificates

IN_USE_SECONDS: Final = 30.0
"""A manager that runs looks at its files each second; so long is for a very busy machine."""
POLL_SECONDS: Final = 0.1


@click.group("cert", cls=WarrenGroup)
def cert() -> None:
    """Make the cluster's CA, and the certificates by which its managers know each other.

    \b
    Example: warren-raft cert init ca
    """


# cert init -----------------------------------------------------------------------------------------------------------


@cert.command("init")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--trust-domain", metavar="NAME", help="The name that its certificates share.  [default: random]")
@click.option(
    "--replaces",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="The CA that this one takes the place of; its managers come to trust both.",
)
def init(directory: str, trust_domain: str | None, replaces: str | None) -> None:
    """Make the CA of a cluster.

    Keep DIR away from the managers' hosts: whoever has it can let anybody into the cluster.

    \b
    Example: warren-raft cert init ca
    """
    from warren_raft.certificates import Authority

    authority = Authority.create(directory, trust_domain=trust_domain, replaces=replaces)
    if wants_json():
        print_json(_authority(authority))
        return
    click.echo(f"made a CA in {directory} (trust domain {authority.trust_domain}); its key never leaves that directory")
    click.echo(f"next: warren-raft cert issue ID=HOST:PORT … --ca {directory}, with all managers of a new cluster")


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
                split_address(address)
        except InvalidEntity as error:
            self.fail(error.reason, param, ctx)
        return node_id, address if equals else None


def _note_outputs(ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> str | None:
    """`-o` names the join file here, and still takes the common formats."""
    files = [value for value in values if value not in OUTPUT_FORMATS]
    for value in values:
        if value in OUTPUT_FORMATS:
            remember_output_format(ctx, value)
    if len(files) > 1:
        raise click.UsageError(f"-o names two files, {files[0]} and {files[1]}")
    return files[0] if files else None


@cert.command("issue")
@click.argument("wanted", nargs=-1, required=True, type=WantedType(), metavar="ID[=HOST:PORT]…")
@click.option("--ca", "ca", required=True, metavar="DIR", help="The directory of the CA.")
@click.option("--address", metavar="HOST:PORT", help="The address of the one manager named, as ID=HOST:PORT.")
@click.option(
    "-o",
    "--output",
    "file",
    multiple=True,
    callback=_note_outputs,
    metavar="FILE",
    help="The join file, where one manager is named; or table, wide or json.  [default: ID.join]",
)
@click.option(
    "--drop-previous-ca", is_flag=True, help="From now on trust only this CA, and not the one that it replaces."
)
def issue(
    wanted: tuple[tuple[str, str | None], ...], ca: str, address: str | None, file: str | None, drop_previous_ca: bool
) -> None:
    """Make a join file for each manager: its key, its certificate, the CA's certificate and the members.

    Name all managers of a new cluster in one command. Copy each file to its host, start the manager with
    `serve --join`, and remove the file elsewhere: it holds the manager's private key. An address is needed once;
    afterwards the CA knows it. A manager may be issued another certificate at any time.

    \b
    Example: warren-raft cert issue m1=10.0.0.1:7946 m2=10.0.0.2:7946 m3=10.0.0.3:7946 --ca ca
             warren-raft cert issue m4 --address 10.0.0.4:7946 --ca ca -o m4.join
    """
    from warren_raft.certificates import Authority, rfc3339

    managers = _managers_wanted(wanted, address)
    if file is not None and len(managers) > 1:
        raise click.UsageError("-o names one file, and each of several managers has one of its own: leave it out")
    files = {id_: file or f"{id_}.join" for id_ in managers}
    authority = Authority(ca)
    if drop_previous_ca:
        authority.drop_previous()
    joins = authority.issue(managers)
    for join in joins:
        join.write(files[join.node_id])
    ends = authority.cuts_short()
    if ends is not None:
        click.echo(
            f"the CA itself ends at {rfc3339(ends)}, and these certificates with it: replace it in time, with "
            f"`warren-raft cert init NEW_DIR --replaces {ca}`",
            err=True,
        )
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
    _say_next(joins[0].node_id, files[joins[0].node_id], is_alone=list(joins[0].members) == [joins[0].node_id])


def _managers_wanted(wanted: Sequence[tuple[str, str | None]], address: str | None) -> dict[str, str | None]:
    """Id to address, of the arguments and --address."""
    managers: dict[str, str | None] = {}
    for id_, each in wanted:
        if managers.setdefault(id_, each) != each:
            raise click.UsageError(f"{id_} is named twice, at {managers[id_]} and at {each}")
    if address is not None:
        if len(managers) != 1 or None not in managers.values():
            raise click.UsageError("--address is for one manager that is named by its id; else type ID=HOST:PORT")
        try:
            split_address(address)
        except InvalidEntity as error:
            raise click.UsageError(f"--address: {error.reason}") from None
        managers = dict.fromkeys(managers, address)
    taken: dict[str, str] = {}
    for id_, each in managers.items():
        if each is not None and taken.setdefault(each, id_) != id_:
            raise click.UsageError(f"{taken[each]} and {id_} share the address {each}")
    return managers


def _say_next(node_id: str, file: str, *, is_alone: bool) -> None:
    click.echo(
        f"next: copy each file to its manager's host, and type there: warren-raft serve --join {file} --data-dir DIR"
    )
    if is_alone:
        click.echo(
            f"{node_id} is the only manager that this CA knows: it waits until another one lets it in. For a new "
            "cluster of several managers name them all in one command; for a cluster of one add --bootstrap to serve",
            err=True,
        )


# cert renew ----------------------------------------------------------------------------------------------------------


@cert.command("renew")
@click.argument("file", required=False, metavar="[FILE.join]", type=click.Path(exists=True, dir_okay=False))
@click.option("--ca", "ca", metavar="DIR", help="Issue another certificate with this CA, instead of a join file.")
def renew(file: str | None, ca: str | None) -> None:
    """Give a manager a newer certificate, whether or not it runs.

    FILE.join is what `cert issue` made for this manager. A manager that runs makes its links again with the new
    certificate, one at a time; the command waits until it has begun. Without FILE.join and --ca, a manager with a
    certificate of this host's own CA gets another one of it.

    \b
    Example: warren-raft cert renew m1.join --data-dir data/m1
    """
    from warren_raft.credentials import Credentials
    from warren_raft.tls_files import contents, install

    directory = data_dir()
    present = _found(None)
    node_id = present["node_id"]
    files = _renewed(directory, node_id, file, ca)
    new = _manager(files.certificate, files.ca)
    if new["trust_domain"] != present["trust_domain"]:
        raise RefusedForSafety(
            f"the new certificate is of the trust domain {new['trust_domain']}, and {node_id} and its cluster are of "
            f"{present['trust_domain']}: make the CA with --trust-domain {present['trust_domain']}"
        )
    if new["serial"] != present["serial"] and new["not_before"] < present["not_before"]:
        raise RefusedForSafety(
            f"{node_id} has a newer certificate already, of {present['not_before']}: issue another one"
        )

    def check(part: str) -> None:
        try:
            Credentials.load(part, node_id)
        except RefusedForSafety as error:
            raise RefusedForSafety(str(error).replace(part, file or ca or "this host's own CA", 1)) from None

    if contents(directory) != files:
        install(directory, files, check=check, local=file is None and ca is None)
    is_in_use = _wait_in_use(new["serial"])
    if wants_json():
        print_json({**new, "in_use": is_in_use})
    elif is_in_use:
        click.echo(f"{node_id} uses the certificate {new['serial']}, which expires at {new['not_after']}")
    else:
        click.echo(f"{node_id} does not run; it has the certificate {new['serial']} for its next start")


def _renewed(directory: str, node_id: str, file: str | None, ca: str | None) -> KeyAndCertificates:
    """The new key and certificate, of the one place that was named."""
    from warren_raft import local_certificates
    from warren_raft.certificates import Authority
    from warren_raft.join_files import JoinFile
    from warren_raft.tls_files import is_local

    if file is not None and ca is not None:
        raise click.UsageError("name a join file or --ca, not both")
    if file is not None:
        join = JoinFile.read(file)
        if join.node_id != node_id:
            raise RefusedForSafety(f"{file} is for {join.node_id}, and {directory} is the directory of {node_id}")
        return join.files
    if ca is not None:
        return Authority(ca).issue({node_id: None})[0].files
    if not is_local(directory):
        raise click.UsageError(
            f"where is the new certificate? Type `warren-raft cert issue {node_id} --ca DIR` where the CA is, copy "
            f"{node_id}.join here, and name it; or name the CA with --ca DIR"
        )
    return local_certificates.issue(node_id)


def _wait_in_use(serial: str) -> bool:
    """Whether the manager uses it; False where none runs. Raises Unavailable where it does not take it."""
    from warren_raft.admin.client import NotRunning

    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            status = manager().status()
        except NotRunning:
            return False
        if (status.get("certificate") or {}).get("serial") == serial:
            return True
        if time.monotonic() > deadline:
            text = f"{status['node_id']} runs and does not use the new certificate yet; `warren-raft status` shows why"
            raise Unavailable(text, maybe_applied=True, of_write=False)
        time.sleep(POLL_SECONDS)


# cert show -----------------------------------------------------------------------------------------------------------


@cert.command("show")
@click.argument("path", required=False, metavar="[PATH]", type=click.Path(exists=True))
def show(path: str | None) -> None:
    """Show a certificate: whose it is, how long it is valid, and which CA it trusts.

    PATH is a join file, a CA's directory or a PEM file. Without it, the certificate of the manager of --data-dir.

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


def _found(path: str | None) -> dict[str, Any]:
    """What there is at a path, as JSON."""
    from warren_raft.certificates import REGISTRY, Authority, facts_of
    from warren_raft.credentials import AUTHORITIES, CERTIFICATE
    from warren_raft.join_files import JoinFile
    from warren_raft.tls_files import directory_of

    if path is not None and os.path.exists(os.path.join(path, REGISTRY)):
        return _authority(Authority(path))
    directory = directory_of(data_dir()) if path is None else path
    try:
        if os.path.isdir(directory):
            return _manager(_text(os.path.join(directory, CERTIFICATE)), _text(os.path.join(directory, AUTHORITIES)))
    except FileNotFoundError:
        pass
    if path is None or os.path.isdir(directory):
        raise RefusedForSafety(
            f"{directory} holds no certificate: start the manager with serve --join FILE.join, or name a file"
        )
    text = _text(path)
    if text.lstrip().startswith("{"):
        join = JoinFile.read(path)
        return {**_manager(join.files.certificate, join.files.ca), "address": join.address, "members": join.members}
    try:
        return {"ca": [_facts(each) for each in facts_of(text)]}
    except ValueError as error:
        raise InvalidEntity("certificate", f"{path} holds none that can be read: {error}") from None


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _manager(certificate: str, ca: str) -> dict[str, Any]:
    from warren_raft.certificates import facts_of
    from warren_raft.raft.identity import parse_uri

    try:
        own = facts_of(certificate)[0]
        trusted = facts_of(ca)
        trust_domain, node_id = parse_uri(next(iter(own.names), ""))
    except ValueError as error:
        raise InvalidEntity("certificate", f"it cannot be read: {error}") from None
    return {"node_id": node_id, "trust_domain": trust_domain, **_facts(own), "ca": [_facts(each) for each in trusted]}


def _facts(facts: CertificateFacts) -> dict[str, str]:
    from warren_raft.certificates import rfc3339

    return {
        "subject": facts.subject,
        "issuer": facts.issuer,
        "serial": facts.serial,
        "not_before": rfc3339(facts.not_before),
        "not_after": rfc3339(facts.not_after),
        "sha256": facts.sha256,
    }


def _authority(authority: Authority) -> dict[str, Any]:
    from warren_raft.certificates import facts_of

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
    return certificates[-1]["serial"], time_shown(certificates[-1]["not_after"], wide=wide)


def _time(name: str, value: object, *, wide: bool) -> object:
    if name not in ("not_before", "not_after"):
        return value
    return value if wide else f"{value} ({time_shown(str(value), wide=False)})"


def _shown(row: Mapping[str, str], names: Sequence[str]) -> list[object]:
    return [time_shown(row[name], wide=wants_wide()) if name == "not_after" else row[name] for name in names]
