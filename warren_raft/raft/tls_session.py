"""TLS of one connection, without the connection: encrypted bytes in and out on one side, plain ones on the other.

Not here: sockets (handshakes.py, connection.py), keys and which certificates are accepted (credentials.py).
Invariant: nothing is read from the other side before its certificate is verified; a session is used by one thread at a
time.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, cast

Buffer = bytes | bytearray | memoryview

_ALERT: Final = "_ALERT_"


class Session:
    """Made by Credentials.session. Errors of TLS are `ssl.SSLError`; afterwards `take` may hold an alert to send."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)

    def feed(self, data: Buffer) -> None:
        """Take encrypted bytes from the other side."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """Encrypted bytes for the other side, all there are."""
        return self._outgoing.read()

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self, buffer: memoryview) -> int:
        """Plain bytes of the other side into a buffer: how many; 0 where the rest has not arrived, or nothing comes
        after this."""
        at, size = 0, len(buffer)
        while at < size and (
            self._incoming.pending or self._tls.pending()
        ):  # a read for nothing costs other threads' turn
            try:
                count = cast(int, self._tls.read(size - at, buffer[at:]))  # with a buffer it is the number
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                break
            if count == 0:
                break
            at += count
        return at

    def write(self, data: Buffer) -> bytes:
        """Plain bytes for the other side: what is to be sent for them."""
        self._tls.write(data)
        return self._outgoing.read()

    def peer_certificate(self) -> Mapping[str, Any]:
        """As `getpeercert` has it. Raises ValueError before the handshake is done."""
        certificate = self._tls.getpeercert()
        if not certificate:
            raise ValueError("the other side showed no certificate")
        return certificate


def reason_of(error: ssl.SSLError) -> str:
    """Why a handshake failed, for an operator: what the other side did, or said of us."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code) or f"its certificate is not accepted: {error.verify_message}"
    reason = error.reason or str(error)
    if is_alert(error):
        said = reason.partition(_ALERT)[2].lower().replace("_", " ")
        return _SAID.get(said) or f"it ends the handshake: {said}"
    return _FAILED.get(reason) or f"the handshake failed: {reason.lower().replace('_', ' ')}"


def is_alert(error: ssl.SSLError) -> bool:
    """Whether it is the other side that does not accept ours."""
    return _ALERT in (error.reason or "")


_NOT_OUR_CA: Final = "its certificate was not issued by a CA that this manager trusts (tls/ca.pem)"
_VERIFY: Final[Mapping[int, str]] = {
    18: "its certificate is signed by itself, not by the cluster's CA",
    19: _NOT_OUR_CA,
    20: _NOT_OUR_CA,
    21: _NOT_OUR_CA,
    26: "its certificate may not be used for this side of a link (extended key usage)",
}
"""By OpenSSL's X509_V_ERR_*."""
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
