"""Promise: `help()` shows the same types as editors and type checkers, with the units and the errors.

The writes are declared once for stores, batches and other forms (store/writing.py). tests/typed_use.py holds the types
that mypy sees; lint checks that file.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
import typing
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import typed_use
from warren_raft import AsyncBatch, AsyncLead, AsyncStore, Batch, LocalStore, Node, ReplicatedStore, Store, View, Writer
from warren_raft.store.command import Operation
from warren_raft.store.writing import WriteMethods

ROOT = Path(typed_use.__file__).parent.parent
TYPED = {"store": Store, "view": View, "batch": Batch, "aio": AsyncStore}
WRITES = ("create_", "update_", "delete_", "save_")


@cache
def seen_by_mypy() -> dict[tuple[str, str], Any]:
    """The result of each method that tests/typed_use.py calls, by (argument, method)."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(typed_use))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assert_type":
            call, result = node.args
            call = call.value if isinstance(call, ast.Await) else call
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                value = eval(ast.unparse(result), vars(typed_use))
                found[ast.unparse(call.func.value), call.func.attr] = value
    return found


def methods_of(cls: type) -> list[str]:
    return sorted(name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_"))


METHODS = [(argument, name) for argument, cls in TYPED.items() for name in methods_of(cls)]


def test_mypy_reads_the_file_of_types() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "tests/typed_use.py" in settings["tool"]["mypy"]["files"]


@pytest.mark.parametrize(("argument", "name"), METHODS)
def test_help_shows_the_types_that_mypy_sees(argument: str, name: str) -> None:
    method = getattr(TYPED[argument], name)
    expected = seen_by_mypy()
    if (argument, name) in expected:
        hint = typing.get_type_hints(method)["return"]
        if typing.get_origin(hint) is Coroutine:
            hint = typing.get_args(hint)[-1]  # of `await`
        if name == "modify":
            assert isinstance(hint, typing.TypeVar)  # the class that it is given
            return
        assert hint == expected[argument, name] or (hint is type(None) and expected[argument, name] is None)
    else:  # returned by `with`, see everything_else_of_a_store
        assert name in ("read", "batch", "leading")
    signature = inspect.signature(method)
    assert set(typing.get_type_hints(method)) == {*signature.parameters, "return"} - {"self"}
    shown = f"{name}{signature}"
    assert "Result" not in shown
    assert "Timeout" not in shown


@pytest.mark.parametrize("cls", [Store, LocalStore, ReplicatedStore])
def test_help_of_a_stores_write(cls: type[Store]) -> None:
    for name in methods_of(Writer):
        if name.startswith(WRITES):
            shown = str(inspect.signature(getattr(cls, name)))
            begin, end = "if_revision: 'int | None' = None, ", "timeout: float | None = None, "
            assert shown.endswith(f"{begin}{end}request_id: 'str | None' = None) -> int")
            text = inspect.getdoc(getattr(cls, name)) or ""
            assert text.startswith(("Store ", "Delete "))
            for word in ("seconds", "Returns the revision", "RevisionConflict", "Unavailable", "StorageFull", "Closed"):
                assert word in text


@pytest.mark.parametrize("cls", [AsyncStore, AsyncLead])
def test_help_of_a_write_to_await(cls: type) -> None:
    for name in methods_of(Writer):
        if name.startswith(WRITES):
            shown = str(inspect.signature(getattr(cls, name)))
            assert shown.endswith(
                "timeout: float | None = None, request_id: 'str | None' = None)"
                " -> collections.abc.Coroutine[typing.Any, typing.Any, int]"
            )
            text = inspect.getdoc(getattr(cls, name)) or ""
            for word in (
                "Await it",
                "seconds",
                "RevisionConflict",
                "Unavailable",
                "StorageFull",
                "Closed",
                "cancelled",
            ):
                assert word in text


@pytest.mark.parametrize("cls", [Batch, AsyncBatch])
def test_help_of_a_batchs_write(cls: type) -> None:
    for name in methods_of(Batch):
        if not name.startswith(WRITES):
            continue
        shown = str(inspect.signature(getattr(cls, name)))
        assert shown.endswith("if_revision: 'int | None' = None, request_id: 'str | None' = None) -> None")
        text = inspect.getdoc(getattr(cls, name)) or ""
        assert text.startswith(("Store ", "Delete "))
        assert "nothing of the batch is done" in text
        assert "InvalidEntity" in text


def test_each_operation_is_documented() -> None:
    for argument, name in METHODS:
        text = inspect.getdoc(getattr(TYPED[argument], name)) or ""
        assert text.endswith(".")
        assert not name.startswith("get_") or "NotFound" in text or name.endswith("_by_host")


def test_a_write_of_a_batch_has_no_timeout_of_its_own(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "state") as store:
        batch: Any = store.batch()
        with pytest.raises(TypeError, match=r"store\.batch\(timeout="), batch:
            batch.delete_node("a", timeout=1)
        assert store.list_nodes() == []


def test_another_form_of_the_writes_needs_one_method() -> None:
    class Kept(WriteMethods[list[str], float]):
        def _write(self, operation: Operation, timeout: float | None, request_id: str | None) -> list[str]:
            return [operation.id, f"{timeout}", *([request_id] if request_id else [])]

    kept = Kept()
    assert kept.create_node(Node(id="n"), timeout=2.5) == ["n", "2.5"]
    assert kept.delete_node("m") == ["m", "None"]
    shown = str(inspect.signature(kept.create_node))
    assert shown.endswith("timeout: float | None = None, request_id: 'str | None' = None) -> list[str]")
    assert kept.delete_node("m", request_id="job") == ["m", "None", "job"]
