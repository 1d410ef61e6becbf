"""The promise: output goes to the target that the caller named, as with cp and tee. A file is complete or unchanged; a
device, a FIFO or a link is never replaced by a file.

No test writes to a device of this machine by its name: where it is run as root, a bug would cost that device.
"""

from __future__ import annotations

import errno
import os
import pty
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest

from warren_raft.disk import outputs
from warren_raft.disk.outputs import (
    collected,
    is_node,
    is_stdout,
    open_node,
    resolved,
    whole_file,
)
from warren_raft.errors import RefusedForSafety, StorageFull

DATA = b"secrets\n" * 1000


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, data: bytes = DATA) -> None:
    output: Callable[[Path], AbstractContextManager[IO[bytes]]] = open_node if is_node(path) else whole_file
    with output(path) as file:
        file.write(data)


def fail_after(file: IO[bytes]) -> None:
    file.write(b"half of it")
    raise ZeroDivisionError


# ---- files


def test_a_new_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(umask)
    assert (tmp_path / "out").read_bytes() == DATA
    assert mode_of(tmp_path / "out") == 0o600


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o660, 0o660), (0o644, 0o600)])
def test_a_file_that_is_replaced_keeps_its_mode_unless_others_could_read_it(
    tmp_path: Path, before: int, after: int
) -> None:
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(before)
    write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert mode_of(tmp_path / "out") == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_a_file_that_is_replaced_keeps_its_group(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    os.chown(tmp_path / "out", -1, 12345)
    write(tmp_path / "out")
    assert ((tmp_path / "out").stat().st_gid, mode_of(tmp_path / "out")) == (12345, 0o640)


def test_a_group_that_cannot_be_kept_is_not_replaced_by_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    monkeypatch.setattr(os, "fchown", refuse)
    write(tmp_path / "out")
    assert mode_of(tmp_path / "out") == 0o600


def test_output_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "out") as file:
        fail_after(file)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "none" / "out")
    assert caught.value.filename == str(tmp_path / "none" / "out")


# ---- links


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    """(Pins a bug: the link was replaced, and its target stayed old.)"""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("disk/real")
    (tmp_path / "link to the link").symlink_to("link")
    write(tmp_path / "link to the link")
    assert (tmp_path / "disk" / "real").read_bytes() == DATA
    assert os.readlink(tmp_path / "link") == "disk/real"
    assert os.listdir(tmp_path / "disk") == ["real"]


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(RefusedForSafety, match="a symbolic link to nothing, which does not exist"):
        write(tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]


def test_a_link_to_a_device_is_that_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    assert is_node(tmp_path / "link")


# ---- devices, FIFOs, descriptors


def read_all(path: Path, into: list[bytes]) -> None:
    with path.open("rb") as file:
        into.append(file.read())


def test_a_fifo_is_written_to_and_stays_a_fifo(tmp_path: Path) -> None:
    """(Pins a bug: it became a regular file with all secrets, and its reader waited for ever.)"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o640)
    got: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(fifo, got), daemon=True)
    reader.start()
    write(fifo, DATA * 100)  # more than it holds
    reader.join(30)
    assert got == [DATA * 100]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert mode_of(fifo) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    write(device)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert mode_of(device) == 0o644


def test_a_terminal_is_written_to() -> None:
    controller, terminal = pty.openpty()
    try:
        with open_node(os.ttyname(terminal)) as file:
            file.write(b"hello\n")
        got = b""
        while not got.endswith(b"\n"):  # a terminal may hand its bytes out in pieces
            got += os.read(controller, 100)
        assert got == b"hello\r\n"
    finally:
        os.close(controller)
        os.close(terminal)


def test_nothing_of_output_that_fails_reaches_a_device(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(ZeroDivisionError), open_node(f"/dev/fd/{writing}") as file:
        fail_after(file)
    os.close(writing)
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_the_block_ends_before_anybody_reads() -> None:
    """A pager takes hours; the view of the database that is written from must not stay open for it."""
    reading, writing = os.pipe()
    ended = threading.Event()

    def put() -> None:
        with open_node(f"/dev/fd/{writing}") as file:
            file.write(DATA * 1000)  # a pipe holds 64 KiB
            ended.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert ended.wait(30)
    left = len(DATA) * 1000
    while left:
        left -= len(os.read(reading, 65536))
    thread.join(30)
    assert not thread.is_alive()
    os.close(reading)
    os.close(writing)


def test_more_than_fits_into_memory_is_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MEMORY_BYTES", 100)
    with (tmp_path / "out").open("wb") as file:
        write(Path(f"/dev/fd/{file.fileno()}"), DATA)
    assert (tmp_path / "out").read_bytes() == DATA


def must_not(_file: IO[bytes]) -> None:
    raise AssertionError("there is nothing to send")


def test_no_space_for_unsent_output_names_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/the/place")
    with pytest.raises(StorageFull, match="/the/place has no space left"), collected("out", must_not):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_full_device_is_named(tmp_path: Path) -> None:
    device = tmp_path / "full"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    with pytest.raises(OSError, match="No space left") as caught:
        write(device)
    assert caught.value.filename == str(device)


def run(script: str, shell: str, directory: Path) -> str:
    """The output of the shell line in `out`; $PROGRAM is Python with the script."""
    program = "import os, sys\nsys.path[:] = sys.argv[1].split(':')\n" + script
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "SCRIPT": program, "P": ":".join(sys.path)}
    line = f'run() {{ "$PYTHON" -c "$SCRIPT" "$P"; }}; {shell}'
    done = subprocess.run(
        ["sh", "-c", line], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (directory / "out").read_text()


WRITE_STDOUT = """
from warren_raft.disk.outputs import is_node, is_stdout, open_node
for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"):
    assert is_node(name) and is_stdout(name), name
with open_node("/dev/stdout") as file:
    file.write(b"data\\n")
"""


@pytest.mark.parametrize("shell", ["run > out", "(echo before; run; echo after) > out", "run | cat > out"])
def test_stdout_by_name_is_the_stdout_that_there_is(tmp_path: Path, shell: str) -> None:
    """If the file were opened by its name, it would be overwritten from its beginning."""
    between = ("before\n", "after\n") if "before" in shell else ("", "")
    assert run(WRITE_STDOUT, shell, tmp_path) == "data\n".join(between)


def test_a_stdout_that_was_closed_is_no_file_of_ours(tmp_path: Path) -> None:
    """The next file that is opened gets its number, for example the database."""
    script = """
from warren_raft.disk.outputs import open_node
victim = os.open("out", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
assert victim == 1
try:
    with open_node("/dev/stdout") as file:
        file.write(b"data")
except OSError as error:
    os.write(victim, error.strerror.encode())
"""
    assert run(script, "run >&-", tmp_path) == "Bad file descriptor"


def test_a_file_of_another_name_is_not_stdout(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert not is_stdout(tmp_path / "out")
    assert not is_stdout(tmp_path / "none")
    assert not is_node(tmp_path / "out")
    assert not is_node(tmp_path / "none")
    assert not is_node(tmp_path)
    assert resolved(tmp_path / "none") == str(tmp_path / "none")
