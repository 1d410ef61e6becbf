"""The command line: `python -m examples.orchestrator manager ...` and `... worker ...`. run.sh shows both."""

from __future__ import annotations

import argparse
import asyncio
import logging

import warren_raft as wr

from . import manager, worker


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.orchestrator")
    programs = parser.add_subparsers(dest="program", required=True)

    one = programs.add_parser("manager", help="keep the state, schedule containers, answer HTTP requests")
    one.add_argument("--id", required=True)
    one.add_argument("--join", required=True, metavar="FILE.join", help="from `warren-raft cert issue`, for this id")
    one.add_argument("--data-dir", required=True)
    one.add_argument("--api", required=True, metavar="HOST:PORT", help="where workers and users reach this manager")

    one = programs.add_parser("worker", help="run the containers of one node")
    one.add_argument("--id", required=True)
    one.add_argument("--manager", action="append", required=True, metavar="URL", help="the API of each manager")
    return parser


def main() -> None:
    given = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {given.id} %(levelname)s %(name)s %(message)s")
    if given.program == "worker":
        asyncio.run(worker.run(given.id, given.manager))
        return
    config = wr.config_from_join(given.join, data_dir=given.data_dir, node_id=given.id)
    asyncio.run(manager.run(config, given.api))


if __name__ == "__main__":
    main()
