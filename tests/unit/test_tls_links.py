"""Promises: between managers there is TLS 1.3 with certificates on both sides; a link speaks only as the id of its
certificate; whoever has none, or a wrong one, is refused with a line on each side that says why. Everything runs over
real loopback sockets."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.certificates import DAY, Authority
from tests.unit.test_transport import Node, Stage, Stranger, hello, linked, scenario, until
from warren_raft.credentials import Credentials

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def tls_pair(stage: Stage, authority: Authority, directory: Path) -> tuple[Node, Node]:
    """m1, which dials, and m2, with a link."""
    a = await stage.node("m1", credentials=authority.credentials(directory, "m1"))
    b = await stage.node("m2", credentials=authority.credentials(directory, "m2"))
    a.transport.set_peers({"m2": (b.address,)})
    await linked(a, b)
    return a, b


async def dial_with(stage: Stage, node: Node, context: ssl.SSLContext) -> Stranger:
    stranger = Stranger(*await asyncio.open_connection(*node.transport.listening, ssl=context))
    stage.stack.callback(stranger.writer.close)
    return stranger


def test_messages_of_every_size_pass_both_ways_and_each_side_knows_the_others_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        assert a.identities["m2"] == Credentials.load(tmp_path / "m2", "m2").identity
        assert b.identities["m1"] == Credentials.load(tmp_path / "m1", "m1").identity
        sizes = [0, 1, 16_383, 16_384, 16_385, 300_000, 5_000_000]
        for node, peer in ((a, "m2"), (b, "m1")):
            for number, size in enumerate(sizes):
                node.send(peer, {"type": "append", "number": number, "data": bytes([number]) * size})
        for node in (a, b):
            await until(lambda node=node: len(node.messages()) == len(sizes))
            assert [m["number"] for m in node.messages()] == list(range(len(sizes)))
            assert all(m["data"] == bytes([n]) * sizes[n] for n, m in enumerate(node.messages()))
        assert not a.told("down")

    scene()


def test_nothing_but_tls_1_3_is_spoken(authority: Authority, tmp_path: Path) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await dial_with(stage, b, old)
        stranger = await dial_with(stage, b, Credentials.load(tmp_path / "m1", "m1").client)
        tls = stranger.writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert tls.session is None or not tls.session.has_ticket
        a.send("m2", {"type": "well?"})
        await until(lambda: {"type": "well?"} in b.messages())

    scene()


def test_a_link_speaks_only_as_the_id_of_its_certificate(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @scenario
    async def scene(stage: Stage) -> None:
        a, b = await tls_pair(stage, authority, tmp_path)
        thief = await dial_with(stage, b, authority.credentials(tmp_path, "m9").client)
        thief.say(hello("m1"))
        answer = await thief.hear()
        assert answer["type"] == "refused"
        assert answer["text"] == "it says that it is m1, and its certificate is m9's"
        assert not a.told("down")
        assert not b.told("down")

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()
    assert any("peer=m9" in line and "its certificate is m9's" in line for line in caplog.messages)


# Who is refused: each row is what differs between m1, which dials, and m2; and what each of them logs of the other.

Row = tuple[Callable[[Authority, Path], Credentials | None], Callable[[Authority, Path], Credentials | None], str, str]


def right(node_id: str) -> Callable[[Authority, Path], Credentials]:
    return lambda authority, directory: authority.credentials(directory, node_id)


def presented(node_id: str, make: Callable[[Authority, Path], Path]) -> Callable[[Authority, Path], Credentials]:
    """Credentials that no manager would start with: those of a right one, that show something else."""

    def credentials(authority: Authority, directory: Path) -> Credentials:
        loaded = authority.credentials(directory, node_id)
        wrong = make(authority, directory / "wrong")
        for context in (loaded.server, loaded.client):
            context.load_cert_chain(wrong / "cert.pem", wrong / "key.pem")
        return loaded

    return credentials


def nothing(authority: Authority, directory: Path) -> Credentials:
    loaded = authority.credentials(directory, "m1")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(directory / "m1" / "ca.pem")
    object.__setattr__(loaded, "client", bare)
    return loaded


def plaintext(authority: Authority, directory: Path) -> None:
    return None


def of_other_ca(authority: Authority, directory: Path) -> Path:
    return Authority("another CA").issue(directory, "m1")


NO_CA_OF_OURS = r"its certificate was not issued by a CA that this manager trusts \(tls/ca.pem\)"
OUT_OF_DATE = "it is valid from .* to .*, and the clock of the manager that checked it says .* UTC"
REFUSED: dict[str, tuple[Callable[[Authority, Path], Credentials | None], str, str]] = {
    "no certificate": (nothing, "it wants a certificate, and this manager showed none", "it has no certificate"),
    "self-signed": (
        presented("m1", lambda a, d: a.issue(d, "m1", is_self_signed=True)),
        "it does not accept this manager's certificate: issued by a CA that it does not trust",
        "its certificate is signed by itself, not by the cluster's CA",
    ),
    "another CA": (
        presented("m1", of_other_ca),
        "it does not accept this manager's certificate: issued by a CA that it does not trust",
        NO_CA_OF_OURS,
    ),
    "another CA that has the name of ours": (
        presented("m1", lambda a, d: Authority(a.name).issue(d, "m1")),
        "it does not accept this manager's certificate: ",
        "its certificate ",
    ),
    "expired": (
        presented("m1", lambda a, d: a.issue(d, "m1", begin=NOW - 9 * DAY, end=NOW - DAY)),
        f"the certificate has expired: {OUT_OF_DATE}",
        f"we refuse it: the certificate has expired: {OUT_OF_DATE}",
    ),
    "not valid yet": (
        presented("m1", lambda a, d: a.issue(d, "m1", begin=NOW + DAY, end=NOW + 9 * DAY)),
        f"the certificate is not valid yet: {OUT_OF_DATE}",
        f"we refuse it: the certificate is not valid yet: {OUT_OF_DATE}",
    ),
    "the trust domain of another cluster": (
        presented("m1", lambda a, d: a.issue(d, "m1", trust_domain="other")),
        "the certificate of m1 is of the trust domain other, this manager's is of test: they belong to different",
        "we refuse it: the certificate of m1 is of the trust domain other, this manager's is of test",
    ),
    "another id": (
        presented("m1", lambda a, d: a.issue(d, "m9")),
        "it says that it is m1, and its certificate is m9's",
        "we refuse it: it says that it is m1, and its certificate is m9's",
    ),
    "plaintext": (plaintext, "it speaks TLS, and this manager runs with insecure_plaintext", "it does not speak TLS"),
}
"""What m1 shows, what m1 hears or logs, what m2 logs."""


@pytest.mark.parametrize("dials", ["the wrong one dials", "the right one dials"])
@pytest.mark.parametrize("what", REFUSED)
def test_who_is_refused_and_what_each_side_says(
    authority: Authority, tmp_path: Path, what: str, dials: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, ours, theirs = REFUSED[what]
    is_wrong_dialling = dials == "the wrong one dials"
    if what == "no certificate" and not is_wrong_dialling:
        pytest.skip("a server without a certificate does not speak TLS at all")

    @scenario
    async def scene(stage: Stage) -> None:
        m1 = await stage.node("m1", credentials=make(authority, tmp_path))
        m2 = await stage.node("m2", credentials=authority.credentials(tmp_path, "m2"))
        dialler, dialled = (m1, m2) if is_wrong_dialling else (m2, m1)
        dialler.transport.set_peers({dialled.node_id: (dialled.address,)})

        def says(node: str, text: str) -> bool:
            lines = [line for line in caplog.messages if f"node={node} " in line]
            heard = [refusal[-1] for refusal in (m1 if node == "m1" else m2).told("refused")]
            return any(re.search(text, line) for line in lines + heard)

        await until(lambda: says("m1", ours) and says("m2", theirs), f"{ours!r} and {theirs!r}")
        assert not m1.current
        assert not m2.current
        assert not m2.told("up")

    with caplog.at_level(logging.INFO, logger="warren_raft.transport"):
        scene()
