"""The promise: data never become code. Nothing that could do that is used in the product, and a whole cluster runs
while reading a pickle is an error.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import free_ports
from tests.sources import trees_with

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = sorted([*ROOT.glob("warren_raft/**/*.py"), *ROOT.glob("cli/**/*.py")])
SCRIPTS = sorted(ROOT.glob("scripts/**/*.py"))

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dbm",
    "copyreg",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
ALLOWED = {
    ("warren_raft/raft/audited.py", "exec"),  # PySyncObj's source, after its hash was compared
    ("warren_raft/raft/audited.py", "compile"),
    ("warren_raft/store/encoding.py", "exec"),  # functions made of the fields of our own entity classes
    ("warren_raft/store/encoding.py", "compile"),
}
WORDS = rf"\b({'|'.join(MODULES)}|{'|'.join(call.split('.')[-1] for call in CALLS)}|__import__|import_module|shell)\b"
"""Source in which `found_in` finds something has one of these words."""


def found_in(tree: ast.AST) -> Iterator[str]:
    """Names by which data could become code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and (node.module or "").partition(".")[0] in MODULES:
                yield node.module or ""
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.removeprefix("builtins.") in CALLS:
                yield name
            if name in ("__import__", "import_module", "importlib.import_module") and node.args:
                wanted = node.args[0]
                if isinstance(wanted, ast.Constant) and str(wanted.value).partition(".")[0] in MODULES:
                    yield str(wanted.value)
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg == "shell" and not is_false:
                    yield "shell=True"


@pytest.mark.parametrize("path", [*PRODUCT, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_makes_code_of_data_is_used(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = {each for _, tree in trees_with(WORDS, [path]) for each in found_in(tree)}
    assert {each for each in found if (name, each) not in ALLOWED} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "import shelve as s",
        "eval('1')",
        "ｅｖａｌ('1')",
        "builtins.exec(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "__import__('pickle')",
    ],
)
def test_it_would_be_noticed(code: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(code)
    ((_, tree),) = trees_with(WORDS, [path])
    assert list(found_in(tree))


CLUSTER = """
    import pickle, sys, _pickle
    from pathlib import Path

    def refusing(*_arguments, **_options):
        raise AssertionError("a pickle was read")

    class Refusing:
        __init__ = refusing

    for module in (pickle, _pickle):
        module.load = module.loads = refusing
        module.Unpickler = Refusing
    pickle._load = pickle._loads = refusing
    pickle._Unpickler.__init__ = refusing

    import warren_raft as wr

    directory, ports = Path(sys.argv[1]), sys.argv[2:]
    members = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
    stores = {}

    def start(id_):
        stores[id_] = wr.ReplicatedStore(
            wr.Config(node_id=id_, data_dir=directory / id_, listen=members[id_], members=members)
        )

    for id_ in members:
        start(id_)
    for id_ in members:
        stores[id_].wait_ready(60)
        stores[id_].create_secret(wr.Secret(id=id_, name=id_, data=b"hush"), timeout=60)
    leader = stores["m1"].wait_leader(60)
    stores.pop(leader).close()
    start(leader)
    stores[leader].wait_ready(60)
    stores[leader].barrier(60)
    assert [secret.id for secret in stores[leader].list_secrets()] == sorted(members)
    stores[leader].snapshot(directory / "saved.snapshot")
    for store in stores.values():
        store.close()
    print("done")
"""


@pytest.mark.slow
def test_a_cluster_runs_where_reading_a_pickle_is_an_error(tmp_path: Path) -> None:
    """Three managers elect, write, restart and save a snapshot."""
    state = {"XDG_STATE_HOME": str(tmp_path / "state-home")}  # where a host keeps the CA of its local clusters
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLUSTER), str(tmp_path), *map(str, free_ports(3))],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **state},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
