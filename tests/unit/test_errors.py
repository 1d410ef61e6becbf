"""Every error can be pickled and copied, with its data, and its sentence names the event and no more.

Programs send errors between processes (multiprocessing, task queues) and keep copies of them. An error that cannot be
made again there ends the worker instead of the task.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import warren_raft
import warren_raft_cli
from tests.busy_machine import in_time
from tests.cluster.harness import free_ports
from warren_raft import errors

SAMPLES: dict[str, Any] = {
    "str": "a text",
    "int": 7,
    "bool": True,
    "int | None": 8,
    "str | None": "another",
    "object": "anything",
    "list[str]": ["a line", "another line"],
}
"""By annotation."""


def modules(package: ModuleType) -> list[ModuleType]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [importlib.import_module(module.name) for module in found if not module.name.endswith("__main__")]


def error_classes() -> list[type[BaseException]]:
    """Every exception that is defined in the package or in the command line, the tree under WarrenError among them."""
    classes = {
        value
        for module in [errors, *modules(warren_raft), *modules(warren_raft_cli)]
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }
    return sorted(classes, key=lambda kind: (kind.__module__, kind.__qualname__))


CLASSES = error_classes()
WAYS: dict[str, Callable[[BaseException], BaseException]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "oldest pickle": lambda error: pickle.loads(pickle.dumps(error, 0)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def sample(kind: type[BaseException]) -> BaseException:
    """One with a value for each parameter that its class names."""
    if "__init__" not in {name for base in kind.__mro__ if base.__module__.startswith("warren") for name in vars(base)}:
        return kind("a text")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    positional = [SAMPLES[str(p.annotation)] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: SAMPLES[str(p.annotation)] for p in parameters if p.kind is p.KEYWORD_ONLY}
    return kind(*positional, **named)


def test_the_tree_is_seen() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert {"WarrenError", "Unavailable", "StateUntrusted", "Removed", "NotRunning", "PeerFault"} <= names


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("made_again", WAYS, ids=WAYS)
def test_an_error_is_the_same_when_it_is_made_again(kind: type[BaseException], made_again: str) -> None:
    error = sample(kind)
    error.add_note("a note")
    again = WAYS[made_again](error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert repr(again) == repr(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert again.__notes__ == ["a note"]


# Sentences -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        (5, 7, "service 'svc-1' is at revision 7, not 5"),
        (5, 0, "there is no service 'svc-1'; it was expected at revision 5"),
        (0, 7, "there is a service 'svc-1' already, at revision 7"),
    ],
)
def test_a_conflict_says_whether_there_is_such_an_entity(expected: int, actual: int, said: str) -> None:
    assert str(errors.RevisionConflict("service", "svc-1", expected, actual)) == said


def test_an_error_of_a_wait_does_not_speak_of_applying() -> None:
    assert (
        str(errors.Unavailable("no quorum", maybe_applied=True))
        == "no quorum; the change may have been applied, or may still be"
    )
    assert str(errors.Unavailable("no quorum", maybe_applied=False)) == "no quorum; nothing was changed"
    assert str(errors.Unavailable("no leader", maybe_applied=False, of_write=False)) == "no leader"


def test_a_wait_and_a_barrier_that_end_say_nothing_of_a_write(tmp_path: Path) -> None:
    members = dict(zip(("m1", "m2", "m3"), (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True))
    config = warren_raft.Config(node_id="m1", data_dir=tmp_path, listen=members["m1"], members=members, admin=False)
    with warren_raft.ReplicatedStore(config) as store:
        for wait in (store.wait_ready, store.wait_leader, store.barrier):
            with pytest.raises(errors.Unavailable) as caught:
                wait(0.05)
            assert "applied" not in str(caught.value)
            assert not caught.value.maybe_applied
        with pytest.raises(errors.Unavailable) as caught:
            store.remove_member("m3", timeout=0.05)
        with in_time():  # the raft thread has to answer before the deadline
            assert str(caught.value) == "there is no leader: warren-raft status shows the reason; nothing was changed"
