"""Runs inputs of one target once each: `python -m tests.fuzz.replay TARGET FILE…`. A bug is a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main() -> None:
    target, *files = sys.argv[1:]
    for file in files:
        print(file, flush=True)
        TARGETS[target](Path(file).read_bytes())


if __name__ == "__main__":
    main()
