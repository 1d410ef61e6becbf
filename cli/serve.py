"""`warren-raft serve`: one manager in the foreground, from its start to a clean end.

Here: signals, logging, and the wait until the manager can serve. Not here: the manager itself (`ReplicatedStore`).
Invariant: SIGTERM and SIGINT close the store and give exit code 0; a manager that stops by itself never gives 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.config import (
    Config,
)
from warren_raft.disk import last_failure
from warren_raft.disk.paths import missing_data
from warren_raft.errors import (
    Closed,
    InUse,
    Unavailable,
    WarrenError,
)
from warren_raft.support.core_dumps import forbid_core_dumps
from warren_raft.support.log_lines import in_quotes, log_event, word

from .common import (
    WarrenCommand,
    named_data_dir,
)
from .service_manager import ServiceManager
from .settings import gathered, settings_options, variable_of
from .signals import handled

if TYPE_CHECKING:
    from warren_raft.manager.store import ReplicatedStore

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.2  # the longest time until a signal is noticed
STILL_WAITING_SECONDS: Final = 10.0  # the time between two log lines of a manager without a leader


@click.command("serve", cls=WarrenCommand)
@settings_options
@click.option(
    "--log-level",
    envvar=variable_of("--log-level"),
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The lowest level that is logged to stderr.",
)
def serve(*, log_level: str, **options: Any) -> None:
    """Run one manager in the foreground.

    When the manager can serve, it prints one line `ready node_id=… listen=… leader=…` on stdout, and tells systemd
    (Type=notify). It waits for that without a limit. SIGTERM or Ctrl-C hands leadership over and closes cleanly. SIGHUP
    makes it look for a newer certificate. A manager that ran before starts again with --data-dir alone: its id,
    address, members and certificate are in its directory. Without --join every address must be on loopback, unless the
    directory has a certificate. An option that is missing, but --output, is taken from its environment variable:
    WARREN_BACKUP_DIR for --backup-dir.

    \b
    Example: warren-raft serve --join m1.join --data-dir data/m1
    Example: warren-raft serve --node-id m1 --listen 127.0.0.1:7946 \\
                 --member m1=127.0.0.1:7946 --member m2=127.0.0.1:7947 \\
                 --member m3=127.0.0.1:7948 --data-dir data/m1
    """
    _log_to_stderr(log_level)
    with _start_error_logged(options["node_id"]), _failure_kept(named_data_dir(), options["node_id"]):
        config = gathered(options).config
    if not forbid_core_dumps():
        text = "a core dump of this process would hold secrets: allow it to call prctl, or set LimitCORE=0"
        log_event(log, logging.WARNING, "core dumps not forbidden", text, node=config.node_id)
    from warren_raft.manager.store import ReplicatedStore

    signals = _Signals()
    with signals.handled(), _failure_kept(config.directory, config.node_id):
        with _start_error_logged(config.node_id):
            store = ReplicatedStore(config)
        with store:
            _run(store, config, signals)


def _run(store: ReplicatedStore, config: Config, signals: _Signals) -> None:
    """Until the manager fails, or the process is asked to end. Raises the error of a manager that stopped by itself."""
    service_manager = ServiceManager()
    _forget_failure(config)
    if _wait_ready(store, signals, service_manager):
        service_manager.ready()
        _say_ready(config, store.leader)
    while not signals.must_stop() and not store.wait_failed(POLL_SECONDS):
        service_manager.look(store)
        if signals.take_hang_up():
            store.reload_certificate()
    failure = store.failure
    if failure is not None:
        service_manager.failed(failure)
        raise failure
    service_manager.stopping()
    log_event(log, logging.INFO, "stop requested", node=config.node_id, signal=signals.stopped_by)


@contextmanager
def _start_error_logged(node_id: str | None) -> Iterator[None]:
    """Logs the error of a manager that does not start, with its time, as everything else in the log has one."""
    try:
        yield
    except (WarrenError, OSError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        log_event(log, logging.ERROR, "manager not started", text, node=node_id)
        raise


@contextmanager
def _failure_kept(directory: str | os.PathLike[str] | None, node_id: str | None) -> Iterator[None]:
    """Keeps the error of a manager that does not start, or stops by itself, for `status` and `describe`. `node_id`: of
    this manager; None: it is that of the directory."""
    try:
        yield
    except (WarrenError, OSError) as error:
        if directory is not None and not isinstance(error, InUse) and missing_data(os.fspath(directory)) is None:
            _keep_failure(os.fspath(directory), node_id, error)
        raise


def _keep_failure(directory: str, node_id: str | None, error: Exception) -> None:
    from warren_raft.data_dir.description import owner_of
    from warren_raft.raft.refusals import Removed
    from warren_raft.store.ownership import DirectoryLock

    if DirectoryLock.is_held(directory):
        return  # a manager runs there, and this one was refused before it could find that out
    owner, incarnation = owner_of(directory)
    if owner and node_id not in (None, owner):
        return  # it is the directory of another manager
    removed = incarnation if isinstance(error, Removed) else ""
    try:
        last_failure.keep(directory, str(error), datetime.now(UTC), removed=removed)
    except OSError as problem:  # the disk is full, or not ours: `error` is the one to report
        log_event(log, logging.WARNING, "failure not kept", problem, path=directory)


def _forget_failure(config: Config) -> None:
    try:
        last_failure.forget(config.directory)
    except OSError as error:
        log_event(log, logging.WARNING, "old failure not removed", error, node=config.node_id)


def _say_ready(config: Config, leader: str | None) -> None:
    """Prints the line `ready …`. If stdout has no reader any more (a closed terminal or pipe), the manager goes on."""
    try:
        print(f"ready node_id={config.node_id} listen={config.listen} leader={leader}", flush=True)
    except OSError as error:
        log_event(log, logging.WARNING, "ready line not written", error, node=config.node_id)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the buffered line goes there at the end


def _wait_ready(store: ReplicatedStore, signals: _Signals, service_manager: ServiceManager) -> bool:
    """Waits until the manager can serve. Returns False if it is told to stop, or fails, before that."""
    say_after = time.monotonic() + STILL_WAITING_SECONDS
    while not signals.must_stop() and store.failure is None:
        service_manager.look(store)
        try:
            store.wait_ready(timeout=POLL_SECONDS)
        except Unavailable:
            if time.monotonic() >= say_after:
                text = store.waiting_for or "there is no leader yet, or the log is not applied yet"
                log_event(log, logging.WARNING, "still waiting", text, node=store.config.node_id)
                say_after += STILL_WAITING_SECONDS
        except Closed:
            return False
        else:
            return True
    return False


class _Signals:
    """SIGTERM and SIGINT ask for a clean end; a second signal ends the process at once. SIGHUP asks for a look at the
    certificate's files.

    The handlers run between any two steps of the main thread. So they take no lock and write nothing; they set
    attributes, which the main thread reads.
    """

    def __init__(self) -> None:
        self.stopped_by = ""
        """The name of the signal that asked for the end; empty before the signal."""
        self._hang_ups = self._seen_hang_ups = 0

    def handled(self) -> AbstractContextManager[None]:
        """The time in which the handlers are in force."""
        on_stop = self._on_stop
        return handled({signal.SIGTERM: on_stop, signal.SIGINT: on_stop, signal.SIGHUP: self._on_hang_up})

    def must_stop(self) -> bool:
        """Whether the process was asked to end."""
        return bool(self.stopped_by)

    def take_hang_up(self) -> bool:
        """Whether a SIGHUP came since the last call."""
        came = self._seen_hang_ups != self._hang_ups
        self._seen_hang_ups = self._hang_ups
        return came

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._hang_ups += 1


class KeyValueFormatter(logging.Formatter):
    """time=… level=… logger=… message="…" key=value … text="…": one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": in_quotes(getattr(record, "warren_event", None) or record.getMessage()),
            **{name: word(value) for name, value in getattr(record, "warren_keys", {}).items()},
        }
        if text := getattr(record, "warren_text", ""):
            parts["text"] = in_quotes(text)
        if record.exc_info:
            parts["traceback"] = in_quotes(self.formatException(record.exc_info))
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
