"""DATA_DIR/state: which generation of the database is current, and whether it may be read after a crash.

Generations, the pointer, the marker of unsynced files and the count of failed starts live here; LMDB is in database.py.
Invariant: a file that may have lost pages is never opened, and the pointer always names one whole generation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Callable
from typing import Final, NoReturn

from warren_raft.disk import sharing
from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.durable import make_directory, replace_and_hold, replace_file
from warren_raft.disk.files import OS_FILES, File, Files
from warren_raft.disk.paths import absolute
from warren_raft.errors import Corrupted, RefusedForSafety
from warren_raft.store.ownership import Anchors

SET_ASIDE_KEPT: Final = 2
"""How many databases that were set aside for study are kept: enough to compare two, not enough to fill a disk."""

SUSPECT_AFTER_STARTS: Final = 2
"""After this many failed starts in a row that left no error, the state is proved in a child process before it is
opened, because the state may be the cause. It is rebuilt only if that proof fails."""

NETWORK_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "coda"}
    | {"beegfs", "gpfs", "pvfs2", "vboxsf", "prl_fs"}
)
"""LMDB needs file locks and a memory map that all its processes share. These file systems do not keep both promises
(lmdb.h, "Caveats": "Do not use LMDB databases on remote filesystems"). WSL shows Windows disks as 9p, too."""

LOCAL_FUSE_FILESYSTEMS: Final = frozenset({"fuse.fuse-overlayfs"})
"""All fuse.* types are refused (sshfs, s3fs, gluster ...), except those that rootless containers have as their root."""

_GENERATION = re.compile(r"(\d{1,18})\.mdb\Z")
_SET_ASIDE = re.compile(r"(\d{1,18})\.mdb\.aside-[a-z-]+\Z")
_EMPTY_BYTES: Final = 2 * os.sysconf("SC_PAGE_SIZE")  # LMDB's two header pages
_SMALL_BYTES: Final = 4096
_POINTER_MAX_BYTES: Final = 32  # 18 digits and a newline; a longer pointer is damaged
_HIDDEN: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM})
"""The errors of the system for files that a sandbox hides. Other errors (too many open files) say nothing about
them."""

BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
MEMORY_DIRECTORY: Final = "/dev/shm"  # noqa: S108  # the file in it is checked to be this user's
_TOKEN_CHARACTERS: Final = 32

_REBUILD: Final = "it is not read; the manager rebuilds it from its newest snapshot and its log"


class StateUntrusted(Corrupted):
    """The current generation may have lost pages (the machine went down before they were synced), or is missing.

    No process may read it: LMDB 0.9 has no page checksums, so lost pages appear as wrong records or as a crash.
    `generation` is its number, None if the pointer itself is unreadable.
    """

    def __init__(self, path: str, detail: str, generation: int | None) -> None:
        super().__init__(path, detail, remedy=_REBUILD)
        self.generation = generation


def read_boot_id() -> str:
    """A value that differs between any two runs of the kernel: its boot id, or, if a sandbox hides the boot id
    (ProcSubset=pid in a systemd unit), a token in memory. If there is neither, the value is never the same twice, so
    that no unsynced state is trusted after a crash.

    The time of boot (/proc/stat, btime) is not used: it is computed from the wall clock, so two boots of a machine
    without a battery-backed clock may have the same time.
    """
    try:
        with RESERVE.call(open, BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno not in _HIDDEN:
            raise
    return _token_in_memory(MEMORY_DIRECTORY) or f"unknown-{uuid.uuid4()}"


def _token_in_memory(directory: str) -> str | None:
    """A random value in a file of this user on a tmpfs, made if it is missing: it is lost exactly when the page cache
    is lost. None if there is no such file system."""
    path = os.path.join(directory, f"warren-raft-boot-{os.geteuid()}")
    try:
        if mount_of(directory)[1] != "tmpfs":
            return None
        with contextlib.suppress(FileExistsError):
            _make_token(path)
        descriptor = RESERVE.call(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (*_HIDDEN, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ELOOP):
            raise
        return None
    with open(descriptor, "rb") as file:
        status, token = os.fstat(descriptor), file.read(_TOKEN_CHARACTERS + 1)
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return f"token-{token.decode()}" if is_ours and re.fullmatch(rb"[0-9a-f]{32}", token) else None


def _make_token(path: str) -> None:
    """Raises FileExistsError. The file gets its name when it is complete."""
    part = f"{path}.{uuid.uuid4().hex}"
    with contextlib.closing(OS_FILES.make_file(part, private=True)) as file:
        try:
            file.write(0, uuid.uuid4().hex.encode())
            OS_FILES.link(part, path)
        finally:
            OS_FILES.unlink(part)


def _is_locked(descriptor: int) -> bool:
    """Whether another holder has an exclusive flock on an open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _sha256_of_file(path: str) -> str:
    with RESERVE.call(open, path, "rb", buffering=0, opener=sharing.without_links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exists(path: str) -> bool:
    """Whether there is a file. Raises OSError if that is not known (permissions, a failing disk).

    `os.path.exists` returns False in that case, and a state that cannot be examined would be taken for a missing one.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _read_small_file(path: str) -> bytes | None:
    try:
        with RESERVE.call(open, path, "rb", opener=sharing.without_links) as file:
            return file.read(_SMALL_BYTES)
    except FileNotFoundError:
        return None


def mount_of(directory: str) -> tuple[int, str]:
    """The id and the file system type of the mount that `directory` is on; (-1, "") if /proc does not show it."""
    mount_id, file_system = _mount_line(directory)
    return mount_id, file_system.split(" ", 1)[0]


def is_read_only_file_system(directory: str) -> bool:
    """Whether the file system of `directory` is read only through every mount of it."""
    options = _mount_line(directory)[1].split(" ")[2:3]
    return "ro" in ",".join(options).split(",")


def _mount_line(directory: str) -> tuple[int, str]:
    """The id of a mount, and its file system as in /proc/self/mountinfo: type, source, options."""
    descriptor = RESERVE.call(os.open, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        info = _read_proc(f"/proc/self/fdinfo/{descriptor}")
    finally:
        os.close(descriptor)
    match = re.search(r"^mnt_id:\s*(\d+)$", info, re.MULTILINE)
    if match is None:
        return -1, ""
    for line in _read_proc("/proc/self/mountinfo").splitlines():
        fields, _, tail = line.partition(" - ")
        if fields.split(" ", 1)[0] == match[1]:
            return int(match[1]), tail
    return int(match[1]), ""


def mount_namespace() -> str:
    """A text that identifies the mount namespace of this process. Within a namespace, a mount has one id."""
    try:
        return os.readlink("/proc/self/ns/mnt")
    except OSError as error:
        if error.errno not in _HIDDEN:
            raise
        return "unknown"


def _read_proc(path: str) -> str:
    try:
        with RESERVE.call(open, path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        if error.errno not in _HIDDEN:
            raise
        return ""


def refuse_network_filesystem(directory: str, file_system: str) -> None:
    """Raises RefusedForSafety if `file_system` (a type as in /proc/self/mountinfo) is a remote one."""
    remote = file_system in NETWORK_FILESYSTEMS or (
        file_system.startswith("fuse.") and file_system not in LOCAL_FUSE_FILESYSTEMS
    )
    if remote:
        raise RefusedForSafety(
            f"{directory} is on a network file system ({file_system}), where the database cannot be kept "
            "safely: use a directory on a local disk"
        )


# ------------------------------------------------------------------------------- generations


class StateDirectory:
    """DATA_DIR/state. Only the one process that holds the directory's lock changes anything in it.

    <n>.mdb            a generation of the database, with LMDB's <n>.mdb-lock beside it
    <n>.mdb.unsynced   its marker: the file has commits that were never synced; see `require_trusted`
    <n>.mdb.sealed     the hash of the file when it was closed; see `seal`
    <n>.mdb.aside-WHY  a generation set aside for study; never opened again
    current            the pointer: the number of the generation that is read
    starts             the number of failed starts in a row that left no error
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        boot_id: Callable[[], str] = read_boot_id,
        anchors: Anchors | None = None,
        files: Files = OS_FILES,
    ) -> None:
        """`anchors`: those of the directory's owner. They hold the files that must stay in their places. Once one of
        these files is not in its place, nothing is changed: the file there may belong to another process. `files`:
        every change of the directory goes through it, except those that LMDB makes by itself."""
        self.data_dir: Final = absolute(data_dir)
        self.path: Final = os.path.join(self.data_dir, "state")
        self.pointer: Final = os.path.join(self.path, "current")
        self._starts: Final = os.path.join(self.path, "starts")
        self._boot_id: Final = boot_id
        self._anchors: Final = anchors
        self.files: Final = files

    def create(self) -> None:
        """Make the directory if it is missing. Raises RefusedForSafety on a network file system."""
        make_directory(self.data_dir, files=self.files)
        make_directory(self.path, files=self.files)
        refuse_network_filesystem(self.path, mount_of(self.path)[1])
        self.hold(self.data_dir, self.path)

    # ---- files that must stay in their places

    def hold(self, *paths: str) -> None:
        """From now on these paths must lead to the same files. Does nothing without anchors."""
        if self._anchors is not None:
            for path in paths:
                self._anchors.hold(path)

    def let_go(self, *paths: str) -> None:
        """Call before the paths are removed or replaced."""
        if self._anchors is not None:
            for path in paths:
                self._anchors.let_go(path)

    def require_in_place(self) -> None:
        """Raises Corrupted if the directory, or a file in use, was removed, moved or replaced."""
        if self._anchors is not None:
            self._anchors.require()

    def _replace(self, path: str, data: bytes, *, locked: bool = False) -> File:
        """Replace a file that is held. Returns the new file, open."""
        self.require_in_place()
        self.let_go(path)
        file = replace_and_hold(path, data, locked=locked, files=self.files)
        try:
            self.hold(path)
        except OSError:
            file.close()
            raise
        return file

    def _remove_note(self, path: str) -> None:
        """Remove a file durably, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.files.unlink(path)
            self.files.sync_directory(self.path)

    def file_of(self, generation: int) -> str:
        """The path of a generation's database file."""
        return os.path.join(self.path, f"{generation}.mdb")

    # ---- the pointer

    def current(self) -> int | None:
        """The generation that the pointer names; None if there is no pointer. Raises StateUntrusted on damage."""
        data = _read_small_file(self.pointer)
        if data is None:
            return None
        if len(data) > _POINTER_MAX_BYTES or not re.fullmatch(rb"\d{1,18}\n", data):
            raise StateUntrusted(self.pointer, "the pointer to the current database is damaged", None)
        return int(data)

    def only_generation(self) -> int | None:
        """For a directory without a pointer: the only generation in it; None if there is no generation.

        A file without any commit is left by a first start that was killed, and is removed. Raises StateUntrusted if
        there are several generations, because it is not known which of them was current.
        """
        found = []
        for name in self.files.list_directory(self.path):
            if match := _GENERATION.match(name):
                generation = int(match[1])
                if os.path.getsize(self.file_of(generation)) <= _EMPTY_BYTES:
                    self.remove(generation)
                else:
                    found.append(generation)
        if len(found) > 1:
            raise StateUntrusted(self.pointer, f"is missing, and there are {len(found)} databases", None)
        return found[0] if found else None

    def publish(self, generation: int) -> None:
        """Make `generation` the current one. Readers see it at their next read."""
        self._replace(self.pointer, b"%d\n" % generation).close()

    def next_generation(self) -> int:
        """A number above every number in use. No number is used twice, so an old name never leads to another file."""
        numbers = [
            int(match[1])
            for name in self.files.list_directory(self.path)
            if (match := re.match(r"(\d{1,18})\.mdb", name))
        ]
        with contextlib.suppress(StateUntrusted):  # a damaged pointer adds no number
            numbers.append(self.current() or 0)
        return max(numbers, default=0) + 1

    # ---- old generations

    def remove_stale(self) -> None:
        """Remove generations that are neither current nor set aside: the rest of an interrupted replacement of the
        state.

        Processes that still read one of them go on with its open file.
        """
        current = self.current()
        for name in self.files.list_directory(self.path):
            match = _GENERATION.match(name)
            if match and int(match[1]) != current:
                self.remove(int(match[1]))

    def remove(self, generation: int) -> None:
        """Remove those files of a generation that exist."""
        self.require_in_place()
        self.let_go(self.file_of(generation), self._marker_of(generation))
        for suffix in ("", "-lock", ".unsynced", ".sealed"):
            with contextlib.suppress(FileNotFoundError):
                self.files.unlink(self.file_of(generation) + suffix)
        self.files.sync_directory(self.path)

    def set_aside(self, generation: int, why: str) -> str | None:
        """Keep a generation for study under another name; the newest two stay. `why`: letters a-z and '-'.

        Returns the new path, None if the file is missing. The caller has closed the database.
        """
        self.require_in_place()
        source = self.file_of(generation)
        self.let_go(source)
        target = f"{source}.aside-{why}"
        try:
            self.files.rename(source, target)
        except FileNotFoundError:
            target = ""
        self.remove(generation)
        self._remove_old_set_aside()
        return target or None

    def _remove_old_set_aside(self) -> None:
        found = [
            (int(match[1]), name) for name in self.files.list_directory(self.path) if (match := _SET_ASIDE.match(name))
        ]
        for _, name in sorted(found)[:-SET_ASIDE_KEPT]:
            self.files.unlink(os.path.join(self.path, name))
        self.files.sync_directory(self.path)

    # ---- the marker

    def _marker_of(self, generation: int) -> str:
        return self.file_of(generation) + ".unsynced"

    def _page_cache_identity(self, generation: int) -> tuple[bytes, bytes, bytes]:
        """The values that must be unchanged if the page cache still has the unsynced pages: file, mount and
        namespace."""
        status = os.stat(self.file_of(generation))
        return (
            f"boot {self._boot_id()}\ndevice {status.st_dev}\ninode {status.st_ino}\n".encode(),
            b"mount %d\n" % mount_of(self.path)[0],
            f"namespace {mount_namespace()}\n".encode(),
        )

    def is_unsynced(self, generation: int) -> bool:
        """Whether the generation has a marker: it was not closed cleanly, or is open now."""
        return _exists(self._marker_of(generation))

    def require_trusted(self, generation: int, *, reading: bool = False) -> None:
        """Raises StateUntrusted if the file is missing, or was not synced before the page cache was lost.

        No marker: the file was closed cleanly, or every commit was synced. A marker of this boot, this file and this
        mount: the page cache has the pages that the disk may lack. Any other marker: pages may be lost.

        `reading`: for a reader beside a manager. While the manager runs, its marker is locked and nothing is compared,
        because no lock outlives its boot. The manager may run in a mount namespace of its own (a container, a systemd
        unit with a private /tmp). The same mount has another id there, so mounts are compared only within a namespace.
        A manager itself is strict: for it, doubt costs only the time of a rebuild.
        """
        path = self.file_of(generation)
        if not _exists(path):
            raise StateUntrusted(path, "the current database is missing", generation)
        try:
            with RESERVE.call(open, self._marker_of(generation), "rb", opener=sharing.without_links) as opened:
                if reading and _is_locked(opened.fileno()):
                    return
                marker = opened.read(_SMALL_BYTES)
        except FileNotFoundError:
            return
        file, mount, namespace = self._page_cache_identity(generation)
        is_elsewhere = reading and not marker.endswith(namespace)
        if not marker.startswith(file if is_elsewhere else file + mount):
            self._refuse(generation)

    def _refuse(self, generation: int) -> NoReturn:
        path = self.file_of(generation)
        raise StateUntrusted(path, "was not synced before the machine went down or the disk was lost", generation)

    def mark_unsynced(self, generation: int) -> File:
        """Make the marker durable. Call before the first commit that is not synced, never after it.

        Returns the open marker, which holds its lock. Close it with the database, in forked children too.
        """
        identity = b"".join(self._page_cache_identity(generation))
        return self._replace(self._marker_of(generation), identity, locked=True)

    def clear_mark(self, generation: int) -> None:
        """Remove the marker: every commit has been synced."""
        self.require_in_place()
        self.let_go(self._marker_of(generation))
        self._remove_note(self._marker_of(generation))

    # ---- the seal

    def _seal_of(self, generation: int) -> str:
        return self.file_of(generation) + ".sealed"

    def seal(self, generation: int, sha256: str | None = None) -> None:
        """Note the hash of the file when writing has ended: LMDB 0.9 has no page checksums, and a disk may change a bit
        while no manager runs. `sha256`: the hash that the file must have; None: the hash that it has now.

        Do not call this while an environment of this process has the file open: closing another descriptor of the file
        would drop LMDB's locks.
        """
        self.require_in_place()
        digest = _sha256_of_file(self.file_of(generation)) if sha256 is None else sha256
        replace_file(self._seal_of(generation), f"{digest}\n".encode(), files=self.files)

    def break_seal(self, generation: int) -> None:
        """Remove the seal durably, before anything is written to the file."""
        self.require_in_place()
        self._remove_note(self._seal_of(generation))

    def is_sealed(self, generation: int) -> bool:
        """Whether the file has the same hash as when it was closed. False if that is not known (after a crash, or while
        another process has it open). Raises Corrupted if the hash differs. Reads the whole file: 80 MB take 0.1 s."""
        seal = _read_small_file(self._seal_of(generation))
        if seal is None or self.is_unsynced(generation):
            return False
        path = self.file_of(generation)
        if seal.strip().decode(errors="replace") != _sha256_of_file(path):
            if _read_small_file(self._seal_of(generation)) != seal or self.is_unsynced(generation):
                return False  # its manager opened it meanwhile
            raise Corrupted(path, "has changed since it was closed", remedy=_REBUILD)
        return True

    def condemn(self, generation: int) -> None:
        """Write a marker that matches nothing: after a failed write-back even this boot's page cache may be wrong."""
        self._replace(self._marker_of(generation), b"write-back failed\n").close()

    # ---- failed starts without an error

    def note_start(self) -> int:
        """Count a start. Returns how many starts in a row before it failed without an error (see
        SUSPECT_AFTER_STARTS)."""
        self.require_in_place()
        data = _read_small_file(self._starts) or b"0"
        failed = int(data) if re.fullmatch(rb"\d{1,9}\n?", data) else 0
        replace_file(self._starts, b"%d\n" % (failed + 1), files=self.files)
        return failed

    def forget_starts(self) -> None:
        """The manager became ready, or failed with an error that names the reason. Both say nothing against the
        state."""
        self.require_in_place()
        self._remove_note(self._starts)
