"""The commands of scripts/cluster-local.sh, which runs this file.

Lives here: the command line. Not here: the cluster (local_cluster.py) and the demonstration (demo.py). Invariant: a
command that fails says so in one line, and gives exit code 1 or 2.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import click
import demo as demonstration
from local_cluster import (
    AUTHORITY,
    KILL_SECONDS,
    PROJECT,
    SAMPLE_STATE,
    STOP_SECONDS,
    ClusterFailed,
    LocalCluster,
)

DEFAULT_DIRECTORY: Final = PROJECT / ".cluster"
DEFAULT_PORT_BASE: Final = 7946


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIRECTORY,
    help="The directory of the cluster's data, logs and process ids.  [default: .cluster in the project]",
)
@click.pass_context
def main(context: click.Context, directory: Path) -> None:
    """A cluster of managers on this machine."""
    # SIGTERM raises SystemExit, so that a command stops the processes that it has started for itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    context.obj = directory.resolve()


def _existing(directory: Path) -> LocalCluster:
    cluster = LocalCluster.find(directory)
    if cluster is None:
        raise ClusterFailed(f"there is no cluster in {directory}; make one with: scripts/cluster-local.sh up")
    return cluster


@main.command()
@click.option("--managers", "count", type=click.IntRange(1, 9), help="The number of managers.  [default: 3]")
@click.option(
    "--port-base",
    type=click.IntRange(1024, 65000),
    help=f"The port of the first manager.  [default: {DEFAULT_PORT_BASE}]",
)
@click.pass_obj
def up(directory: Path, count: int | None, port_base: int | None) -> None:
    """Start the cluster. On the first start, load the sample state."""
    cluster = LocalCluster.find(directory)
    if cluster is None:
        first = port_base or DEFAULT_PORT_BASE
        members = {f"m{n + 1}": f"127.0.0.1:{first + n}" for n in range(count or 3)}
        cluster = LocalCluster.create(directory, members)
    elif count is not None or port_base is not None:
        raise ClusterFailed(
            f"{directory} already holds a cluster; --managers and --port-base are for a new one: leave them out"
        )
    cluster.start()
    loaded = directory / "sample-state-loaded"
    if not loaded.exists():
        cluster.load(SAMPLE_STATE)
        loaded.touch()
    _print_places(cluster)


def _print_places(cluster: LocalCluster) -> None:
    first = next(iter(cluster.managers.values()))
    click.echo(f"data  {cluster.directory}/ID")
    click.echo(f"CA    {cluster.directory}/{AUTHORITY}")
    click.echo(f"logs  {cluster.directory}/ID.log")
    click.echo(f"try   {Path(sys.executable).parent}/warren-raft list services --data-dir {first.data_dir}\n")
    cluster.print_status()


@main.command()
@click.pass_obj
def status(directory: Path) -> None:
    """Show every manager: role, term, applied index, digest."""
    _existing(directory).print_status()


@main.command()
@click.argument("node_id", metavar="ID")
@click.pass_obj
def kill(directory: Path, node_id: str) -> None:
    """End a manager with SIGKILL, like a crash."""
    if not _existing(directory).manager(node_id).end(signal.SIGKILL, KILL_SECONDS):
        raise ClusterFailed(f"{node_id} does not run")
    click.echo(f"killed {node_id}")


@main.command()
@click.argument("node_id", metavar="ID")
@click.pass_obj
def stop(directory: Path, node_id: str) -> None:
    """End a manager with SIGTERM and wait until it has closed."""
    if not _existing(directory).manager(node_id).end(signal.SIGTERM, STOP_SECONDS):
        raise ClusterFailed(f"{node_id} does not run")
    click.echo(f"stopped {node_id}")


@main.command()
@click.argument("node_id", metavar="ID")
@click.pass_obj
def start(directory: Path, node_id: str) -> None:
    """Start a manager again and wait until it is ready."""
    cluster = _existing(directory)
    cluster.start([cluster.manager(node_id)])
    click.echo(f"started {node_id}")


@main.command()
@click.pass_obj
def down(directory: Path) -> None:
    """Stop every manager; their data stay."""
    cluster = LocalCluster.find(directory)
    stopped = cluster.stop() if cluster is not None else 0
    click.echo(f"stopped {stopped} manager{'' if stopped == 1 else 's'}")


@main.command()
@click.pass_obj
def clean(directory: Path) -> None:
    """Stop every manager and remove all data, logs and process ids."""
    cluster = LocalCluster.find(directory)
    if cluster is None:
        click.echo(f"nothing to remove in {directory}")
        return
    cluster.stop()
    shutil.rmtree(directory)
    click.echo(f"removed {directory}")


@main.command()
def demo() -> None:
    """Show on a cluster of its own that a crash of the leader loses nothing."""
    sys.exit(demonstration.run())


if __name__ == "__main__":
    main(prog_name="scripts/cluster-local.sh")
