"""The command line of the coverage-guided fuzzer: `python -m tests.fuzz TARGET [--seconds N] [options of libFuzzer]`.

The targets are in targets.py. New inputs that reach more code, and inputs that found a bug, go to `.fuzz/TARGET`. The
committed corpus is only read. scripts/fuzz.sh installs the necessary packages.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")
INPUT_BYTES_MAX = 4096
INPUT_SECONDS_MAX = 20
MEMORY_MIB_MAX = 2048

with atheris.instrument_imports(include=["warren_raft", "pysyncobj"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS


def _once_warm(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Run a target once, so that its preparations do not count for the first input's coverage."""
    target(b"\1")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz.sh", description="Fuzz one way in which bytes reach a manager.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=0, help="how long; 0: until something is found, or Ctrl-C")
    arguments, options = parser.parse_known_args()
    logging.disable(logging.CRITICAL)
    found = FOUND / arguments.target
    for directory in (found, CORPUS / arguments.target):
        directory.mkdir(parents=True, exist_ok=True)
    command = [
        sys.argv[0],
        f"-max_total_time={arguments.seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={found}/found-",
        "-print_final_stats=1",
        *options,
        str(found),
        str(CORPUS / arguments.target),
    ]
    atheris.Setup(command, _once_warm(TARGETS[arguments.target]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
