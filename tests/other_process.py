"""Another process that has a store of its own, and evaluates expressions one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
import warren_raft as wr
path, store, view = sys.argv[2], None, None

def values(reader):
    return sorted({container.image for container in reader.list_containers()})

for line in sys.stdin:
    try:
        answer = eval(line)
    except SystemExit:
        raise
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


class Other:
    """Another process, which evaluates the expressions that it is sent."""

    def __init__(self, path: Path, *command: str) -> None:
        arguments = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(path)]
        self.process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def tell(self, expression: str) -> Any:
        """The value of the expression in that process; if it raises, the text of the exception."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(expression, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def open(self) -> None:
        assert self.tell("[store := wr.ReadOnlyStore(path)] and 'open'") == "open"

    def begin(self) -> Any:
        """Begin a view, and return the records in it."""
        return self.tell("[view := store.read().__enter__()] and values(view)")

    def look(self) -> Any:
        return self.tell("values(view)")

    def end(self) -> None:
        assert self.tell("view.__exit__(None, None, None)") is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
