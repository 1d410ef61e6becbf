"""Which Python interpreter a child process is started with, and where it imports from.

`sys.executable` is not always one: it is the program itself where that was frozen (PyInstaller) or embeds Python
(uwsgi), and may be empty or gone. Nothing is started here.
Invariant: no candidate is this program, unless that is a Python.
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
_IS_COMPILED: Final = "__compiled__" in globals()  # by Nuitka, which says so in each module


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_STARTED_IN: Final = (
    _current_directory()
)  # what relative entries of sys.path meant when modules were imported from them


def candidates() -> list[str]:
    """Interpreters that may exist, the most likely first. Whether one can import this package, only trying it tells."""
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
    """What the program set with `multiprocessing.set_executable`, the standard way to name an interpreter."""
    spawn: ModuleType | None = sys.modules.get("multiprocessing.spawn")
    named = None if spawn is None else spawn.get_executable()
    return os.fsdecode(named) if named else None


def _is_interpreter(path: str) -> bool:
    """By its name; and it is not this program under such a name."""
    if not _NAME.match(os.path.basename(path)) or not os.access(path, os.X_OK) or os.path.isdir(path):
        return False
    try:
        own = os.readlink("/proc/self/exe")
        return bool(_NAME.match(os.path.basename(own))) or not os.path.samefile(path, own)
    except OSError:  # hidden, or the program was replaced on the disk
        return True


def import_places() -> list[str]:
    """Where a child finds what this process has imported, whatever became of the current directory since."""
    places = [str(place) for place in sys.path]
    places = [place if os.path.isabs(place) else os.path.join(_STARTED_IN or "", place) for place in places]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [*dict.fromkeys([*filter(os.path.isabs, places), package])]
