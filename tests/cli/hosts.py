"""Hosts for tests: network namespaces with addresses of their own, on one switch, and a directory for each.

Needs root. Nothing outside of these namespaces is changed; they end with the `with` block, also after an error in it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str:
    """Why this machine cannot make network namespaces; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"wr-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-netns", name, "link", "add", "probe", "type", "bridge")
        finally:
            _ip("netns", "delete", name)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


class Hosts(AbstractContextManager["Hosts"]):
    """One host for each address; the addresses are of a /24. `directory(address)` is the host's working directory."""

    def __init__(self, addresses: Sequence[str], directory: Path) -> None:
        self._directory = directory
        self._names = {address: f"wr-{os.getpid()}-{number}" for number, address in enumerate(addresses, 1)}
        self._ends = ExitStack()
        try:
            self._make()
        except BaseException:
            self._ends.close()
            raise

    def _make(self) -> None:
        switch = f"wr-{os.getpid()}-0"
        for name in (switch, *self._names.values()):
            _ip("netns", "add", name)
            self._ends.callback(_ip, "netns", "delete", name)
            _ip("-netns", name, "link", "set", "lo", "up")
        _ip("-netns", switch, "link", "add", "switch", "type", "bridge")
        _ip("-netns", switch, "link", "set", "switch", "up")
        for address, name in self._names.items():
            port = f"port{name.rpartition('-')[2]}"
            _ip("-netns", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-netns", switch, "link", "set", port, "master", "switch", "up")
            _ip("-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-netns", name, "link", "set", "eth0", "up")
            self.directory(address).mkdir()

    def directory(self, address: str) -> Path:
        return self._directory / address

    def prefix(self, address: str) -> list[str]:
        """The words to put before a command that is to run on this host."""
        return ["ip", "netns", "exec", self._names[address]]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()
