"""The Python interpreter for a child process, and the directories that the child imports from.

`sys.executable` is not always an interpreter. It is the program itself if that was frozen (PyInstaller) or embeds
Python (uwsgi), and it may be empty or no longer exist. Nothing is started here.
Invariant: no candidate is this program, unless this program is a Python interpreter.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from types import ModuleType
from typing import Final

_NAME: Final = re.compile(r"(python|pypy)[0-9]*(\.[0-9]+)*[a-z]*(-dbg)?\Z")
_IS_COMPILED: Final = "__compiled__" in globals()  # Nuitka sets this name in each module


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_STARTED_IN: Final = (
    _current_directory()
)  # the directory that relative entries of sys.path were relative to when modules were imported


def candidates() -> list[str]:
    """Interpreters that may exist, the most likely first. Only a trial shows whether one can import this package."""
    found = (path for path in _places() if path and os.path.isabs(path) and _is_interpreter(path))
    return list(dict.fromkeys(found))


def _places() -> Iterator[str | None]:
    yield _named_for_multiprocessing()
    if _IS_COMPILED or getattr(sys, "frozen", False) or getattr(sys, "oxidized", False):
        return  # its modules are in the program: no other interpreter can import them
    yield sys.executable
    yield getattr(sys, "_base_executable", None)
    directories = [os.path.join(prefix, "bin") for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for directory in [*directories, sysconfig.get_config_var("BINDIR")]:
        if directory:
            yield os.path.join(directory, f"python{version}")
            yield os.path.join(directory, "python3")


def _named_for_multiprocessing() -> str | None:
    """The interpreter that the program set with `multiprocessing.set_executable`, the standard way to name one."""
    spawn: ModuleType | None = sys.modules.get("multiprocessing.spawn")
    named = None if spawn is None else spawn.get_executable()
    return os.fsdecode(named) if named else None


def _is_interpreter(path: str) -> bool:
    """Decided by the name of the file, which must not be this program under such a name."""
    if not _NAME.match(os.path.basename(path)) or not os.access(path, os.X_OK) or os.path.isdir(path):
        return False
    try:
        own = os.readlink("/proc/self/exe")
        return bool(_NAME.match(os.path.basename(own))) or not os.path.samefile(path, own)
    except OSError:  # hidden, or the program was replaced on the disk
        return True


def import_places() -> list[str]:
    """The directories where a child finds the modules of this process, even if the current directory has changed."""
    places = [str(place) for place in sys.path]
    places = [place if os.path.isabs(place) else os.path.join(_STARTED_IN or "", place) for place in places]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [*dict.fromkeys([*filter(os.path.isabs, places), package])]
