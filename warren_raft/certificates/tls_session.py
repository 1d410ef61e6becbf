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
_HEADER_BYTES: Final = 5
"""The header of a record: its type, a version, and the length of its body in two bytes."""
_PIECE_BYTES: Final = 16 * 1024
"""OpenSSL gets so many bytes at once after the handshake, and the rest of a record. One call of it goes through all
records without data that it has: 256 KiB of KeyUpdates take 90 ms. So the error comes after 7 ms."""


class NotData(ssl.SSLError):
    """After the handshake, the peer sent a record that gave no data: a ticket, a KeyUpdate, or a part of one. Managers
    never send these. Each costs time, and part of one would make every later write fail."""

    def __init__(self) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, "it sent TLS messages without data after the handshake")
        self.reason = ""  # the attribute that errors of OpenSSL have

    def __reduce__(self) -> tuple[type[NotData], tuple[()], dict[str, object]]:
        """Without this method, pickle and copy would call the class with `args`."""
        return NotData, (), vars(self)


class Session:
    """Made by Credentials.session. Raises `ssl.SSLError` for errors of TLS; then `take` may return an alert to send.

    After the handshake, each record of the peer that has arrived whole has to give data.
    """

    __slots__ = ("_begun", "_gave", "_head", "_incoming", "_is_shaken", "_missing", "_outgoing", "_rest", "_tls")

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._is_shaken = False
        self._rest = memoryview(b"")  # bytes that OpenSSL has not got yet
        self._begun = 0  # records after the handshake of which the header has arrived
        self._missing = 0  # bytes of the newest of these records that have not arrived
        self._head = b""  # a header that has arrived in part
        self._gave = 0  # records that gave data, and of which all data were read

    @property
    def unsent_bytes(self) -> int:
        """Encrypted bytes that wait for `take`."""
        return self._outgoing.pending

    def feed(self, data: Buffer) -> None:
        """Take in encrypted bytes from the peer."""
        if not self._is_shaken:
            self._incoming.write(data)
        elif self._rest or self._incoming.pending or len(data) > _PIECE_BYTES:
            self._rest = memoryview(b"".join((self._rest, data)))
        else:  # nearly always
            self._give(data)

    def _give(self, data: Buffer) -> None:
        self._incoming.write(data)
        self._count(data)

    def _give_more(self) -> bool:
        """Give OpenSSL the next piece. False if there is none. Raises NotData for the pieces before."""
        if not self._rest:
            return False
        self._require_data()
        end = self._end_of_piece()
        piece, self._rest = self._rest[:end], self._rest[end:]
        self._give(piece)
        return True

    def _end_of_piece(self) -> int:
        """Where the next piece ends: behind a record, because OpenSSL has to be asked once more about a part of one."""
        rest, end = self._rest, self._missing
        if self._head or len(rest) < _HEADER_BYTES:
            return _PIECE_BYTES
        while end < _PIECE_BYTES and end + _HEADER_BYTES <= len(rest):
            end += _HEADER_BYTES + (rest[end + 3] << 8) + rest[end + 4]
        return end

    def _require_data(self) -> None:
        """OpenSSL has taken in all bytes that it got, and all data were read: each whole record must have given some.
        Raises NotData."""
        if self._gave != self._begun - (self._missing > 0):
            raise NotData

    def _count(self, data: Buffer) -> None:
        """Count the records in these bytes, which follow those that were counted before."""
        if self._head:
            data = self._head + bytes(data)
            self._head = b""
        at, size = self._missing, len(data)
        while at + _HEADER_BYTES <= size:
            self._begun += 1
            at += _HEADER_BYTES + (data[at + 3] << 8) + data[at + 4]
        if at < size:
            self._head, at = bytes(data[at:]), size
        self._missing = at - size

    def take(self) -> bytes:
        """All encrypted bytes that are to be sent to the peer."""
        return self._outgoing.read()

    def shake(self) -> bool:
        """Go on with the handshake. Whether it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if not self._is_shaken:
            self._is_shaken = True
            self.feed(self._incoming.read())  # bytes that came together with the end of the handshake are counted, too
        return True

    def read(self, buffer: memoryview) -> int:
        """Read plain bytes of the peer into a buffer, and return their number. 0 if more bytes have to arrive first, or
        if the peer has closed. Raises NotData."""
        at, size = 0, len(buffer)
        incoming = self._incoming
        has_more = incoming.pending or self._tls.pending()
        while at < size and (has_more or self._give_more()):  # a read without bytes would cost another thread its turn
            try:
                count: Any = self._tls.read(size - at, buffer[at:])  # with a buffer, read returns the number
            except ssl.SSLWantReadError:
                has_more = 0
                continue
            except ssl.SSLZeroReturnError:
                return at
            if count == 0:
                return at
            at += count
            if not self._tls.pending():  # a read takes data of one record at most
                self._gave += 1
            has_more = incoming.pending  # the session has nothing left: there was room for more
        if at < size:
            self._require_data()
        return at

    def write(self, data: Buffer) -> bytes:
        """Encrypt plain bytes for the peer. Returns the bytes to send. Raises SSLWantReadError too, if a message of TLS
        has arrived in part."""
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
    if isinstance(error, NotData):
        return str(error)
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
