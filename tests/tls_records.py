"""Records of TLS 1.3 made by hand, which no TLS library sends: parts of handshake messages after the handshake.

They are made with the secret in the key log of one side. Only for the cipher suites AES-GCM.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HANDSHAKE, DATA = 22, 23
KEY_UPDATE, KEY_UPDATE_ASKED = b"\x18\0\0\1\0", b"\x18\0\0\1\1"
KEY_UPDATE_HEAD, TICKET_HEAD = b"\x18\0\0\1", b"\x04\0\0\x20"


class Crafter:
    """The records that one side sends after its handshake, from the first one on. The library must send none itself.

    `side`: CLIENT or SERVER.
    """

    def __init__(self, key_log: Path, cipher: str, side: str) -> None:
        digest = hashlib.sha384 if "384" in cipher else hashlib.sha256
        key_bytes = 32 if "256_GCM" in cipher else 16
        rows = [line.split() for line in key_log.read_text().splitlines()]
        self._digest, self._key_bytes = digest, key_bytes
        self._use(next(bytes.fromhex(row[2]) for row in rows if row[0] == f"{side}_TRAFFIC_SECRET_0"))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key, self._iv, self._count = AESGCM(self._expand(b"key", self._key_bytes)), self._expand(b"iv", 12), 0

    def _expand(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack(">HB", size, len(label)) + label + b"\0\1"
        return hmac.new(self._secret, info, self._digest).digest()[:size]

    def updates(self, count: int) -> bytes:
        """So many KeyUpdates. The records after each have the next keys."""
        records = bytearray()
        for _ in range(count):
            records += self.record(HANDSHAKE, KEY_UPDATE)
            self._use(self._expand(b"traffic upd", self._digest().digest_size))
        return bytes(records)

    def record(self, kind: int, data: bytes) -> bytes:
        inner = data + bytes([kind])
        head = b"\x17\x03\x03" + struct.pack(">H", len(inner) + 16)
        nonce = (int.from_bytes(self._iv, "big") ^ self._count).to_bytes(12, "big")
        self._count += 1
        return head + self._key.encrypt(nonce, inner, head)


def with_key_log(context: ssl.SSLContext, key_log: Path) -> ssl.SSLContext:
    context.keylog_filename = str(key_log)
    return context
