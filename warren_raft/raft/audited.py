"""PySyncObj's source as it was audited: which release, the hash of each module that is loaded, and loading them.

Lives here: checking and loading the source. Not here: which parts of it are replaced, and how it is used (core.py).
Invariant: no line of PySyncObj runs here that is not in the audited source. Stale compiled code and modules that other
code has loaded never run.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

RELEASE: Final = "0.3.17"
PACKAGE: Final = "pysyncobj"
SHA256: Final[Mapping[str, str]] = {
    "atomic_replace": "43a5252a241939b7f457cbbf39480260c91f0d2035a62b170bf1e1d20d0f9c1d",
    "config": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "dns_resolver": "4b88da2b45e20fbb299fb7a21f2595369b6314700b687fb8858891999bce14e0",
    "encryptor": "db20725465efdfc6d7a3b5b2112f53bc5426d36c56312ebdf5fbcf05423a7c19",
    "fast_queue": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "monotonic": "d116df70e1f81bcab1fb89191fe2fe18486bc25187401d73fd6101cfe686e0a3",
    "node": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "pickle": "e9327780738065cec5d600484b936c91e7c13875206cb584d5ff7f5d0dc9c474",
    "pipe_notifier": "587d964bfa5d62320f3541cbb283ff3e282cb2db95e1b8cfd888dc3d53af82aa",
    "poller": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
    "serializer": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "syncobj": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "tcp_connection": "7784ed8da031369fe36f805cb186a2e94a3bd6f10fed2dd59c8cc3713fd6331c",
    "tcp_server": "bde2f216c1a585029188d0438b44762e2e797dfc53bbce387839daaa46b9a60d",
    "transport": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "version": "0b8426a8b52ecf874193897d26c4214acbd85335145ea9ff17e27a22b1132943",
    "win_inet_pton": "75315fdf68bfa4219c2952b21077387be45a02c4f01db45c7355cdc883c8e9cc",
}
"""The hash of syncobj.py and of each module that it imports. Other modules of the package are never loaded."""
UNWANTED: Final = frozenset({"cryptography"})
"""Packages that PySyncObj imports if they are installed, and can do without. A manager does not need them."""


class UnauditedEngine(ImportError):
    """The installed PySyncObj is not the source that this project has audited."""


_lock: Final = threading.RLock()


def directory() -> Path:
    """The directory in which PySyncObj is installed. Imports nothing of it. Raises UnauditedEngine if it is not
    installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UnauditedEngine(f"{PACKAGE} {RELEASE} is not installed: pip install {PACKAGE}=={RELEASE}")
    return Path(spec.submodule_search_locations[0])


class Sources:
    """Modules of PySyncObj. Each is loaded once for this object, and no other code sees it. Thread-safe.

    Their import statements are answered here: modules of the package come from the audited source, all others from
    Python.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._package = ModuleType(PACKAGE)
        self._modules: dict[str, ModuleType] = {}
        self._code: dict[str, CodeType] = {}
        # All of them, at once: syncobj.py catches errors of some imports and would go on without these modules.
        self._sources = {name: _audited(directory, name) for name in SHA256}

    def new_module(self, name: str) -> ModuleType:
        """A new copy of the module, executed. Raises UnauditedEngine."""
        with _lock:
            module = ModuleType(f"{PACKAGE}.{name}")
            self._execute(module, name)
            return module

    def _execute(self, module: ModuleType, name: str) -> None:
        code = self._code_of(name)
        module.__package__ = PACKAGE
        module.__file__ = code.co_filename
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(code, module.__dict__)  # noqa: S102 - the audited source, checked by its hash

    def _code_of(self, name: str) -> CodeType:
        if name not in self._sources:
            raise UnauditedEngine(
                f"{PACKAGE}.{name} was not audited, and {PACKAGE} imports it: "
                f"pip install --force-reinstall {PACKAGE}=={RELEASE}"
            )
        if name not in self._code:
            path = str(self._directory / f"{name}.py")
            self._code[name] = compile(self._sources[name], path, "exec", dont_inherit=True)
        return self._code[name]

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - as Python calls it
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The function that `import` calls (see `__import__` in Python's documentation)."""
        top, _, rest = name.partition(".")
        if level == 0 and top != PACKAGE:
            if top in UNWANTED:
                raise ImportError(f"{name} is not loaded for {PACKAGE}, because a manager does not need it")
            return __import__(name, globals, locals, fromlist or (), level)
        module = self._submodule(name if level else rest)
        return module if fromlist else self._package

    def _submodule(self, name: str) -> ModuleType:
        module = self._modules.get(name)
        if module is None:
            module = self._modules[name] = ModuleType(f"{PACKAGE}.{name}")
            self._execute(module, name)
            setattr(self._package, name, module)
        return module


def _audited(directory: Path, name: str) -> bytes:
    """The source of a module. Raises UnauditedEngine if it is missing, or is not the audited source."""
    path = directory / f"{name}.py"
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UnauditedEngine(
            f"{PACKAGE} {RELEASE} is not installed as source, because {path} is missing: "
            f"pip install --force-reinstall {PACKAGE}=={RELEASE}"
        ) from None
    found = hashlib.sha256(source).hexdigest()
    if found != SHA256[name]:
        raise UnauditedEngine(
            f"the installed {PACKAGE} is not the audited release {RELEASE} (sha256 of {path} is {found[:16]}…, "
            f"expected {SHA256[name][:16]}…): pip install --force-reinstall {PACKAGE}=={RELEASE}"
        )
    return source
