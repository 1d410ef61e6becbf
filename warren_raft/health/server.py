"""The pages on a TCP port (`metrics_listen`): the standard library's HTTP server, with bounds.

Lives here: threads and sockets. Not here: the pages (pages.py). Invariant: a client costs at most one of a few threads,
for a few seconds; nothing that a client sends changes anything.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from operator import itemgetter
from socketserver import ThreadingMixIn
from typing import Any, Final

from warren_raft.errors import InUse
from warren_raft.health.pages import HEADERS, TEXT, Page, Pages
from warren_raft.support.forking import let_go_in_child
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.health.server")

CONNECTIONS_MAX: Final = 16
"""Connections at a time; a further one ends the oldest. Prometheus and a few probes need one each."""
SILENT_SECONDS: Final = 5.0
"""A client may send nothing for so long."""
CONNECTION_SECONDS: Final = 10.0
"""A connection lasts no longer, whatever its client does."""
POLL_SECONDS: Final = 0.2
"""How often connections that lasted too long are looked for. A closing manager waits so long."""
STOP_SECONDS: Final = 10.0
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class PagesServer:
    """Answers from `start` to `stop`. Raises InUse if the address cannot be used."""

    def __init__(self, pages: Pages, host: str, port: int) -> None:
        try:
            self._server: Final = _Server(pages, host, port)
        except OSError as error:
            raise InUse(f"{host}:{port} (metrics_listen)", f"cannot be listened on: {error.strerror}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="warren-raft-pages", daemon=True
        )
        let_go_in_child(self)

    def descriptors(self) -> list[int]:
        """The sockets, which a forked child closes."""
        return [number for number in self._server.descriptors() if number >= 0]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Closes every connection. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(STOP_SECONDS)
        self._server.server_close()
        self._server.cut(before=time.monotonic())


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, pages: Pages, host: str, port: int) -> None:
        self.pages: Final = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections: dict[socket.socket, float] = {}
        """Each open connection, and when it was accepted."""
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's own, which asks the resolver for the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _SHORTAGES:
                time.sleep(POLL_SECONDS)  # to ask again at once would fill a processor
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            # A slow client gives way, so that it does not keep a probe from its answer.
            oldest, _ = min(list(self._connections.items()), key=itemgetter(1))
            self._end(oldest)
        self._connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.pop(request, None)
        super().shutdown_request(request)

    def descriptors(self) -> list[int]:
        return [self.fileno(), *(connection.fileno() for connection in list(self._connections))]

    def service_actions(self) -> None:
        """Called every POLL_SECONDS."""
        self.cut(before=time.monotonic() - CONNECTION_SECONDS)

    def cut(self, before: float) -> None:
        """End the connections that were accepted before."""
        for connection, accepted_at in list(self._connections.items()):
            if accepted_at <= before:
                self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._connections.pop(connection, None)
        with suppress(OSError):  # its thread has just closed it
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event. An error in a page was logged by the handler."""


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENT_SECONDS
    server_version = "warren-raft"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        try:
            page = self.server.pages.page(self.path)
        except Exception as error:  # noqa: BLE001 - it is logged
            log_event(logger, logging.ERROR, "page failed", path=self.path[:100], exc_info=error)
            page = Page(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"this page failed; the log has the reason\n")
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def end_headers(self) -> None:
        """Of an error of the HTTP server itself too."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged: a probe comes every few seconds."""
