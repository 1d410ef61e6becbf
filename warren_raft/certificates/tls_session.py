"""The TLS of one connection, without its socket: encrypted bytes on one side, plain bytes on the other.

Not here: sockets (raft/links/), keys and which certificates are accepted (credentials.py).
Invariant: nothing is read from a peer before its certificate is verified. A session is used by one thread at a time.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

Buffer = bytes | bytearray | memoryview

_ALERT: Final = "_ALERT_"


class Session:
    """Made by Credentials.session. Raises `ssl.SSLError` for errors of TLS; then `take` may return an alert to send."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)

    def feed(self, data: Buffer) -> None:
        """Take in encrypted bytes from the peer."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """All encrypted bytes that are to be sent to the peer."""
        return self._outgoing.read()

    def shake(self) -> bool:
        """Go on with the handshake. Whether it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self, buffer: memoryview) -> int:
        """Read plain bytes of the peer into a buffer, and return their number. 0 if more bytes have to arrive first, or
        if the peer has closed."""
        at, size = 0, len(buffer)
        incoming = self._incoming
        has_more = incoming.pending or self._tls.pending()
        while at < size and has_more:  # a read without bytes would cost another thread its turn
            try:
                count: Any = self._tls.read(size - at, buffer[at:])  # with a buffer, read returns the number
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                break
            if count == 0:
                break
            at += count
            has_more = incoming.pending  # the session has nothing left: there was room for more
        return at

    def write(self, data: Buffer) -> bytes:
        """Encrypt plain bytes for the peer. Returns the bytes to send."""
        self._tls.write(data)
        return self._outgoing.read()

    def peer_certificate(self) -> Mapping[str, Any]:
        """The peer's certificate, as `getpeercert` returns it. Raises ValueError before the handshake is done."""
        certificate = self._tls.getpeercert()
        if not certificate:
            raise ValueError("the peer showed no certificate")
        return certificate


def reason_of(error: ssl.SSLError) -> str:
    """The reason of a failed handshake, as a sentence for an operator. "It" is the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code) or f"its certificate is not accepted: {error.verify_message}"
    reason = error.reason or str(error)
    if is_alert(error):
        said = reason.partition(_ALERT)[2].lower().replace("_", " ")
        return _SAID.get(said) or f"it ends the handshake: {said}"
    return _FAILED.get(reason) or f"the handshake failed: {reason.lower().replace('_', ' ')}"


def is_alert(error: ssl.SSLError) -> bool:
    """Whether the error is an alert of the peer, which does not accept our side of the handshake."""
    return _ALERT in (error.reason or "")


_NOT_OUR_CA: Final = "its certificate was not issued by a CA that this manager trusts (tls/ca.pem)"
_VERIFY: Final[Mapping[int, str]] = {
    18: "its certificate is signed by itself, not by the cluster's CA",
    19: _NOT_OUR_CA,
    20: _NOT_OUR_CA,
    21: _NOT_OUR_CA,
    26: "its certificate may not be used for this side of a link (extended key usage)",
}
"""By OpenSSL's numbers X509_V_ERR_*."""
_PLAINTEXT: Final = (
    "it does not speak TLS: it is a manager that runs with insecure_plaintext, a client with a wrong address, or no "
    "manager"
)
_FAILED: Final[Mapping[str, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate",
    "WRONG_VERSION_NUMBER": _PLAINTEXT,
    "HTTP_REQUEST": _PLAINTEXT,
    "HTTPS_PROXY_REQUEST": _PLAINTEXT,
    "PACKET_LENGTH_TOO_LONG": _PLAINTEXT,
    "RECORD_LAYER_FAILURE": _PLAINTEXT,
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
}
_SAID: Final[Mapping[str, str]] = {
    "unknown ca": "it does not accept this manager's certificate: issued by a CA that it does not trust",
    "certificate required": "it wants a certificate, and this manager showed none",
    "certificate expired": "it does not accept this manager's certificate: expired",
    "bad certificate": "it does not accept this manager's certificate",
    "unsupported certificate": "it does not accept this manager's certificate: of a wrong kind",
    "protocol version": "it does not speak TLS 1.3",
}
