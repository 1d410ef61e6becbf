"""The promise: `import warren_raft` is quick, does no I/O and loads nothing heavy; every public name is
there, once, for programs and for type checkers alike.

An orchestrator imports this package in its command line tools too, where every import is felt.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import warren_raft
from warren_raft.store.interface import BaseStore

HEAVY = {
    "asyncio",
    "pysyncobj",
    "aiohttp",
    "lmdb",
    "cbor2",
    "click",
    "rich",
    "socket",
    "logging",
    "dataclasses",
}


def output_of(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def modules_after(statement: str) -> set[str]:
    """The modules that a new interpreter holds after the statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def test_importing_the_package_loads_nothing_heavy() -> None:
    new = modules_after("import warren_raft") - modules_after("pass")
    assert not new & HEAVY
    assert {name for name in new if name.startswith("warren_raft")} == {"warren_raft"}


def test_the_engine_loads_no_network() -> None:
    """It is a stepper: links, threads and TLS are the driver's."""
    assert not modules_after("import warren_raft.raft.engine") & {"asyncio", "socket", "ssl", "aiohttp"}


def test_importing_the_package_opens_no_file_but_its_own_code() -> None:
    program = (
        "import sys, typing\nopened = []\n"
        "sys.addaudithook(lambda event, args: opened.append((event, str(args[0])))"
        " if event in ('open', 'socket.__new__', 'subprocess.Popen') else None)\n"
        "import warren_raft\n"
        "print([o for o in opened if not o[1].endswith(('.py', '.pyc'))"
        " and '__pycache__' not in o[1]])"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


def test_entities_and_errors_come_without_the_engine_the_database_and_the_web() -> None:
    new = modules_after("import warren_raft; warren_raft.Service; warren_raft.NotFound; warren_raft.Config")
    assert not new & {"asyncio", "pysyncobj", "aiohttp", "lmdb", "click", "rich"}


@pytest.mark.parametrize("name", warren_raft.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(warren_raft, name)
    assert getattr(warren_raft, name) is value or name == "__version__"
    if isinstance(value, type):
        assert value.__doc__
        assert value.__module__.startswith("warren_raft")


def test_a_method_with_a_timeout_says_its_unit() -> None:
    """In its own docstring or in that of a base class."""
    found, without = 0, []
    for cls in filter(inspect.isclass, (getattr(warren_raft, name) for name in warren_raft.__all__)):
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if not name.startswith("_") and "timeout" in inspect.signature(method).parameters:
                found += 1
                texts = [getattr(vars(base).get(name), "__doc__", None) or "" for base in cls.__mro__]
                if not any("seconds" in text for text in texts):
                    without.append(f"{cls.__name__}.{name}")
    assert without == []
    assert found > 50


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sevrice'"):
        warren_raft.Sevrice  # noqa: B018


def test_type_checkers_see_exactly_the_names_that_programs_see() -> None:
    tree = ast.parse(Path(warren_raft.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == warren_raft._HOME
    assert set(seen) | {"__version__"} == set(warren_raft.__all__)
    assert set(warren_raft.__all__) <= set(dir(warren_raft))


def classes_of(module: str) -> set[str]:
    loaded = importlib.import_module(f"warren_raft.{module}")
    return {
        name
        for name, value in vars(loaded).items()
        if isinstance(value, type) and value.__module__ == loaded.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize("module", ["model.entities", "errors", "config"])
def test_no_public_class_was_forgotten(module: str) -> None:
    assert classes_of(module) <= set(warren_raft.__all__)


def test_every_package_is_installed() -> None:
    """Packages are listed by hand (cli/ is installed under another name), so one could be forgotten."""
    root = Path(warren_raft.__file__).parent
    there = {".".join(("warren_raft", *path.parent.relative_to(root).parts)) for path in root.rglob("__init__.py")} | {
        "warren_raft_cli"
    }
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(settings["tool"]["setuptools"]["packages"]) == there


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_public_face_of_the_stores_is_what_the_contract_names() -> None:
    """Hooks for tests, for the simulation and for other parts of a manager are not on it."""
    assert public(warren_raft.Store) - public(BaseStore) == {
        *("wait_ready", "wait_leader", "wait_failed", "failure", "is_ready", "waiting_for", "status", "alarms"),
        *("aio", "leading", "run_while_leading", "is_leader", "leader", "on_leadership", "barrier"),
        *("members", "add_member", "update_member", "remove_member", "transfer_leadership"),
        *("reload_certificate", "snapshot"),
    }
    assert list(inspect.signature(warren_raft.ReplicatedStore).parameters) == ["config"]


@pytest.mark.parametrize(("kind", "old_names"), [("ReplicatedStore", {"waits"}), ("LocalStore", set())])
def test_each_store_has_the_same_surface(kind: str, old_names: set[str]) -> None:
    """A program that is typed with `Store` runs with a manager, and in its tests with a LocalStore. A new public method
    belongs into store_interface.py, and into both."""
    store = getattr(warren_raft, kind)
    assert public(store) - public(warren_raft.Store) == old_names
    assert not inspect.isabstract(store)
    for name in public(warren_raft.Store):
        general, own = (inspect.getattr_static(each, name) for each in (warren_raft.Store, store))
        assert type(own) is type(general), name
        if inspect.isfunction(general):
            assert inspect.signature(own) == inspect.signature(general), name
        assert inspect.getdoc(own), name
